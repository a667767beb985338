"""``vlkd-pl grid``: the paper's search over GLUE's hyper-parameters (Appendix A), and Table 5 of what it found."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from vlkd_pl.files import file_sha256, write_text

_TASKS = {
    "cola": ("CoLA", ("matthews_correlation",)),
    "sst2": ("SST-2", ("accuracy",)),
    "rte": ("RTE", ("accuracy",)),
    "mrpc": ("MRPC", ("accuracy", "f1")),
    "qqp": ("QQP", ("accuracy", "f1")),
    "mnli": ("MNLI", ("accuracy_matched", "accuracy_mismatched")),
    "qnli": ("QNLI", ("accuracy",)),
    "stsb": ("STS-B", ("pearson", "spearmanr")),
}
"""The columns of Table 5 in its order, with the scores in each; STS-B is not in it, and not in its average."""

_PAPER = {
    "VLKD in Table 5": ("59.1", "95.5", "81.2", "87.5/91.1", "92.1/89.2", "89.6", "94.3", "", "85.7"),
    "BART in Table 5": ("62.8", "96.6", "87.0", "86.7/90.4", "92.5/89.3", "90.0", "94.9", "", "87.2"),
}


class GridRun(NamedTuple):
    """One run of the grid.

    Attributes:
        task: A key of ``_TASKS``.
        batch_size: Samples in a batch.
        learning_rate: Peak learning rate, as it was given.
        weight_decay: Weight decay, as it was given.
    """

    task: str
    batch_size: str
    learning_rate: str
    weight_decay: str

    @property
    def name(self) -> str:
        """The name of its folder, the same for ``1e-4`` and ``0.0001``."""
        return f"batch{int(self.batch_size)}_lr{float(self.learning_rate):g}_decay{float(self.weight_decay):g}"

    def folder(self, output: Path) -> Path:
        """Where its files go."""
        return output / self.task / self.name

    def scores(self, output: Path) -> dict[str, float] | None:
        """What was recorded when it had finished; None if it has not."""
        record = self.folder(output) / "result.json"
        return json.loads(record.read_text())["scores"] if record.is_file() else None


def main(arguments: Sequence[str]) -> int:
    """Does the runs of the grid that are not done yet, and prints the best of each task."""
    parser = argparse.ArgumentParser(
        prog="vlkd-pl grid",
        description="Fine-tunes on GLUE with every combination of batch size, learning rate and weight decay, tests "
        "each run's best checkpoint on the dev set, and prints the best of each task beside Table 5 of the paper. A "
        "finished run is recorded and never done twice; one that was interrupted is done anew. A failure that other "
        "runs of a task would share stops the grid. Further options go to vlkd-pl fit and test: "
        "--model.init_args.model facebook/bart-large.",
        allow_abbrev=False,
    )
    parser.add_argument("--config", action="append", required=True, metavar="FILE", help="as for vlkd-pl fit")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the runs")
    parser.add_argument(
        "--tasks", nargs="+", choices=_TASKS, default=list(_TASKS), metavar="TASK", help=f"of {', '.join(_TASKS)}"
    )
    for name, kind, values in (
        ("--batch-sizes", int, ["16", "32", "64"]),
        ("--learning-rates", float, ["1e-4", "5e-4", "1e-3"]),
        ("--weight-decays", float, ["1e-4", "1e-3"]),
    ):
        parser.add_argument(
            name, nargs="+", type=_number(kind), default=values, metavar="N", help=f"default: {' '.join(values)}"
        )
    options, overrides = parser.parse_known_args(arguments[1:])
    settings = list(itertools.product(options.batch_sizes, options.learning_rates, options.weight_decays))
    drawn = [GridRun(task, *values) for task in options.tasks for values in settings]
    runs = list({run.folder(options.output): run for run in drawn}.values())  # each once, however it is written

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a run ends with the grid
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        with (options.output / "lock").open("w") as lock:
            _take(lock, options.output)
            _check_settings(options.output / "settings.json", options.config, overrides)
            failures = {}
            for number, run in enumerate(runs, 1):
                failure = _finish(run, options, overrides, lock, number, len(runs))
                if failure is not None:
                    failures[run] = failure
    except GridError as error:
        print(f"vlkd-pl grid: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vlkd-pl grid: interrupted; the same command goes on", file=sys.stderr)
        return 130
    best = [_best([run for run in runs if run.task == task], options.output) for task in options.tasks]
    found = {run.task: (run, scores) for run, scores in filter(None, best)}
    print(table({task: scores for task, (_, scores) in found.items()}, str(options.output)))
    for task, (run, _) in found.items():
        print(f"best of {task}: {run.folder(options.output)}")
    for run, failure in failures.items():
        log = run.folder(options.output) / "log.txt"
        print(f"vlkd-pl grid: {run.task} {run.name} failed: {failure} (see {log})", file=sys.stderr)
    return int(bool(failures))


class GridError(Exception):
    """What stops the grid, told in one line."""


class RunError(Exception):
    """Why a run failed, in one line.

    Attributes:
        is_shared: Whether the other runs of its task would fail as well.
    """

    def __init__(self, reason: str, is_shared: bool) -> None:
        super().__init__(reason)
        self.is_shared = is_shared


def table(scores: Mapping[str, Mapping[str, float]], name: str) -> str:
    """The scores in Table 5's form, in percent, above the paper's.

    Table 5 averages seven tasks, each counted by the mean of its two figures where it has two (as VLKD's row shows:
    85.66). MNLI's one figure there is taken for the mean of its two dev sets, since BART's 90.0 is the mean of the 89.9
    and 90.1 that Lewis et al. (2020) report.

    Args:
        scores: For each task its scores by name; a task may be missing, and the average then is.
        name: Head of the row.
    """
    cells, means = [], []
    for task, (_, names) in _TASKS.items():
        figures = [100 * scores[task][each] for each in names] if task in scores else []
        cells.append("/".join(f"{figure:.1f}" for figure in figures))
        if task != "stsb" and figures:
            means.append(sum(figures) / len(figures))
    average = f"{sum(means) / len(means):.1f}" if len(means) == len(_TASKS) - 1 else ""
    rows = {"in percent": [label for label, _ in _TASKS.values()] + ["Avg."], name: [*cells, average], **_PAPER}
    first = max(map(len, rows))
    return "\n".join(f"{head:<{first}}" + "".join(f"{cell:>11}" for cell in row) for head, row in rows.items())


def _finish(
    run: GridRun, options: argparse.Namespace, overrides: Sequence[str], lock: IO[str], number: int, total: int
) -> str | None:
    """Does a run unless it is recorded.

    Returns:
        None if it is recorded now; else why it failed.

    Raises:
        GridError: It failed as the other runs of its task would.
    """
    scores = run.scores(options.output)
    status = "found"
    if scores is None:
        try:
            _do(run, options, overrides, lock)
        except RunError as error:
            print(f"{number}/{total} {run.task} {run.name}: failed: {error}", flush=True)
            has_finished = any((options.output / run.task).glob("*/result.json"))
            if error.is_shared and not has_finished:
                log = run.folder(options.output) / "log.txt"
                raise GridError(f"{error}: stopped, since every run of {run.task} would fail (see {log})") from error
            return str(error)
        scores, status = run.scores(options.output), "done"
    assert scores is not None
    print(f"{number}/{total} {run.task} {run.name}: {status}, {100 * scores['score']:.1f}", flush=True)
    return None


def _do(run: GridRun, options: argparse.Namespace, overrides: Sequence[str], lock: IO[str]) -> None:
    """Fits and tests in processes of their own, so that none leaves anything to the next; records what came out.

    Raises:
        RunError: One of them failed.
    """
    folder = run.folder(options.output)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shared = [
        *(f"--config={path}" for path in options.config),
        *overrides,
        f"--model.init_args.task={run.task}",
        f"--model.init_args.learning_rate={run.learning_rate}",
        f"--model.init_args.weight_decay={run.weight_decay}",
        f"--data.init_args.batch_size={run.batch_size}",
        f"--trainer.logger.init_args.save_dir={options.output / run.task}",
        f"--trainer.logger.init_args.name={run.name}",
        "--trainer.logger.init_args.version=",
        "--trainer.enable_progress_bar=false",
    ]
    log = folder / "log.txt"
    with log.open("w") as lines:
        for command in (["fit"], ["test", f"--ckpt_path={folder / 'checkpoints' / 'best.ckpt'}"]):
            process = subprocess.run(
                [sys.executable, "-m", "vlkd_pl", command[0], *shared, *command[1:]],
                stdout=lines,
                stderr=subprocess.STDOUT,
                pass_fds=(lock.fileno(),),  # a run that outlives the grid keeps the folder locked
            )
            if process.returncode != 0:
                reason = _reason(log, process.returncode)
                of_run = _is_memory(reason, process.returncode) or (command == ["fit"] and _has_trained(folder))
                raise RunError(reason, is_shared=not of_run)
    scores = json.loads((folder / "scores.json").read_text())["scores"]
    write_text(folder / "result.json", json.dumps({**run._asdict(), "scores": scores}, indent=1))
    _drop_checkpoints(run, options)


def _reason(log: Path, status: int) -> str:
    """Why a process failed: the line in which it says so, or the last one that it printed."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    explained = [line.partition(": ")[2] for line in lines if line.startswith(("vlkd-pl fit: ", "vlkd-pl test: "))]
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return next(reversed(explained or lines), f"status {status}")


