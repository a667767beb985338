"""Runs that are cut, by a kill, a signal or a full disk, and go on as if they had not been."""

import csv
import errno
import io
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
from resuming import assert_same, command, last, wait_for_checkpoints
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vlkd_pl.cli import main
from vlkd_pl.errors import ModelFileError
from vlkd_pl.training.exact_resume import random_state, set_random_state
from vlkd_pl.training.logs import MetricsFile
from vlkd_pl.training.resume import CheckpointFiles, last_checkpoint


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
def test_a_killed_run_resumes_as_the_uncut_one(world, tmp_path, uncut, num_workers):
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
    (tmp_path / "run" / "version_1").mkdir()  # as of a test with the same configuration: not the run to resume
    assert main(command(world, tmp_path)) == 0
    assert_same(last(tmp_path), uncut(0))


def test_a_corrupt_last_checkpoint_is_replaced_by_the_one_before(world, tmp_path, uncut, capsys, recwarn):
    assert main(command(world, tmp_path, **{"trainer.max_steps": 3})) == 0
    folder = tmp_path / "run" / "version_0" / "checkpoints"
    corrupt = folder / "last.ckpt"
    corrupt.write_bytes(corrupt.read_bytes()[:-5000])
    assert main(command(world, tmp_path, ckpt_path=corrupt)) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"{corrupt} is corrupt or not a checkpoint" in line
    assert f"the newest good one next to it is {folder / 'epoch=0-step=3.ckpt'}" in line
    assert main(command(world, tmp_path)) == 0
    assert any(f"{corrupt} is corrupt: the one before it is taken" in str(warning.message) for warning in recwarn)
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
    monkeypatch.setattr("vlkd_pl.training.resume.torch.save", FullDisk(4, 13))
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
    monkeypatch.setattr("vlkd_pl.training.resume.torch.save", FullDisk(1, 2))
    files = CheckpointFiles()
    for number in range(3):
        files.save_checkpoint({"step": number}, tmp_path / f"{number}.ckpt")
        if number:
            files.remove_checkpoint(tmp_path / f"{number - 1}.ckpt")
        assert last_checkpoint([tmp_path]) is not None
    assert files.num_failed == 1
    assert [path.name for path in tmp_path.iterdir()] == ["2.ckpt"]


def test_a_disk_that_is_full_from_the_start_is_an_error(world, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vlkd_pl.training.resume.torch.save", FullDisk(0, 1))
    assert main(command(world, tmp_path)) == 1
    assert "No space left on device): make room for it" in capsys.readouterr().err


def test_cudas_random_state_is_kept(monkeypatch):
    """Where there is CUDA, whose place a generator of the CPU takes here."""
    generator = torch.Generator().manual_seed(3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state", generator.get_state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", generator.set_state)
    state = random_state()
    expected = torch.rand(3, generator=generator)
    set_random_state(state)
    assert torch.equal(torch.rand(3, generator=generator), expected)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    set_random_state(state)  # on a machine without


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
        assert torch.load(path, weights_only=True)["weights"].shape == (500_000,)


def test_objects_in_a_checkpoint_are_not_unpickled(tmp_path):
    torch.save({"state_dict": {}, "object": Path("anything")}, tmp_path / "last.ckpt")
    with pytest.raises(ModelFileError, match="is corrupt or not a checkpoint"):
        CheckpointFiles().load_checkpoint(tmp_path / "last.ckpt", weights_only=False)
    with pytest.raises(FileNotFoundError, match="there is no checkpoint at"):
        CheckpointFiles().load_checkpoint(tmp_path / "other.ckpt")


def metrics(folder):
    """The rows of a run's log."""
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def command_of_one_directory(world, folder, **options):
    """As in the configurations: all loggers write to one directory without a version."""
    loggers = [
        {"class_path": kind, "init_args": {"save_dir": str(folder), "name": "run", "version": ""}}
        for kind in ("TensorBoardLogger", "CSVLogger")
    ]
    return command(world, folder, **({"trainer.logger": json.dumps(loggers)} | options))


def test_the_log_continues_in_its_file(world, tmp_path, recwarn):
    """Steps that were logged but not saved are trained again, and are in the log once."""
    folder = tmp_path / "run"
    assert main(command_of_one_directory(world, tmp_path, **{"trainer.max_steps": 4})) == 0
    for path in (folder / "checkpoints").glob("*.ckpt"):
        if path.name != "best.ckpt":  # of the validation behind the fifth batch, in the third step
            path.unlink()
    with (folder / "metrics.csv").open("a") as file:
        file.write("0.0,0,4,")  # as a kill leaves it
    before = metrics(folder)
    assert main(command_of_one_directory(world, tmp_path)) == 0
    rows = metrics(folder)
    assert [int(row["step"]) for row in rows if row["train/loss"]] == list(range(6))
    assert [int(row["step"]) for row in rows if row["val/cider"]] == [2, 4]
    assert rows[:2] == before[:2]
    assert not list(folder.glob("metrics_*"))
    assert not [warning for warning in recwarn if "resumable" in str(warning.message)]


def test_logs_of_numbered_versions_resume(world, tmp_path):
    for steps in (2, 4):
        assert main(command(world, tmp_path, **{"trainer.max_steps": steps})) == 0
    assert [path.name for path in (tmp_path / "csv").iterdir()] == ["version_0"]
    assert [int(row["step"]) for row in metrics(tmp_path / "csv" / "version_0") if row["train/loss"]] == [0, 1, 2, 3]


def test_tensorboard_shows_each_step_once(world, tmp_path):
    folder = tmp_path / "run"
    assert main(command_of_one_directory(world, tmp_path, **{"trainer.max_steps": 4})) == 0
    for path in (folder / "checkpoints").glob("*.ckpt"):
        if path.name != "best.ckpt":
            path.unlink()
    assert main(command_of_one_directory(world, tmp_path)) == 0
    assert len(list(folder.glob("events.*"))) == 2
    events = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(6))


