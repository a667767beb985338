"""Runs of two ranks over gloo that are cut, and go on as if they had not been."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import resuming
import torch
from distilling import begin_ranks, joined
from resuming import assert_same, checkpoints, wait_for_checkpoints

from vlkd_pl.cli import main
from vlkd_pl.training.resume import last_checkpoint


def command(world, folder, **options):
    """With workers too."""
    return resuming.command(world, folder, **({"data.init_args.num_workers": 2} | options))


def last(folder):
    return resuming.last(folder, num_ranks=2)


@pytest.fixture(scope="module")
def uncut(world, tmp_path_factory):
    """What a run that nobody cuts ends with."""
    folder = tmp_path_factory.mktemp("uncut")
    assert joined(begin_ranks(command(world, folder))) == [0, 0]
    return last(folder)


def test_a_killed_run_resumes_as_the_uncut_one(world, tmp_path, uncut):
    """All ranks are killed, or one of them: the other then ends of itself."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    kills = 0
    for killed in ((0, 1), (0,), (1,)):
        ranks = begin_ranks(command(world, tmp_path))
        wait_for_checkpoints(ranks, tmp_path, rng.randrange(1, 5))
        time.sleep(rng.uniform(0, 0.15))
        kills += all(process.is_alive() for process in ranks)
        for rank in killed:
            ranks[rank].kill()
        assert None not in joined(ranks)
    assert kills > 0
    assert joined(begin_ranks(command(world, tmp_path))) == [0, 0]
    assert_same(last(tmp_path), uncut)


def test_forked_ranks_count_what_they_read_for_themselves(world, tmp_path, uncut):
    """They share the memory of the process that they come from."""
    options = {"trainer.devices": 2, "trainer.strategy": "ddp_fork", "trainer.accelerator": "cpu"}
    assert main(command(world, tmp_path, **options)) == 0
    assert_same(last(tmp_path), uncut)


def test_gradients_of_an_accumulated_step_are_kept(world, tmp_path, uncut):
    assert joined(begin_ranks(command(world, tmp_path, **{"trainer.max_steps": 3}))) == [0, 0]
    for path in checkpoints(tmp_path).glob("*.ckpt"):
        if path.name != "best.ckpt":
            path.unlink()
    assert torch.load(checkpoints(tmp_path) / "best.ckpt", weights_only=True)["pending_gradients"]
    assert joined(begin_ranks(command(world, tmp_path))) == [0, 0]
    assert_same(last(tmp_path), uncut)


def test_sigterm_saves(world, tmp_path, uncut):
    """Also where ranks receive it at different moments."""
    ranks = begin_ranks(command(world, tmp_path))
    wait_for_checkpoints(ranks, tmp_path, 3)
    for rank in ranks:
        time.sleep(random.uniform(0, 0.05))
        os.kill(rank.pid, signal.SIGTERM)
    assert joined(ranks) == [143, 143]
    assert last_checkpoint([checkpoints(tmp_path)]) == checkpoints(tmp_path) / "interrupted.ckpt"
    assert joined(begin_ranks(command(world, tmp_path))) == [0, 0]
    assert_same(last(tmp_path), uncut)


def test_ctrl_c_saves(world, tmp_path, uncut):
    """Also where one rank alone receives it."""
    ranks = begin_ranks(command(world, tmp_path), output=tmp_path / "printed")
    wait_for_checkpoints(ranks, tmp_path, 3)
    os.kill(ranks[1].pid, signal.SIGINT)
    assert joined(ranks) == [130, 130]
    assert last_checkpoint([checkpoints(tmp_path)]) == checkpoints(tmp_path) / "interrupted.ckpt"
    printed = [Path(f"{tmp_path / 'printed'}.{rank}").read_text() for rank in range(2)]
    assert "Traceback" not in "".join(printed)
    assert [text.count("vlkd-pl fit: SIGINT: saved") for text in printed] == [1, 0]
    assert joined(begin_ranks(command(world, tmp_path))) == [0, 0]
    assert_same(last(tmp_path), uncut)


def children(process):
    """The processes that a process has started, by their local rank."""
    pids = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (path / "environ").read_bytes().split(b"\0") if parent == process.pid else []
        except OSError:  # it has ended
            continue
        pids |= {int(line[11:]): int(path.name) for line in environment if line.startswith(b"LOCAL_RANK=")}
    return pids


@pytest.mark.slow
def test_ranks_that_the_command_starts_itself(world, tmp_path, uncut):
    """Without torchrun or SLURM; the second rank is killed, and then both at once."""
    options = {"trainer.devices": 2, "trainer.strategy": "ddp", "trainer.accelerator": "cpu"}
    line = [sys.executable, "-m", "vlkd_pl", *command(world, tmp_path, **options)]
    for kill_all in (False, True):
        process = subprocess.Popen(line, start_new_session=True)
        before = set(checkpoints(tmp_path).glob("*.ckpt"))
        while not set(checkpoints(tmp_path).glob("*.ckpt")) - before:
            assert process.poll() is None
            time.sleep(0.01)
        if kill_all:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(children(process)[1], signal.SIGKILL)
        assert process.wait(100) != 0
    assert subprocess.run(line, check=False, timeout=300).returncode == 0
    assert_same(last(tmp_path), uncut)
