"""The grid: every run once, whatever happens between; Table 5 of the best."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from vlkd_pl.cli import main
from vlkd_pl.commands import grid
from vlkd_pl.sample.glue import write_glue

CONFIGS = Path(__file__).parents[2] / "configs"
GRID = ["--batch-sizes", "16", "--learning-rates", "1e-4", "5e-4", "--weight-decays", "1e-4", "1e-3"]
SCORES = {"batch16_lr0.0001_decay0.0001": 0.5, "batch16_lr0.0001_decay0.001": 0.7}


@pytest.fixture
def started(monkeypatch):
    """What the grid starts, in place of the processes: commands, with what they come to.

    ``failures`` holds for a command and a run its exit status, what it prints, and whether it has trained before.
    """
    started = SimpleNamespace(commands=[], failures={}, interrupt_at=None)

    def process(command, stdout, **_):
        stage, settings = command[3], dict(part.removeprefix("--").split("=", 1) for part in command[4:])
        folder = Path(settings["run_dir"])
        name = folder.name
        assert folder.is_dir()
        started.commands.append((stage, settings["model.task"], name, settings))
        if started.interrupt_at == len(started.commands):
            (folder / "half.txt").write_text("cut")
            raise KeyboardInterrupt
        status, printed, has_trained = started.failures.get((stage, name), (0, "", True))
        stdout.write(printed)
        stdout.flush()
        if stage == "fit" and has_trained:
            (folder / "checkpoints").mkdir()
            (folder / "checkpoints" / "best.ckpt").write_text(name)
        elif stage == "test":
            assert settings["ckpt_path"] == str(folder / "checkpoints" / "best.ckpt")
            value = SCORES.get(name, 0.6)
            scores = dict.fromkeys(("matthews_correlation", "accuracy", "f1", "score"), value)
            (folder / "scores.json").write_text(json.dumps({"scores": scores}))
        return SimpleNamespace(returncode=status)

    monkeypatch.setattr(subprocess, "run", process)
    return started


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "glue.yaml"
    path.write_text("seed_everything: 0\n")
    return path


def command(config, output, *extra, tasks=("cola", "rte")):
    return ["grid", "--config", str(config), "--output", str(output), "--tasks", *tasks, *GRID, *extra]


def test_every_combination_is_fitted_and_tested_once(started, config, tmp_path):
    assert main(command(config, tmp_path / "runs")) == 0
    fits = [run for run in started.commands if run[0] == "fit"]
    assert len(fits) == len({(task, name) for _, task, name, _ in fits}) == 8
    assert [run[1:3] for run in started.commands[::2]] == [run[1:3] for run in started.commands[1::2]]
    values = {
        (s["data.batch_size"], s["model.optimization.learning_rate"], s["model.optimization.weight_decay"])
        for _, task, _, s in fits
        if task == "cola"
    }
    assert values == {("16", rate, decay) for rate in ("1e-4", "5e-4") for decay in ("1e-4", "1e-3")}
    assert {settings["config"] for *_, settings in started.commands} == {str(config)}


def test_the_papers_grid_is_the_default(started, config, tmp_path):
    assert main(["grid", "--config", str(config), "--output", str(tmp_path / "runs"), "--tasks", "mrpc"]) == 0
    names = [name for stage, _, name, _ in started.commands if stage == "fit"]
    expected = [
        f"batch{batch}_lr{rate}_decay{decay}"
        for batch in (16, 32, 64)
        for rate in ("0.0001", "0.0005", "0.001")
        for decay in ("0.0001", "0.001")
    ]
    assert names == expected


def test_finished_runs_are_found_and_interrupted_ones_done_anew(started, config, tmp_path, capsys):
    started.interrupt_at = 6  # in the test of the third run
    assert main(command(config, tmp_path / "runs")) == 130
    assert "the same command resumes" in capsys.readouterr().err
    started.interrupt_at = None
    half = tmp_path / "runs" / "cola" / "batch16_lr0.0005_decay0.0001"
    assert (half / "half.txt").exists()
    before = len(started.commands)
    assert main(command(config, tmp_path / "runs")) == 0
    assert not (half / "half.txt").exists()
    fits = [run[1:3] for run in started.commands if run[0] == "fit"]
    assert {key for key in fits if fits.count(key) > 1} == {("cola", half.name)}
    assert len(set(fits)) == 8
    assert len(started.commands) == before + 2 * 6
    assert main(command(config, tmp_path / "runs")) == 0
    assert len(started.commands) == before + 2 * 6
    assert capsys.readouterr().out.count(": recorded, ") == 2 + 8


def test_a_record_that_was_cut_is_none(started, config, tmp_path, monkeypatch):
    replace = os.replace
    monkeypatch.setattr(
        os, "replace", lambda *a: replace(*a) if "settings" in str(a[1]) else (_ for _ in ()).throw(KeyboardInterrupt)
    )
    assert main(command(config, tmp_path / "runs", tasks=["cola"])) == 130
    assert not list((tmp_path / "runs").rglob("result.json"))
    monkeypatch.setattr(os, "replace", replace)
    assert main(command(config, tmp_path / "runs", tasks=["cola"])) == 0
    assert len(list((tmp_path / "runs").rglob("result.json"))) == 4


def test_the_grid_can_be_extended_and_written_otherwise(started, config, tmp_path):
    assert main(command(config, tmp_path / "runs", tasks=["cola"])) == 0
    assert main(command(config, tmp_path / "runs", "--learning-rates", "0.0001", "0.0005", "1e-3", tasks=["cola"])) == 0
    assert len({name for _, _, name, _ in started.commands}) == 6
    assert len(started.commands) == 2 * 6


def test_a_failed_run_is_reported_and_repeated(started, config, tmp_path, capsys):
    printed = "Traceback (most recent call last):\n  File ...\nRuntimeError: the loss is NaN\n\n"
    started.failures["fit", "batch16_lr0.0001_decay0.0001"] = 1, printed, True
    assert main(command(config, tmp_path / "runs", tasks=["cola"])) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "cola batch16_lr0.0001_decay0.0001 failed: RuntimeError: the loss is NaN (see " in line
    assert len([run for run in started.commands if run[0] == "test"]) == 3
    started.failures.clear()
    assert main(command(config, tmp_path / "runs", tasks=["cola"])) == 0
    assert len([run for run in started.commands if run[0] == "test"]) == 4


@pytest.mark.parametrize(
    ("status", "printed", "reason"),
    [
        (1, "Seed set to 0\nvlkd-pl fit: BART cannot be loaded from nope\n", "BART cannot be loaded from nope"),
        (1, "vlkd-pl fit: there are no data\nwandb: a last word\n", "there are no data"),
        (1, "Traceback (most recent call last):\nModuleNotFoundError: no timm\n", "ModuleNotFoundError: no timm"),
        (2, "vlkd-pl fit: unknown key model.rout\n", "unknown key model.rout"),
        (-signal.SIGSEGV, "", "killed by SIGSEGV"),
        (1, "", "status 1"),
    ],
)
@pytest.mark.parametrize("task", ["cola", "rte"])
def test_a_failure_that_every_run_would_share_stops_the_grid(
    started, config, tmp_path, capsys, task, status, printed, reason
):
    assert main(command(config, tmp_path / "runs", tasks=["cola"])) == 0
    if task == "cola":
        shutil.rmtree(tmp_path / "runs" / "cola")
    before = len(started.commands)
    started.failures["fit", "batch16_lr0.0001_decay0.0001"] = status, printed, False
    assert main(command(config, tmp_path / "runs")) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"vlkd-pl grid: {reason}: stopped, since every run of {task} would fail (see ")
    assert len(started.commands) == before + 1


def test_a_test_that_fails_stops_the_grid_at_its_first_run(started, config, tmp_path, capsys):
    started.failures["test", "batch16_lr0.0001_decay0.0001"] = 1, "vlkd-pl test: no dev set\n", True
    assert main(command(config, tmp_path / "runs")) == 1
    assert "vlkd-pl grid: no dev set: stopped" in capsys.readouterr().err
    assert len(started.commands) == 2


@pytest.mark.parametrize(
    ("status", "printed"),
    [
        (1, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\n"),
        (1, "MemoryError\n"),
        (-signal.SIGKILL, ""),
    ],
)
def test_too_little_memory_for_a_batch_stops_no_other_run(started, config, tmp_path, capsys, status, printed):
    started.failures["fit", "batch16_lr0.0001_decay0.0001"] = status, printed, False
    assert main(command(config, tmp_path / "runs", tasks=["cola"])) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert len([run for run in started.commands if run[0] == "test"]) == 3


def test_a_run_that_fails_where_another_finished_stops_no_other(started, config, tmp_path, capsys):
    started.failures["fit", "batch16_lr0.0001_decay0.001"] = 1, "vlkd-pl fit: ouch\n", False
    assert main(command(config, tmp_path / "runs", tasks=["cola"])) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("vlkd-pl grid: cola batch16_lr0.0001_decay0.001 failed: ouch (see ")
    assert len([run for run in started.commands if run[0] == "test"]) == 3


def test_other_settings_need_another_folder(started, config, tmp_path, capsys):
    assert main(command(config, tmp_path / "runs", "--model.model=a", tasks=["cola"])) == 0
    assert {settings["model.model"] for *_, settings in started.commands} == {"a"}
    done = len(started.commands)
    assert main(command(config, tmp_path / "runs", "--model.model=b", tasks=["cola"])) == 1
    config.write_text("seed_everything: 1\n")
    assert main(command(config, tmp_path / "runs", "--model.model=a", tasks=["cola"])) == 1
    assert capsys.readouterr().err.count("give another --output") == 2
    assert len(started.commands) == done


def test_two_grids_do_not_share_a_folder(started, config, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    with (tmp_path / "runs" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(command(config, tmp_path / "runs")) == 1
    assert "another grid" in capsys.readouterr().err
    assert started.commands == []


def test_only_the_best_runs_checkpoints_remain(started, config, tmp_path):
    assert main(command(config, tmp_path / "runs", tasks=["cola"])) == 0
    runs = [path.parents[1].name for path in (tmp_path / "runs").rglob("*.ckpt")]
    assert runs == ["batch16_lr0.0001_decay0.001"]


def test_the_best_of_each_task_is_printed(started, config, tmp_path, capsys):
    assert main(command(config, tmp_path / "runs")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert f"best of cola: {tmp_path / 'runs' / 'cola' / 'batch16_lr0.0001_decay0.001'}" in lines
    (row,) = [line for line in lines if line.startswith(f"{tmp_path / 'runs'} ")]
    assert row.split()[1:] == ["70.0", "70.0"]  # no average of two tasks


def test_table_5():
    scores = {
        "cola": {"matthews_correlation": 0.591},
        "sst2": {"accuracy": 0.955},
        "rte": {"accuracy": 0.812},
        "mrpc": {"accuracy": 0.875, "f1": 0.911},
        "qqp": {"accuracy": 0.921, "f1": 0.892},
        "mnli": {"accuracy_matched": 0.895, "accuracy_mismatched": 0.897},
        "qnli": {"accuracy": 0.943},
        "stsb": {"pearson": 0.9, "spearmanr": 0.88},
    }
    head, ours, vlkd, bart = grid.table(scores, "ours").splitlines()
    assert head.split() == ["in", "percent", "CoLA", "SST-2", "RTE", "MRPC", "QQP", "MNLI", "QNLI", "STS-B", "Avg."]
    cells = ["59.1", "95.5", "81.2", "87.5/91.1", "92.1/89.2", "89.5/89.7", "94.3", "90.0/88.0", "85.7"]
    assert ours.split() == ["ours", *cells]
    assert vlkd.split()[-2:] == ["94.3", "85.7"]
    assert bart.split()[-2:] == ["94.9", "87.2"]
    assert len({line.rindex(".") for line in (ours, vlkd, bart)}) == 1


def test_a_run_without_a_score_is_the_worst(tmp_path):
    runs = [grid.GridRun("stsb", "16", rate, "0") for rate in ("1e-4", "1e-3")]
    for run, score in zip(runs, ("NaN", "-0.2"), strict=True):
        run.folder(tmp_path).mkdir(parents=True)
        (run.folder(tmp_path) / "result.json").write_text(f'{{"scores": {{"score": {score}}}}}')
    assert grid._best(runs, tmp_path)[0] == runs[1]


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        (["--tasks", "wnli"], "invalid choice"),
        (["--batch-sizes", "16.5"], "invalid int value"),
        (["--learning-rates", "fast"], "invalid float value"),
    ],
)
def test_wrong_values(config, tmp_path, capsys, option, reason):
    with pytest.raises(SystemExit) as ended:
        main(["grid", "--config", str(config), "--output", str(tmp_path), *option])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err


def test_a_missing_configuration(tmp_path, capsys):
    assert main(command(tmp_path / "nowhere.yaml", tmp_path / "runs")) == 1
    assert "no configuration file" in capsys.readouterr().err


@pytest.mark.slow
def test_a_grid_that_is_ended_and_resumed(bart_folder, tmp_path):
    import random

    write_glue(tmp_path / "glue", 12, 6, random.Random(0))
    configs = [f"--config={CONFIGS / part / 'glue.yaml'}" for part in ("", "sample")]
    options = ["--output", tmp_path / "runs", "--tasks", "cola", "--batch-sizes", "4", "--weight-decays", "0"]
    values = ["--learning-rates", "1e-4", "5e-4", "--trainer.max_epochs=1"]
    overrides = [f"--model.model={bart_folder}", f"--data.source={tmp_path / 'glue'}"]
    line = [sys.executable, "-m", "vlkd_pl", "grid", *configs, *map(str, options), *values, *overrides]
    first = tmp_path / "runs" / "cola" / "batch4_lr0.0001_decay0" / "result.json"
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    while not first.is_file():
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 130
    written = first.stat().st_mtime_ns
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert first.stat().st_mtime_ns == written
    assert [line.split()[3].rstrip(",") for line in done.stdout.splitlines()[:2]] == ["recorded", "done"]
