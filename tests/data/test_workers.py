"""Workers that are killed, or that have no files or memory left: one line, and no process that waits."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from distilling import arguments, begin_ranks, joined, start
from torch.utils.data import DataLoader, Dataset

from vlkd_pl.commands.failures import worker_failure
from vlkd_pl.data.workers import worker_init_fn


def command(world, folder):
    """A run that does not end by itself."""
    return arguments(world, folder, data__init_args__num_workers=2, trainer__max_steps=100_000)


def workers(pid):
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def kill_a_worker(process, folder):
    end = time.monotonic() + 100
    while not (folder / "metrics.csv").exists() and process.is_alive() and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(workers(process.pid)[0], signal.SIGKILL)


def only_line(path):
    lines = path.read_text().splitlines()
    assert not [line for line in lines if "Traceback" in line]
    assert [line for line in lines if line.startswith("vlkd-pl ")] == lines[-1:]
    return lines[-1]


def test_a_killed_worker(world, tmp_path):
    process = start(command(world, tmp_path / "run"), output=tmp_path / "printed")
    kill_a_worker(process, tmp_path / "run")
    assert joined([process]) == [1]
    line = only_line(tmp_path / "printed")
    assert "was killed (Killed)" in line
    assert "--data.init_args.num_workers" in line


def test_a_killed_worker_of_one_of_two_ranks(world, tmp_path):
    ranks = begin_ranks(command(world, tmp_path / "run"), output=tmp_path / "printed")
    kill_a_worker(ranks[0], tmp_path / "run")
    assert joined(ranks) == [1, 1]
    assert "was killed (Killed)" in only_line(tmp_path / "printed.0")
    assert "another rank has ended" in only_line(tmp_path / "printed.1")


@pytest.mark.parametrize("limit", [24, 40, 48])
def test_few_files(world, tmp_path, limit):
    process = start(command(world, tmp_path / "run"), output=tmp_path / "printed", max_files=limit)
    assert joined([process]) == [1]
    line = only_line(tmp_path / "printed")
    assert f"too many files are open, and the limit is {limit}" in line
    assert "ulimit -n" in line


class Unshared(Dataset):
    """Samples that cannot be handed over to the main process."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return self

    def __reduce__(self):
        raise self.error


SHARED_MEMORY = "unable to write to file </torch_1_2_0>: No space left on device (28)"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError(SHARED_MEMORY), "no room in shared memory"),
        (OSError(24, "Too many open files"), "too many files are open"),
    ],
)
def test_a_batch_that_cannot_be_handed_over_ends_the_worker(error, line):
    """Python's queue would lose it in its own thread, and the main process would wait endlessly."""
    loader = DataLoader(
        Unshared(error), batch_size=None, num_workers=1, worker_init_fn=worker_init_fn, multiprocessing_context="fork"
    )
    with pytest.raises(RuntimeError) as ended:
        next(iter(loader))
    assert line in worker_failure(ended.value)


def test_what_torch_raises_is_reported():
    bus_error = (
        "DataLoader worker (pid 12) is killed by signal: Bus error. It is possible that dataloader's workers are"
    )
    assert "no room in shared memory" in worker_failure(RuntimeError(bus_error))
    wrapped = RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly")
    assert "data worker 12, 13 ended" in worker_failure(wrapped)
    wrapped.__cause__ = RuntimeError("DataLoader worker (pid 12) is killed by signal: Killed. ")
    assert "data worker 12 was killed (Killed)" in worker_failure(wrapped)
    assert "too many files" in worker_failure(RuntimeError("received 0 items of ancdata"))
    assert worker_failure(ValueError("something else")) is None
    assert worker_failure(torch.OutOfMemoryError("CUDA out of memory")) is None


def test_errors_that_are_each_others_context_end():
    first, second = ValueError("a"), ValueError("b")
    first.__context__, second.__context__ = second, first
    assert worker_failure(first) is None
