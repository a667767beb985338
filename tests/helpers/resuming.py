"""Runs that are interrupted and resumed: their command line, the time of the interruption, and their results."""

import json
import time

import torch
from distilling import arguments

from vlkd_pl.training.resume import last_checkpoint

NUM_STEPS = 6


def command(world, folder, **options):
    """A distillation that validates in the middle of accumulated steps and resumes from its last checkpoint."""
    loggers = [
        {"class_path": kind, "init_args": {"save_dir": str(folder), "name": name, "version": None}}
        for kind, name in (("TensorBoardLogger", "run"), ("CSVLogger", "csv"))
    ]
    callbacks = [
        {"class_path": "ModelCheckpoint", "init_args": {"save_last": True, "every_n_train_steps": 1}},
        {"class_path": "ModelCheckpoint", "init_args": {"monitor": "val/cider", "mode": "max", "filename": "best"}},
    ]
    settings = {
        "ckpt_path": "last",
        "trainer.default_root_dir": str(folder),
        "trainer.max_steps": NUM_STEPS,
        "trainer.accumulate_grad_batches": 2,
        "trainer.val_check_interval": 5,
        "trainer.limit_val_batches": 1,
        "trainer.logger": json.dumps(loggers),
        "trainer.callbacks": json.dumps(callbacks),
        "data.init_args.evaluation.num_samples": 2,
    }
    return arguments(world, folder, **(settings | options))


def checkpoints(folder):
    """The folder of a run's checkpoints."""
    return folder / "run" / "version_0" / "checkpoints"


def wait_for_checkpoints(processes, folder, num):
    """Wait until a run has written a number of files, or one of its processes has ended."""

    def written_files():
        return {(path, path.stat().st_mtime_ns) for path in checkpoints(folder).glob("*.ckpt")}

    seen = written_files()
    written, end = 0, time.monotonic() + 300
    while written < num and all(process.is_alive() for process in processes) and time.monotonic() < end:
        time.sleep(0.002)
        try:
            now = written_files()
        except FileNotFoundError:  # rotated out
            continue
        written += len(now - seen)
        seen |= now


def last(folder, num_ranks=1):
    """Read the final state of a run; after a kill between the last two files, ``last.ckpt`` is not the newest."""
    checkpoint = torch.load(last_checkpoint([checkpoints(folder)]), weights_only=True)
    assert checkpoint["global_step"] == NUM_STEPS
    assert len(checkpoint["random_states"]) == len(checkpoint["CC3MDataModule"]["positions"]) == num_ranks
    random_states = [(state["python"], state["numpy"], state["cpu"].tolist()) for state in checkpoint["random_states"]]
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "CC3MDataModule", "skipped_steps")
    return random_states, {part: checkpoint[part] for part in parts}


def assert_same(actual, expected):
    torch.testing.assert_close(actual[1], expected[1], rtol=0, atol=0)
    assert actual[0] == expected[0]
