"""The directory of a run: refused where it holds one, left alone by tests, removed after a failed start."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from distilling import arguments, begin_ranks, joined

from vlkd_pl.cli import main
from vlkd_pl.errors import ModelFileError
from vlkd_pl.training.checkpoint import read_checkpoint
from vlkd_pl.training.progress_bar import StepProgressBar
from vlkd_pl.training.resume import CheckpointFiles


def command(world, folder, command="fit", **options):
    settings = {"trainer.max_steps": 2, "trainer.limit_val_batches": 1, "trainer.val_check_interval": 2}
    return arguments(world, folder, command, **(settings | options))


@pytest.fixture(scope="module")
def fitted(world, tmp_path_factory):
    """The directory of a finished run."""
    folder = tmp_path_factory.mktemp("fitted")
    assert main(command(world, folder)) == 0
    return folder


@pytest.fixture
def run(fitted, tmp_path):
    return Path(shutil.copytree(fitted, tmp_path / "run"))


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_line(capsys):
    """The last line of the standard error stream, which is the only one of the command."""
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("vlkd-pl ")] == lines[-1:]
    assert not [line for line in lines if "Traceback" in line]
    return lines[-1]


def remove_all_but(run, name):
    for path in run.iterdir():
        if path.name != name:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize("original", [None, "checkpoints", "metrics.csv", "model"])
def test_a_second_run_in_the_same_directory_is_refused(world, run, capsys, original):
    if original is not None:
        remove_all_but(run, original)
    before = content(run)
    assert main(command(world, run)) == 1
    line = error_line(capsys)
    assert str(run / (original or "checkpoints")) in line
    assert "--ckpt_path last" in line
    assert "--run_dir" in line
    assert content(run) == before


def test_two_ranks_refuse_together(world, run, tmp_path):
    before = content(run)
    assert joined(begin_ranks(command(world, run), output=tmp_path / "printed")) == [1, 1]
    assert "--ckpt_path last" in (tmp_path / "printed.1").read_text().splitlines()[-1]
    assert content(run) == before


def test_another_runs_checkpoint_is_no_resumption(world, run, tmp_path, capsys):
    other = tmp_path / "other.ckpt"
    shutil.copy(run / "checkpoints" / "last.ckpt", other)
    assert main(command(world, run, ckpt_path=other)) == 1
    assert "is of an earlier run" in error_line(capsys)
    assert main(command(world, run, ckpt_path=run / "checkpoints" / "last.ckpt", trainer__max_steps=3)) == 0
    assert main(command(world, tmp_path / "new", ckpt_path=other, trainer__max_steps=3)) == 0


def test_what_a_failed_start_leaves_is_no_run(world, run):
    """A start that was killed before its first logged step; with --ckpt_path last, and without."""
    for resume in ({}, {"ckpt_path": "last"}):
        shutil.rmtree(run)
        run.mkdir()
        for name in ("config.yaml", "hparams.yaml", "events.out.tfevents.1.host.1.0"):
            (run / name).touch()
        (run / "checkpoints").mkdir()
        assert main(command(world, run, trainer__max_steps=1, **resume)) == 0


def test_tests_leave_the_files_of_training(world, run):
    before = content(run)
    for name in ("test", "validate", "test"):
        assert main(command(world, run, name, model__init_args__init_from=run / "model")) == 0
        after = content(run)
        assert {path: after[path] for path in before} == before
    new = {str(path) for path in after.keys() - before.keys() if "tfevents" not in path.name}
    scores = {"scores.json", "predictions.json", "config_test.yaml", "metrics_test.csv"}
    assert scores <= new
    assert {"config_validate.yaml", "metrics_validate.csv"} <= new
    assert "test/cider" in (run / "metrics_test.csv").read_text()


def test_run_dir_moves_the_whole_run(world, run, tmp_path):
    before = content(run)
    assert main(command(world, run, run_dir=tmp_path / "a" / "new")) == 0
    assert content(run) == before
    new = {path.name for path in (tmp_path / "a" / "new").iterdir()}
    assert {"checkpoints", "metrics.csv", "model", "config.yaml"} <= new


@pytest.mark.parametrize("version", ["", None])
@pytest.mark.parametrize("name", ["fit", "test"])
def test_a_failed_start_leaves_no_directory(world, tmp_path, capsys, version, name):
    loggers = [
        {"class_path": kind, "init_args": {"save_dir": str(tmp_path / "a"), "name": "run", "version": version}}
        for kind in ("TensorBoardLogger", "CSVLogger")
    ]
    options = {"trainer.logger": json.dumps(loggers)}
    for split in ("val", "test"):
        options[f"data.init_args.evaluation.{split}_captions"] = tmp_path / "missing.json"
    assert main(command(world, tmp_path, name, **options)) == 1
    assert "missing.json" in error_line(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["fit", "test"])
def test_a_directory_that_is_a_file(world, tmp_path, capsys, name):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(command(world, folder, name)) == 1
        assert f"trainer.logger: {tmp_path / 'file'} is not a directory" in error_line(capsys)
    assert main(command(world, tmp_path / "run", name, trainer__default_root_dir=tmp_path / "file")) == 1
    assert f"trainer.default_root_dir: {tmp_path / 'file'} is not a directory" in error_line(capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["fit", "test"])
def test_a_directory_that_cannot_be_written(world, capsys, name):
    assert main(command(world, Path("/proc/1/run"), name)) == 1
    assert "trainer.logger: /proc/1/run cannot be written" in error_line(capsys)


@pytest.mark.parametrize("name", ["fit", "test"])
@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_weights_in_16_bits_are_refused(world, tmp_path, capsys, name, precision):
    assert main(command(world, tmp_path, name, trainer__precision=precision)) == 1
    line = error_line(capsys)
    assert f"trainer.precision: {precision}" in line
    assert precision.replace("true", "mixed") in line


def zipped(path, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("readme.txt", "hello")


def recompressed(source, path):
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as other:
        for name in archive.namelist():
            other.writestr(name, archive.read(name))


OTHER_PROJECT = {
    "pytorch-lightning_version": "2.6.6",
    "epoch": 1,
    "global_step": 3,
    "loops": {},
    "optimizer_states": [],
    "lr_schedulers": [],
    "state_dict": {"encoder.weight": torch.ones(3)},
}
NO_CHECKPOINTS = {
    "directory": lambda path, good: path.mkdir(),
    "FIFO": lambda path, good: os.mkfifo(path),
    "device": lambda path, good: path.symlink_to("/dev/zero"),
    "empty": lambda path, good: path.touch(),
    "text": lambda path, good: path.write_text("hello\n" * 100),
    "pickle": lambda path, good: path.write_bytes(pickle.dumps({"state_dict": {}})),
    "zip": lambda path, good: zipped(path),
    "truncated": lambda path, good: path.write_bytes(good.read_bytes()[:-1000]),
    "compressed": lambda path, good: recompressed(good, path),
    "object": lambda path, good: torch.save({"state_dict": {}, "object": Path()}, path),
    "list": lambda path, good: torch.save([torch.ones(3)], path),
    "weights alone": lambda path, good: torch.save({"weight": torch.ones(3)}, path),
    "state_dict alone": lambda path, good: torch.save({"state_dict": {"weight": torch.ones(3)}}, path),
    "state_dict of numbers": lambda path, good: torch.save({"state_dict": {"weight": 1}}, path),
    "other project": lambda path, good: torch.save(OTHER_PROJECT, path),
}


@pytest.mark.parametrize("kind", NO_CHECKPOINTS)
def test_a_file_that_is_no_checkpoint(fitted, tmp_path, kind):
    path = tmp_path / "given.ckpt"
    NO_CHECKPOINTS[kind](path, fitted / "checkpoints" / "last.ckpt")
    if kind == "other project":  # it is a checkpoint: see below
        read_checkpoint(path)
        return
    with pytest.raises(ModelFileError, match=r"ckpt_path: .*given\.ckpt") as error:
        CheckpointFiles(resumes=True).load_checkpoint(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["fit", "test"])
@pytest.mark.parametrize("kind", ["FIFO", "text", "other project", "state_dict alone"])
def test_a_checkpoint_of_something_else_is_reported_in_one_line(world, fitted, tmp_path, capsys, name, kind):
    path = tmp_path / "given.ckpt"
    NO_CHECKPOINTS[kind](path, fitted / "checkpoints" / "last.ckpt")
    assert main(command(world, tmp_path / "run", name, ckpt_path=path)) == 1
    assert "checkpoint" in error_line(capsys)
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_a_model_of_another_size(world, fitted, tmp_path, capsys):
    checkpoint = torch.load(fitted / "checkpoints" / "last.ckpt", weights_only=True)
    weights = checkpoint["state_dict"]
    weights["model.image_projection.weight"] = weights["model.image_projection.weight"][:-1]
    del weights["model.text_projection.weight"]
    torch.save(checkpoint, tmp_path / "given.ckpt")
    assert main(command(world, tmp_path / "run", ckpt_path=tmp_path / "given.ckpt")) == 1
    line = error_line(capsys)
    assert "does not fit this VLKDModule: it lacks model.text_projection.weight, and 1 more" in line


def test_the_progress_bar_counts_batches(world, tmp_path, monkeypatch):
    """Up to the last step, with two batches each, and behind a resumption in the middle of an epoch."""
    progress = []
    update = StepProgressBar._update

    def note(bar, task, current, *arguments, **options):
        update(bar, task, current, *arguments, **options)
        progress.append([bar.progress.tasks[task].description.strip(), current, bar.progress.tasks[task].total])

    monkeypatch.setattr(StepProgressBar, "_update", note)
    checkpoints = {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 1}}
    callbacks = [{"class_path": "vlkd_pl.StepProgressBar"}, checkpoints]
    options = {"trainer.callbacks": json.dumps(callbacks), "trainer.enable_progress_bar": "true"}
    options |= {"trainer.accumulate_grad_batches": 2, "trainer.limit_val_batches": 0, "ckpt_path": "last"}
    for steps in (2, 4):
        assert main(command(world, tmp_path, **(options | {"trainer.max_steps": steps}))) == 0
    assert progress == [["Epoch 0", batch, 4] for batch in range(1, 5)] + [
        ["Epoch 0", batch, 8] for batch in range(5, 9)
    ]
