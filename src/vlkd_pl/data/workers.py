"""How each worker process of a data loader is set up."""

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
    """In a worker of a ``DataLoader``: leave Ctrl-C to the main process, and never let it wait for a lost batch.

    The main process may still need batches to end its step. A worker that cannot hand over a batch ends, where Python's
    queue would print an error, lose the batch, and let the main process wait for ever.
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
    """For a worker of a ``DataLoader``: more threads would take the cores from the other workers."""
    torch.set_num_threads(1)
    end_with_main_process()
