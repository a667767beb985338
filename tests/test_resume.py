"""Runs that are cut, by a kill, a signal or a full disk, and go on as if they had not been."""

import errno
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from distilling import start
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from resuming import assert_same, command, last, wait_for_checkpoints

from vlkd_pl.checkpoint import keep_random_states, random_state_of, set_random_state
from vlkd_pl.cli import main
from vlkd_pl.commands.train import run
from vlkd_pl.resume import CheckpointFiles, last_checkpoint


@pytest.fixture(scope="module")
def uncut(world, tmp_path_factory):
    """What runs that nobody cuts end with, by their number of workers."""
    ended = {}

    def result(num_workers):
        if num_workers not in ended:
            folder = tmp_path_factory.mktemp("uncut")
            assert main(command(world, folder, data__init_args__num_workers=num_workers)) == 0
            ended[num_workers] = last(folder)
        return ended[num_workers]

    return result


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_killed_run_goes_on_as_the_uncut_one(world, tmp_path, uncut, num_workers):
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    again = command(world, tmp_path, data__init_args__num_workers=num_workers)
    kills = 0
    for _ in range(3):
        process = start(again)
        wait_for_checkpoints([process], tmp_path, rng.randrange(1, 5))
        time.sleep(rng.uniform(0, 0.15))
        kills += process.is_alive()
        process.kill()
        process.join()
    assert kills > 0
    process = start(again)
    process.join()
    assert process.exitcode == 0
    assert_same(last(tmp_path), uncut(num_workers))


def test_a_kill_between_the_last_files_costs_nothing(world, tmp_path):
    """The last step is done then, and one of its two checkpoints is written, but the model is not."""
    export = {"class_path": "vlkd_pl.ExportModel", "init_args": {"dirpath": str(tmp_path / "model")}}
    callbacks = [{"class_path": "ModelCheckpoint", "init_args": {"save_last": True, "every_n_train_steps": 1}}, export]
    options = {"trainer.callbacks": json.dumps(callbacks), "trainer.limit_val_batches": 0, "trainer.max_steps": 2}
    again = command(world, tmp_path, **options)
    assert main(again) == 0
    weights = (tmp_path / "model" / "model.safetensors").read_bytes()
    folder = tmp_path / "run" / "version_0" / "checkpoints"
    assert (folder / "epoch=0-step=2.ckpt").is_file()
    (folder / "last.ckpt").unlink()
    shutil.rmtree(tmp_path / "model")
    assert main(again) == 0
    assert (tmp_path / "model" / "model.safetensors").read_bytes() == weights


SCONTROL = """#!/bin/sh
echo "$@" > {folder}/requeued
kill -9 $PPID
"""


