"""Files on local disks and, through fsspec, elsewhere; reading goes on where a connection broke."""

from __future__ import annotations

import glob
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fsspec.core import url_to_fs
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.shards.addresses import check_address, is_address

NUM_RETRIES = 5
"""How often a read is tried again before the file counts as broken."""

FIRST_WAIT_SECONDS = 1.0
"""The wait before the first of them; each further one waits twice as long as the one before."""

_SKIPPED_AT_ONCE = 1 << 20
_BUFFER_SIZE = 4096  # bytes read at a header: contents that are skipped shall not be read with it


def expand_wildcards(path: str, folder: str = "") -> list[str]:
    """The files that fit a path with wildcards, in order; the path itself where it has none.

    Args:
        path: A path in the folder, or an address, in which ``*`` alone is a wildcard.
        folder: A local folder, whose name is taken literally; it ends in a slash.

    Raises:
        MisconfigurationException: The store at an address does not answer, or lists no files.
    """
    if not is_address(path):
        if Path(folder + path).is_file() or not glob.has_magic(path):
            return [folder + path]
        return sorted(glob.glob(glob.escape(folder) + path))
    if "*" not in path:  # a question mark begins the query of an https:// address
        return [path]
    with _answering(path):
        files, pattern = url_to_fs(path)
        return sorted(files.unstrip_protocol(found) for found in files.glob(pattern))


def missing_files(paths: list[str]) -> list[str]:
    """Those of the files that do not exist.

    Raises:
        MisconfigurationException: The store at an address does not answer.
    """

    def exists(path: str) -> bool:
        if not is_address(path):
            return Path(path).is_file()
        with _answering(path):
            files, inner = url_to_fs(path)
            return bool(files.exists(inner))

    with ThreadPoolExecutor(16) as threads:
        return [path for path, found in zip(paths, threads.map(exists, paths), strict=True) if not found]


@contextmanager
def _answering(path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of fsspec, or of any of the packages that it reads with
        raise MisconfigurationException(
            f"data: {path} cannot be looked for ({error}): check the address, the network, the credentials and, where "
            "the S3 is not Amazon's, AWS_ENDPOINT_URL"
        ) from error


def open_file(path: str, on_retry: Callable[[], None] | None = None) -> IO[bytes] | RemoteFile:
    """Opens a local file, or one at an address, for reading.

    Args:
        path: The path or address.
        on_retry: Called before each retry.
    """
    return RemoteFile(path, on_retry) if is_address(path) else Path(path).open("rb", _BUFFER_SIZE)


class RemoteFile:
    """A file at an address, opened anew where it was when reading fails.

    Args:
        path: An address; see ``check_address``.
        on_retry: Called before each retry.
    """

    def __init__(self, path: str, on_retry: Callable[[], None] | None = None) -> None:
        check_address(path)
        self.path = path
        self.on_retry = on_retry
        self._position = 0
        self._file: Any = None
        self._file_position = 0

    def __enter__(self) -> RemoteFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def seek(self, position: int) -> int:
        """Moves to a position, in bytes from the start; the next read goes there."""
        self._position = position
        return position

    def read(self, size: int) -> bytes:
        """The next bytes, fewer than ``size`` at the end.

        Raises:
            OSError: It failed again after all retries.
        """
        num_tries = 0
        while True:
            try:
                return self._read(size)
            except FileNotFoundError:
                raise
            except Exception as error:  # of fsspec, or of any of the packages that it reads with
                self._file = None  # a broken connection may not even be closed
                if num_tries == NUM_RETRIES:
                    raise OSError(f"{self.path} cannot be read at byte {self._position}: {error!r}") from error
            if self.on_retry is not None:
                self.on_retry()
            time.sleep(FIRST_WAIT_SECONDS * 2**num_tries)
            num_tries += 1

    def _read(self, size: int) -> bytes:
        if self._file is None:
            self._open()
        if self._file_position != self._position:
            self._move()
        content: bytes = self._file.read(size)
        total = getattr(self._file, "size", None)
        if size and not content and total is not None and self._position < total:
            raise OSError(f"the connection ended at byte {self._position} of {total}")
        self._position += len(content)
        self._file_position = self._position
        return content

    def _open(self) -> None:
        files, inner = url_to_fs(self.path)
        self._file = files.open(inner, "rb")
        self._file_position = 0

    def _move(self) -> None:
        try:
            self._file.seek(self._position)
            self._file_position = self._position
            return
        except ValueError:  # a server that cannot begin in the middle
            if self._file_position > self._position:
                self._open()
        while left := self._position - self._file_position:
            skipped = len(self._file.read(min(_SKIPPED_AT_ONCE, left)))
            if not skipped:
                break
            self._file_position += skipped
