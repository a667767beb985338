"""Files that are there whole or not at all, and their checksums."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def written_whole(path: Path, part: Path | None = None) -> Iterator[IO[bytes]]:
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
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_text(path: Path, text: str, part: Path | None = None) -> None:
    """Writes a file in UTF-8, as ``written_whole`` does."""
    with written_whole(path, part) as file:
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