def _is_memory(reason: str, status: int) -> bool:
    """Whether a process had too little memory, as with a batch that is too large."""
    return status == -signal.SIGKILL or bool(re.search("out of memory|MemoryError|allocate memory", reason, re.I))


def _has_trained(folder: Path) -> bool:
    """Whether a run came as far as to training: it logged something, or wrote a checkpoint."""
    metrics = folder / "metrics.csv"
    has_logged = metrics.is_file() and len(metrics.read_text().splitlines()) > 1
    return has_logged or any((folder / "checkpoints").glob("*.ckpt"))


def _drop_checkpoints(run: GridRun, options: argparse.Namespace) -> None:
    """Keeps those of the task's best run alone: eighteen of bart-large would fill a disk."""
    folders = [path.parent for path in (options.output / run.task).glob("*/result.json")]
    best = max(folders, key=lambda folder: _rank(json.loads((folder / "result.json").read_text())["scores"]))
    for folder in folders:
        if folder != best:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _best(runs: Sequence[GridRun], output: Path) -> tuple[GridRun, dict[str, float]] | None:
    """The best of the finished runs with its scores; of equal ones the first."""
    finished = [(run, scores) for run in runs if (scores := run.scores(output)) is not None]
    return max(finished, key=lambda each: _rank(each[1]), default=None)


