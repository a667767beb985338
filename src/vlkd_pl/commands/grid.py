"""``vlkd-pl grid``: the paper's search over GLUE's hyperparameters (Appendix A), and Table 5 of its results."""

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

from vlkd_pl.commands.config_files import find_config
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
"""The columns of Table 5 in its order, each with its scores; STS-B is not in the paper's table and average."""

_PAPER = {
    "VLKD in Table 5": ("59.1", "95.5", "81.2", "87.5/91.1", "92.1/89.2", "89.6", "94.3", "", "85.7"),
    "BART in Table 5": ("62.8", "96.6", "87.0", "86.7/90.4", "92.5/89.3", "90.0", "94.9", "", "87.2"),
}


class GridRun(NamedTuple):
    """One run of the grid.

    Attributes:
        task: A key of ``_TASKS``.
        batch_size: Samples in a batch.
        learning_rate: Peak learning rate, as on the command line.
        weight_decay: Weight decay, as on the command line.
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
        """The directory of the run."""
        return output / self.task / self.name

    def scores(self, output: Path) -> dict[str, float] | None:
        """The recorded scores; None for a run that has not finished."""
        record = self.folder(output) / "result.json"
        return json.loads(record.read_text())["scores"] if record.is_file() else None


def main(arguments: Sequence[str]) -> int:
    """Do the runs of the grid that have not finished, and print the best of each task.

    Args:
        arguments: The command and its options.

    Returns:
        Exit status: 0; 1 when a run failed; 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        prog="vlkd-pl grid",
        description="Fine-tunes on GLUE with every combination of batch size, learning rate and weight decay, tests "
        "each run's best checkpoint on the dev set, and prints the best of each task next to Table 5 of the paper. A "
        "finished run is recorded and not repeated; an interrupted one starts again. A failure that all runs of a task "
        "would share stops the grid. Further options are passed to vlkd-pl fit and test: "
        "--model.model facebook/bart-large.",
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
    points = [GridRun(task, *values) for task in options.tasks for values in settings]
    runs = list({run.folder(options.output): run for run in points}.values())  # 1e-4 is 0.0001

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
        print("vlkd-pl grid: interrupted; the same command resumes", file=sys.stderr)
        return 130
    best = [_best([run for run in runs if run.task == task], options.output) for task in options.tasks]
    results = {run.task: (run, scores) for run, scores in filter(None, best)}
    print(table({task: scores for task, (_, scores) in results.items()}, str(options.output)))
    for task, (run, _) in results.items():
        print(f"best of {task}: {run.folder(options.output)}")
    for run, failure in failures.items():
        log = run.folder(options.output) / "log.txt"
        print(f"vlkd-pl grid: {run.task} {run.name} failed: {failure} (see {log})", file=sys.stderr)
    return int(bool(failures))


class GridError(Exception):
    """An error that stops the grid, in one line."""


class RunError(Exception):
    """The reason why a run failed, in one line.

    Attributes:
        is_shared: Whether the other runs of its task would fail as well.
    """

    def __init__(self, reason: str, is_shared: bool) -> None:
        super().__init__(reason)
        self.is_shared = is_shared


def table(scores: Mapping[str, Mapping[str, float]], name: str) -> str:
    """Format scores as Table 5, in percent, above the paper's rows.

    Table 5 averages seven tasks; a task with two figures counts by their mean (as VLKD's row shows: 85.66). MNLI's
    single figure is taken as the mean of its two dev sets, since BART's 90.0 is the mean of the 89.9 and 90.1 of Lewis
    et al. (2020).

    Args:
        scores: For each task its scores by name, as fractions. Without a task of the seven there is no average.
        name: Label of the row.

    >>> print(table({"rte": {"accuracy": 0.812}}, "mine").splitlines()[1].split())
    ['mine', '81.2']
    """
    cells, means = [], []
    for task, (_, names) in _TASKS.items():
        figures = [100 * scores[task][score] for score in names] if task in scores else []
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
    """Do a run unless it is recorded.

    Returns:
        None if the run is recorded now; otherwise the reason why it failed.

    Raises:
        GridError: The run failed, and the other runs of its task would fail as well.
    """
    scores = run.scores(options.output)
    status = "recorded"
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
    """Fit and test in new processes, which share no state with other runs, and record the scores.

    Raises:
        RunError: A process failed.
    """
    folder = run.folder(options.output)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shared = [
        *(f"--config={path}" for path in options.config),
        *overrides,
        f"--model.task={run.task}",
        f"--model.optimization.learning_rate={run.learning_rate}",
        f"--model.optimization.weight_decay={run.weight_decay}",
        f"--data.batch_size={run.batch_size}",
        f"--run_dir={folder}",
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
    """The reason why a process failed: the line that explains it, or the last one that it printed."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    explained = [line.partition(": ")[2] for line in lines if line.startswith(("vlkd-pl fit: ", "vlkd-pl test: "))]
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return next(reversed(explained or lines), f"status {status}")


def _is_memory(reason: str, status: int) -> bool:
    """Whether a process ran out of memory, as with a batch that is too large."""
    return status == -signal.SIGKILL or bool(re.search("out of memory|MemoryError|allocate memory", reason, re.I))


def _has_trained(folder: Path) -> bool:
    """Whether a run has trained: it has logged metrics, or written a checkpoint."""
    metrics = folder / "metrics.csv"
    has_logged = metrics.is_file() and len(metrics.read_text().splitlines()) > 1
    return has_logged or any((folder / "checkpoints").glob("*.ckpt"))


def _drop_checkpoints(run: GridRun, options: argparse.Namespace) -> None:
    """Remove the checkpoints of all runs of a task but its best: eighteen of bart-large would fill a disk."""
    folders = [path.parent for path in (options.output / run.task).glob("*/result.json")]
    best = max(folders, key=lambda folder: _rank(json.loads((folder / "result.json").read_text())["scores"]))
    for folder in folders:
        if folder != best:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _best(runs: Sequence[GridRun], output: Path) -> tuple[GridRun, dict[str, float]] | None:
    """The best of the finished runs, with its scores; the first of equal ones."""
    finished = [(run, scores) for run in runs if (scores := run.scores(output)) is not None]
    return max(finished, key=lambda result: _rank(result[1]), default=None)


def _rank(scores: Mapping[str, float]) -> float:
    """The score that ranks runs; an undefined correlation ranks last."""
    return -math.inf if math.isnan(scores["score"]) else scores["score"]


def _take(lock: IO[str], output: Path) -> None:
    """Lock the folder for this process and its runs.

    Raises:
        GridError: The folder is locked.
    """
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise GridError(f"another grid, or a run that it left, is running in {output}: wait until it ends") from error


def _check_settings(path: Path, configs: Sequence[str], overrides: Sequence[str]) -> None:
    """Record the settings that all runs of a folder share, or compare them with the record.

    Raises:
        GridError: A configuration is missing, or the folder's runs have other settings.
    """
    try:
        checksums = [file_sha256(find_config(config)) for config in configs]
    except FileNotFoundError as error:
        raise GridError(str(error)) from error
    settings = {"configs": checksums, "overrides": list(overrides)}
    if not path.is_file():
        write_text(path, json.dumps(settings, indent=1))
    elif json.loads(path.read_text()) != settings:
        raise GridError(f"the runs in {path.parent} have other configurations or options: give another --output")


def _number(kind: type[int] | type[float]) -> Any:
    """An argument type that checks a number, and keeps its spelling."""

    def checked(text: str) -> str:
        if not kind(text) >= 0:
            raise ValueError(text)
        return text

    checked.__name__ = kind.__name__
    return checked
