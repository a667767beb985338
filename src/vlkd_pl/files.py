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
    """Write a file atomically: readers see the old content or the new, never a part.

    The file is written under another name, flushed to disk and renamed. If that fails, an earlier file at ``path``
    stays and the part is removed; a killed process leaves its part behind.

    Args:
        path: The file to write.
        part: Temporary name, on the same disk; ``{path}.part`` by default. Processes that may write the same file at
            the same time need different ones.

    Yields:
        The temporary file, open for writing bytes.

    Raises:
        OSError: The file cannot be written.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "scores.json")
        ...     with atomic_write(path) as file:
        ...         _ = file.write(b"{}")
        ...     path.read_text()
        '{}'
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
    """Give an open file its name, once all that was written to it is on the disk, and close it.

    Args:
        file: File open for writing on the same disk, under a temporary name.
        path: Name that the file gets.

    Raises:
        OSError: The file cannot be written or renamed.
    """
    file.flush()
    os.fsync(file.fileno())
    file.close()
    os.replace(file.name, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    """Wait until a file, or a directory's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_update(folder: Path, first: str) -> Iterator[Path]:
    """Replace several files and subdirectories of a directory atomically.

    The new ones are written to a hidden subdirectory, which is renamed once all of it is on the disk. From then on the
    update counts as done: ``complete_update`` moves what a killed process has not moved yet. Files that are not
    replaced stay. If writing fails, nothing changes.

    Args:
        folder: The directory; created if it is missing.
        first: Name of the file that readers open first. It is removed before the others are replaced and put back
            last, so that no reader sees old and new files together.

    Yields:
        The directory to write the new files and subdirectories to.

    Raises:
        OSError: The directory cannot be written.
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
    """Finish an ``atomic_update`` whose process was killed after all had been written.

    Args:
        folder: The directory.
        first: Name of the file that readers open first, as for ``atomic_update``.

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
    """Write a text file in UTF-8 atomically; see ``atomic_write``."""
    with atomic_write(path, part) as file:
        file.write(text.encode())


def file_sha256(path: Path, offset: int = 0) -> str:
    """The sha256 of a file in hexadecimal.

    Args:
        path: The file.
        offset: Number of bytes at the start that are skipped.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(offset)
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