def test_new_columns_are_added_to_a_log_that_resumes(tmp_path):
    log = MetricsFile(str(tmp_path), "metrics.csv", resume=True)
    for step in range(3):
        log.log_metrics({"loss": step}, step)
    log.save()
    log = MetricsFile(str(tmp_path), "metrics.csv", resume=True)
    log.resume(2, 2)
    log.log_metrics({"loss": 9, "accuracy": 1}, 2)
    log.save()
    assert [(row["step"], row["loss"], row["accuracy"]) for row in metrics(tmp_path)] == [
        ("0", "0", ""),
        ("1", "1", ""),
        ("2", "9", "1"),
    ]


def test_ctrl_c_saves(world, tmp_path, uncut):
    """With workers, which a terminal sends it to as well."""
    again = command(world, tmp_path, data__init_args__num_workers=2)
    process = start(again, output=tmp_path / "printed")
    wait_for_checkpoints([process], tmp_path, 3)
    for pid in [process.pid, *children(process.pid)]:
        os.kill(pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    saved = tmp_path / "run" / "version_0" / "checkpoints" / "interrupted.ckpt"
    assert last_checkpoint([saved.parent]) == saved
    lines = (tmp_path / "printed").read_text().splitlines()
    assert lines[-1] == f"vlkd-pl fit: SIGINT: saved {saved}; --ckpt_path last resumes from it"
    assert not [line for line in lines if "Traceback" in line or "Received" in line]
    assert main(again) == 0
    assert_same(last(tmp_path), uncut(2))


def test_a_second_ctrl_c_ends_at_once(world, tmp_path):
    process = start(command(world, tmp_path, **{"trainer.callbacks": '[{"class_path": "recording.Asleep"}]'}))
    while not (tmp_path / "asleep").exists():
        assert process.is_alive()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGINT)
    process.join(1)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == -signal.SIGINT


def children(pid):
    """The processes that a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class FullFile:
    """Stands in for ``open``: files of some names are on a full disk, which takes half of what is written."""

    def __init__(self, monkeypatch, *endings):
        self.endings = endings
        self.open = io.open
        for module in ("builtins", "io"):
            monkeypatch.setattr(f"{module}.open", self)
        # on Python 3.10 a path keeps the function that it found when it was imported
        monkeypatch.setattr(Path, "open", lambda path, *arguments, **options: self(path, *arguments, **options))

    def __call__(self, file, mode="r", *arguments, **options):
        if isinstance(file, int) or not any(ending in str(file) for ending in self.endings) or mode in ("r", "rb"):
            return self.open(file, mode, *arguments, **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_costs_logs_and_panels_and_no_more(world, tmp_path, uncut, monkeypatch, recwarn, capfd):
    FullFile(monkeypatch, "metrics.csv", "tfevents", "hparams.yaml", "panels")
    assert main(command(world, tmp_path)) == 0
    assert_same(last(tmp_path), uncut(0))
    messages = " ".join(str(warning.message) for warning in recwarn)
    assert "metrics.csv cannot be written ([Errno 28]" in messages
    assert "TensorBoard's log cannot be written ([Errno 28]" in messages
    assert "the caption panel" in messages
    assert "Traceback" not in capfd.readouterr().err


def test_rows_wait_for_room(tmp_path, monkeypatch):
    log = MetricsFile(str(tmp_path), "metrics.csv", resume=False)
    log.log_metrics({"loss": 0}, 0)
    log.save()
    with monkeypatch.context() as full:
        FullFile(full, "metrics.csv")
        log.log_metrics({"loss": 1}, 1)
        with pytest.warns(UserWarning, match="its rows wait"):
            log.save()
        log.log_metrics({"loss": 2, "accuracy": 0}, 2)
        log.save()
    log.log_metrics({"loss": 3, "accuracy": 0}, 3)
    log.save()
    assert [(row["step"], row["loss"]) for row in metrics(tmp_path)] == [(str(step), str(step)) for step in range(4)]


def test_a_configuration_that_cannot_be_saved_is_an_error(world, tmp_path, monkeypatch, capsys):
    FullFile(monkeypatch, "config.yaml")
    assert main(command(world, tmp_path)) == 1
    assert "config.yaml cannot be written" in capsys.readouterr().err.splitlines()[-1]
    assert not list((tmp_path / "run").glob("*"))
