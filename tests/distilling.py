"""The command line of a small distillation, with every part of the real one, and processes to run it in."""

import json
import multiprocessing
import os
import socket
from pathlib import Path

import torch

from vlkd_pl.cli import main

CONFIG = Path(__file__).parents[1] / "configs" / "sample" / "distill.yaml"


def arguments(world, folder, command="fit", **options):
    """The sample run in miniature, with every part of the real one."""
    settings = {
        "model.init_args.clip": world.clip,
        "model.init_args.bart": world.bart,
        "model.init_args.num_start_texts": 20,
        "model.init_args.warmup_steps": 2,
        "model.init_args.total_steps": 8,
        "model.init_args.decoding.max_new_tokens": 5,
        "model.init_args.decoding.num_beams": 2,
        "data.init_args.shards": world.shards,
        "data.init_args.text_corpus": str(world.folder / "corpus.txt"),
        "data.init_args.batch_size": 6,
        "data.init_args.text_batch_size": 3,
        "data.init_args.val_images": str(world.folder / "images"),
        "data.init_args.val_captions": str(world.folder / "captions_val.json"),
        "data.init_args.test_images": str(world.folder / "images"),
        "data.init_args.test_captions": str(world.folder / "captions_test.json"),
        "trainer.max_steps": 4,
        "trainer.val_check_interval": 3,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "trainer.logger": json.dumps(
            [
                {"class_path": name, "init_args": {"save_dir": str(folder), "name": None, "version": ""}}
                for name in ("TensorBoardLogger", "CSVLogger")
            ]
        ),
        "trainer.callbacks": json.dumps(
            [
                {"class_path": "ModelCheckpoint", "init_args": {"save_last": True, "every_n_train_steps": 1}},
                {"class_path": "vlkd_pl.ExportModel"},
            ]
        ),
    } | {name.replace("__", "."): value for name, value in options.items()}
    return [command, "--config", str(CONFIG), *(f"--{name}={value}" for name, value in settings.items())]


def start(arguments, environment=None):
    """Starts a process of the command line; the packages are imported in the one that it is forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["vlkd_pl.commands.train", "vlkd_pl.modules.vlkd", "vlkd_pl.data.cc3m"])
    process = context.Process(target=_run, args=(arguments, environment or {}))
    process.start()
    return process


def start_ranks(arguments, num=2):
    """Runs the command line in processes that are the ranks of one job, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num), "GROUP_RANK": "0"}
    job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [start(arguments, job | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(num)]
    for process in ranks:
        process.join(300)
        process.kill()
        assert process.exitcode == 0


def _run(arguments, environment):
    os.environ.update(environment)
    multiprocessing.set_start_method("fork", force=True)  # of the data's workers, as it is without a forkserver
    torch.set_num_threads(1)
    raise SystemExit(main(arguments))
