"""The command line of a small distillation, with every part of the real one, and processes to run it in."""

import json
import multiprocessing
import os
import resource
import socket
import time
from pathlib import Path

import ranks  # noqa: F401  sets what the processes import before they are forked
import torch

from vlkd_pl.cli import main

OVERLAYS = Path(__file__).parents[2] / "configs" / "overlays"
CONFIG = Path(__file__).parents[2] / "configs" / "sample" / "distill.yaml"

MODEL_SETTINGS = {
    "model.init_args.image_features": "all",
    "model.init_args.prefix_length": "null",
    "model.init_args.text_infilling_weight": 1.0,
    "model.init_args.text_infilling_around": 0.0,
    "model.init_args.text_as_image_weight": 1.0,
    "model.init_args.optimization.learning_rate": 3.0e-3,
    "model.init_args.optimization.projection_learning_rate": 6.0e-3,
}
"""All image features, equal weights, and rates at which a few steps show."""


def arguments(world, folder, command="fit", **options):
    """The command line of a miniature run, with every part of the real one."""
    settings = {
        "model.init_args.clip": world.clip,
        "model.init_args.bart": world.bart,
        **MODEL_SETTINGS,
        "model.init_args.num_start_texts": 20,
        "model.init_args.optimization.warmup_steps": 2,
        "model.init_args.optimization.total_steps": 8,
        "model.init_args.decoding.max_new_tokens": 5,
        "model.init_args.decoding.num_beams": 2,
        "data.init_args.shards": world.shards,
        "data.init_args.features": "null",
        "data.init_args.text_corpus.path": str(world.folder / "corpus.txt"),
        "data.init_args.batch_size": 6,
        "data.init_args.text_corpus.batch_size": 3,
        "data.init_args.text_corpus.text_as_image": 2,
        "data.init_args.evaluation.val_images": str(world.folder / "images"),
        "data.init_args.evaluation.val_captions": str(world.folder / "captions_val.json"),
        "data.init_args.evaluation.test_images": str(world.folder / "images"),
        "data.init_args.evaluation.test_captions": str(world.folder / "captions_test.json"),
        "trainer.max_steps": 4,
        "trainer.val_check_interval": 3,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "trainer.default_root_dir": str(folder),
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


def start(arguments, environment=None, output=None, max_files=None):
    """Start a process of the command line, forked from one that has imported the packages.

    Args:
        arguments: The command line.
        environment: What is added to the environment.
        output: A file for what it prints.
        max_files: Most files that it may open.
    """
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_run, args=(arguments, environment or {}, output, max_files))
    process.start()
    return process


def begin_ranks(arguments, overlay="ddp", num=2, output=None):
    """Start the processes of one run over gloo, as torchrun does, with an overlay for many GPUs.

    What rank N prints goes to the file ``{output}.N``, where one is given.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": str(num), "LOCAL_WORLD_SIZE": str(num), "GROUP_RANK": "0"}
    job |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    inputs = [
        *arguments,
        f"--config={OVERLAYS / overlay}.yaml",
        f"--trainer.devices={num}",
        "--trainer.accelerator=cpu",
    ]
    return [
        start(inputs, job | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, output and f"{output}.{rank}")
        for rank in range(num)
    ]


def joined(processes, timeout=100):
    """The exit codes of processes; None for those that do not end."""
    end = time.monotonic() + timeout
    for process in processes:
        process.join(max(0, end - time.monotonic()))
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()
        process.join()
    return codes


def _run(arguments, environment, output, max_files):
    os.environ.update(environment)
    if output is not None:
        file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(file, stream)
        os.close(file)
    if max_files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max_files, max_files))
    multiprocessing.set_start_method("fork", force=True)  # for the data workers, as without a forkserver
    torch.set_num_threads(1)
    raise SystemExit(main(arguments))
