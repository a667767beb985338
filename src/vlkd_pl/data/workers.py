"""The set-up of the worker processes of a data loader."""

from __future__ import annotations

import os
import re
import signal
import sys
import traceback
from multiprocessing.queues import Queue
from typing import Any

import torch


def end_with_main_process() -> None:
    """Leave Ctrl-C to the main process in a worker of a ``DataLoader``, and end the worker if a batch is lost.

    The main process may still need batches to end its step. A worker that cannot hand over a batch ends. Python's queue
    would print an error and lose the batch, and the main process would wait for it endlessly.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Queue._on_queue_feeder_error = staticmethod(_end)  # type: ignore[attr-defined]
    sys.excepthook = lambda kind, error, trace: _end(error, None)  # of the thread that hands over open files


def _end(error: BaseException, batch: Any) -> None:
    number = getattr(error, "errno", None) or next(iter(re.findall(r"\((\d+)\)$", str(error))), None)
    if number is None:
        traceback.print_exception(error)
    os._exit(int(number or 1))


def worker_init_fn(worker: int) -> None:
    """Set up a worker of a ``DataLoader``: one thread, since more would take the cores of other workers."""
    torch.set_num_threads(1)
    end_with_main_process()