def _rank(scores: Mapping[str, float]) -> float:
    """What the best has most of; a correlation that is not defined is the worst."""
    return -math.inf if math.isnan(scores["score"]) else scores["score"]


def _take(lock: IO[str], output: Path) -> None:
    """Locks the folder for this process and its runs.

    Raises:
        GridError: It is locked.
    """
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise GridError(f"another grid, or a run that it left, is at work in {output}: wait for its end") from error


def _check_settings(path: Path, configs: Sequence[str], overrides: Sequence[str]) -> None:
    """Notes what all runs of a folder share, or compares.

    Raises:
        GridError: A configuration is missing, or the folder's runs were done with others.
    """
    missing = [config for config in configs if not Path(config).is_file()]
    if missing:
        raise GridError(f"there is no configuration file {missing[0]}")
    settings = {
        "configs": [file_sha256(Path(config)) for config in configs],
        "overrides": list(overrides),
    }
    if not path.is_file():
        write_text(path, json.dumps(settings, indent=1))
    elif json.loads(path.read_text()) != settings:
        raise GridError(f"the runs in {path.parent} have other configurations or options: give another --output")


def _number(kind: type[int] | type[float]) -> Any:
    """An argument that is a number of a kind, as it was written."""

    def checked(text: str) -> str:
        if not kind(text) >= 0:
            raise ValueError(text)
        return text

    checked.__name__ = kind.__name__
    return checked