def test_slurms_signal_saves_and_requeues(world, tmp_path, uncut):
    """The optimizer step, of which half may be accumulated, is ended first."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "scontrol").write_text(SCONTROL.format(folder=tmp_path))
    (tmp_path / "bin" / "scontrol").chmod(0o755)
    job = dict.fromkeys(("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"), "0")
    job |= {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "1234", "SLURM_JOB_NAME": "distill"}
    job |= {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    again = command(world, tmp_path)
    for number in (1, 2):
        process = start(again, job)
        wait_for_checkpoints([process], tmp_path, 2)
        time.sleep(random.uniform(0, 0.05))
        os.kill(process.pid, signal.SIGUSR1)
        process.join()
        assert (tmp_path / "requeued").read_text() == "requeue 1234\n"
        assert last_checkpoint([tmp_path / "run" / "version_0" / "checkpoints", tmp_path]) == (
            tmp_path / f"hpc_ckpt_{number}.ckpt"
        )
    assert main(again) == 0
    assert_same(last(tmp_path), uncut(0))
    assert [path.name for path in tmp_path.glob("*.ckpt")] == ["hpc_ckpt_2.ckpt"]


def test_sigterm_saves(world, tmp_path, uncut):
    again = command(world, tmp_path)
    process = start(again)
    wait_for_checkpoints([process], tmp_path, 3)
    process.terminate()
    process.join()
    assert process.exitcode == 143
    folder = tmp_path / "run" / "version_0" / "checkpoints"
    assert last_checkpoint([folder]) == folder / "interrupted.ckpt"
    assert main(again) == 0
    assert_same(last(tmp_path), uncut(0))


def test_gradients_of_an_accumulated_step_are_kept(world, tmp_path, uncut):
    """``best`` is written by the validation behind the fifth batch, in the middle of the third step."""
    cut = command(world, tmp_path, **{"trainer.max_steps": 3})
    assert main(cut) == 0
    folder = tmp_path / "run" / "version_0" / "checkpoints"
    for path in folder.glob("*.ckpt"):
        if path.name != "best.ckpt":
            path.unlink()
    assert torch.load(folder / "best.ckpt", weights_only=True)["pending_gradients"]
    (tmp_path / "run" / "version_1").mkdir()  # as of a test with the same configuration: not the run to go on with
    assert main(command(world, tmp_path)) == 0
    assert_same(last(tmp_path), uncut(0))


def test_a_broken_last_checkpoint_gives_way_to_the_one_before(world, tmp_path, uncut, capsys, recwarn):
    assert main(command(world, tmp_path, **{"trainer.max_steps": 3})) == 0
    folder = tmp_path / "run" / "version_0" / "checkpoints"
    broken = folder / "last.ckpt"
    broken.write_bytes(broken.read_bytes()[:-5000])
    assert main(command(world, tmp_path, ckpt_path=broken)) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{broken} is broken or is none" in line
    assert f"the newest good one beside it is {folder / 'epoch=0-step=3.ckpt'}" in line
    assert main(command(world, tmp_path)) == 0
    assert any(f"{broken} is broken: the one before it is taken" in str(warning.message) for warning in recwarn)
    assert_same(last(tmp_path), uncut(0))


class FullDisk:
    """Stands in for ``torch.save``: the disk is full while it writes certain checkpoints."""

    def __init__(self, first, behind):
        self.calls = itertools.count()
        self.full = range(first, behind)
        self.save = torch.save

    def __call__(self, checkpoint, file):
        if next(self.calls) not in self.full:
            return self.save(checkpoint, file)
        file.write(b"half a checkpoint")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_costs_checkpoints_and_no_more(world, tmp_path, uncut, monkeypatch, recwarn):
    monkeypatch.setattr("vlkd_pl.resume.torch.save", FullDisk(4, 13))
    cut = command(world, tmp_path, **{"trainer.max_steps": 4})
    assert main(cut) == 0
    folder = tmp_path / "run" / "version_0" / "checkpoints"
    messages = [str(warning.message) for warning in recwarn if "training goes on" in str(warning.message)]
    assert messages
    assert "cannot be written ([Errno 28] No space left on device)" in messages[0]
    assert "stays the last good one" in messages[0]
    # nothing half written, and the last good one is not rotated out
    assert {path.name for path in folder.iterdir()} == {"last.ckpt", "epoch=0-step=2.ckpt"}
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 2
    monkeypatch.undo()
    assert main(command(world, tmp_path)) == 0
    assert_same(last(tmp_path), uncut(0))


def test_what_was_kept_is_removed_when_there_is_room_again(tmp_path, monkeypatch):
    monkeypatch.setattr("vlkd_pl.resume.torch.save", FullDisk(1, 2))
    files = CheckpointFiles()
    for number in range(3):
        files.save_checkpoint({"step": number}, tmp_path / f"{number}.ckpt")
        if number:
            files.remove_checkpoint(tmp_path / f"{number - 1}.ckpt")
        assert last_checkpoint([tmp_path]) is not None
    assert files.num_failed == 1
    assert [path.name for path in tmp_path.iterdir()] == ["2.ckpt"]


def test_a_disk_that_is_full_from_the_start_is_an_error(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vlkd_pl.resume.torch.save", FullDisk(0, 1))
    assert main(command(world, tmp_path)) == 1
    assert "No space left on device): make room for it" in capsys.readouterr().err


def test_cudas_random_state_is_kept(monkeypatch):
    """Where there is CUDA, whose place a generator of the CPU takes here."""
    generator = torch.Generator().manual_seed(3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", generator.get_state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", generator.set_state)
    checkpoint = {}
    keep_random_states(checkpoint)
    expected = torch.rand(3, generator=generator)
    set_random_state(random_state_of(checkpoint, 0))
    assert torch.equal(torch.rand(3, generator=generator), expected)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    set_random_state(random_state_of(checkpoint, 0))  # on a machine without


def write_for_ever(path):
    files = CheckpointFiles()
    for number in itertools.count():
        files.save_checkpoint({"number": number, "weights": torch.zeros(500_000)}, path)


def test_a_kill_while_writing_leaves_a_whole_file(tmp_path):
    path = tmp_path / "last.ckpt"
    for _ in range(3):
        process = multiprocessing.get_context("fork").Process(target=write_for_ever, args=(path,))
        process.start()
        while not path.exists() or not (tmp_path / "checkpoint.tmp").exists():
            time.sleep(0.0005)
        process.kill()
        process.join()
        assert last_checkpoint([tmp_path]) == path
        assert CheckpointFiles().load_checkpoint(path)["weights"].shape == (500_000,)


def test_objects_in_a_checkpoint_are_not_unpickled(tmp_path):
    torch.save({"state_dict": {}, "object": Path("anything")}, tmp_path / "last.ckpt")
    with pytest.raises(MisconfigurationException, match="is broken or is none"):
        CheckpointFiles().load_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at"):
        CheckpointFiles().load_checkpoint(tmp_path / "other.ckpt")


def test_the_log_of_the_first_part_is_kept(world, tmp_path):
    """Where the folder of the log has no version, as in the configurations of the sample world."""
    options = {
        "trainer.logger": json.dumps(
            [{"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path), "name": None, "version": ""}}]
        ),
        "trainer.accumulate_grad_batches": 1,
        "trainer.limit_val_batches": 0,
    }
    for steps in (2, 3):
        run(command(world, tmp_path, **options, **{"trainer.max_steps": steps}))
    assert len((tmp_path / "metrics_before_1.csv").read_text().splitlines()) == 1 + 2
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + 1
