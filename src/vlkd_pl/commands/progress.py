"""Progress bar of commands that work on shards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlkd_pl.prepare.reshard import Progress as ShardProgress


@contextmanager
def shard_progress() -> Iterator[ShardProgress]:
    """Show a progress bar on stderr if it is a terminal; yields the function that updates it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        tasks: dict[str, Any] = {}

        def update(task: str, num_done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = bar.add_task(f"{task} shards", total=total)
            bar.update(tasks[task], completed=num_done)

        yield update
