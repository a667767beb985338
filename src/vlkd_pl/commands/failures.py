"""One-line advice for failures of another process of a run: a data worker or another rank."""

from __future__ import annotations

import errno
import re
import resource
import shutil
import signal
from collections.abc import Sequence
from multiprocessing import resource_sharer
from traceback import walk_tb

_RESUME = "the run resumes from its last checkpoint with --ckpt_path last"


def process_failure(error: BaseException) -> str | None:
    """Advice on an error that another process of the run caused, or a limit of the system.

    Args:
        error: Exception that ended this process.

    Returns:
        One line of advice; None for any other error.
    """
    return worker_failure(error) or lost_rank(error)


def worker_failure(error: BaseException) -> str | None:
    """Advice on the failure of a data worker, or on a limit of the system that workers exceed.

    Args:
        error: Exception that ended the main process.

    Returns:
        One line of advice; None for any other error.
    """
    chain: list[BaseException] = []
    reason: BaseException | None = error
    while reason is not None and not any(reason is link for link in chain):  # contexts may form a circle
        chain.append(reason)
        reason = reason.__cause__ or reason.__context__
    text = " ".join(map(str, chain))
    codes = {int(code) for code in re.findall(r"exited unexpectedly with exit code (\d+)", text)} | _exit_codes(chain)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    too_many_files = (
        f"too many files are open, and the limit is {limit}: raise it (ulimit -n 65536), or lower "
        f"--data.init_args.num_workers; {_RESUME}"
    )
    if (
        any(isinstance(link, OSError) and link.errno == errno.EMFILE for link in chain)
        or re.search("Too many open files|0 items of ancdata", text)
        or errno.EMFILE in codes
    ):
        return too_many_files
    if re.search("Bus error|shared memory|/torch_", text) or codes & {errno.ENOSPC, -signal.SIGBUS}:
        size = shutil.disk_usage("/dev/shm").total >> 20
        return (
            f"the data workers have no room in shared memory, and /dev/shm has {size} MiB: enlarge it (docker run "
            f"--shm-size 8g), or lower --data.init_args.num_workers or batch_size; {_RESUME}"
        )
    killed = re.search(r"DataLoader worker \(pid\S* (\d+)\) is killed by signal: (\w+)", text)
    if killed is not None or -signal.SIGKILL in codes:
        which = (
            f"the data worker {killed[1]} was killed ({killed[2]})" if killed else "a data worker was killed (Killed)"
        )
        return (
            f"{which}, as the system does when memory runs out: lower --data.init_args.num_workers or batch_size; "
            f"{_RESUME}"
        )
    if any(_is_of_handed_files(link) for link in chain):
        return too_many_files
    ended = re.search(r"DataLoader worker \(pid\S* ([\d, ]+)\) exited unexpectedly", text)
    return ended and f"the data worker {ended[1]} ended unexpectedly: see its message above; {_RESUME}"


def _exit_codes(chain: Sequence[BaseException]) -> set[int]:
    """The exit codes of dead data workers, of which PyTorch may notice one before the signal of the system arrives."""
    frames = (frame for error in chain for frame, _ in walk_tb(error.__traceback__))
    workers = (worker for frame in frames for worker in getattr(frame.f_locals.get("self"), "_workers", ()))
    return {code for worker in workers if (code := worker.exitcode) is not None}


def _is_of_handed_files(error: BaseException) -> bool:
    """Return whether a worker failed to hand an open file to the main process, as it does with too many open files."""
    return isinstance(error, EOFError | ConnectionError) and any(
        frame.f_code.co_filename == resource_sharer.__file__ for frame, _ in walk_tb(error.__traceback__)
    )


def lost_rank(error: BaseException) -> str | None:
    """Advice on an error that reports the end of another rank; None for any other error."""
    lost = re.search(r"gloo.*(closed|reset) by peer|NCCL.*(remote process exited|connection closed)", str(error), re.S)
    return lost and "another rank has ended: see what it printed"
