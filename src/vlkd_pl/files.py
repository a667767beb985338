"""Files and directories that are written atomically, and checksums of files."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_INCOMING, _INCOMPLETE = ".incoming", ".incoming.part"


@contextmanager
def atomic_write(path: Path, part: Path | None = None) -> Iterator[IO[bytes]]:
    """Opens a file that gets its name when all that was written to it is on the disk.

    Where that fails, what was at ``path`` stays, and the part is removed; a process that is killed leaves it.

    Args:
        path: The file.
        part: Where it is written, on the same disk; ``{path}.part`` by default. Processes that may write the same file
            at a time need one each.

    Yields:
        The open file.

    Raises:
        OSError: It cannot be written.
    """
    file = (path.with_name(f"{path.name}.part") if part is None else part).open("wb")
    try:
        with file:
            yield file
            finish(file, path)
    except BaseException:
        Path(file.name).unlink(missing_ok=True)
        raise


def finish(file: IO[bytes], path: Path) -> None:
    """Gives an open file its name, when all that was written to it is on the disk, and closes it.

    Args:
        file: Open for writing on the same disk, under another name.
        path: Its name.

    Raises:
        OSError: It cannot be written.
    """
    file.flush()
    os.fsync(file.fileno())
    file.close()
    os.replace(file.name, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until a file, or the list of a directory's files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def updated_together(folder: Path, first: str) -> Iterator[Path]:
    """Replace several files and subdirectories of a directory as one.

    They are written to a hidden subdirectory, which gets another name when all of it is on the disk: from then on the
    update counts as done, and ``complete_update`` moves what a killed process has not moved yet. What is not replaced
    stays as it is. Where writing fails, everything does.

    Args:
        folder: The directory; made if it is missing.
        first: The file that readers open first. It is taken away before the others are replaced and put back when all
            are, so that a reader that does not know of updates never sees files of both kinds.

    Yields:
        The directory to write the new files and subdirectories to.

    Raises:
        OSError: They cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    complete_update(folder, first)
    incomplete = folder / _INCOMPLETE
    shutil.rmtree(incomplete, ignore_errors=True)
    incomplete.mkdir()
    try:
        yield incomplete
        for path in [*incomplete.rglob("*"), incomplete]:
            _sync(path)
        incomplete.rename(folder / _INCOMING)
    except BaseException:
        shutil.rmtree(incomplete, ignore_errors=True)
        raise
    complete_update(folder, first)


def complete_update(folder: Path, first: str) -> None:
    """Finish an update of a directory whose process was killed after everything had been written.

    Args:
        folder: The directory.
        first: See ``updated_together``.

    Raises:
        OSError: The directory cannot be written.
    """
    incoming = folder / _INCOMING
    if not incoming.is_dir():
        return
    if (incoming / first).exists():  # it comes last
        _sync(folder)
        (folder / first).unlink(missing_ok=True)
        _sync(folder)
    for path in sorted(incoming.iterdir(), key=lambda path: path.name == first):
        target = folder / path.name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        path.replace(target)
    _sync(folder)
    incoming.rmdir()


def write_text(path: Path, text: str, part: Path | None = None) -> None:
    """Writes a file in UTF-8, as ``atomic_write`` does."""
    with atomic_write(path, part) as file:
        file.write(text.encode())


def file_sha256(path: Path, offset: int = 0) -> str:
    """The sha256 of a file from a byte on, in hexadecimal.

    Args:
        path: The file.
        offset: The byte.

    Raises:
        OSError: It cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(offset)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
