"""Local files and, through fsspec, remote files, whose reading resumes after a lost connection."""

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
"""Number of times that a failed read is repeated."""

FIRST_WAIT_SECONDS = 1.0
"""Seconds of waiting before the first repeated read; each further wait is twice as long."""

_SKIPPED_AT_ONCE = 1 << 20
_BUFFER_SIZE = 4096  # bytes: enough for a header, without the contents that are skipped


def expand_wildcards(path: str, folder: str = "") -> list[str]:
    """List the files that match a path with wildcards, sorted; the path itself if it has no wildcards.

    Args:
        path: A path below ``folder``, or an address, in which only ``*`` is a wildcard.
        folder: A local folder, ending in a slash; its name is taken literally.

    Raises:
        MisconfigurationException: The server of an address does not answer, or cannot list files.
    """
    if not is_address(path):
        if Path(folder + path).is_file() or not glob.has_magic(path):
            return [folder + path]
        return sorted(glob.glob(glob.escape(folder) + path))
    if "*" not in path:  # a question mark begins the query of an https:// address
        return [path]
    with _answering(path):
        files, pattern = url_to_fs(path)
        return sorted(files.unstrip_protocol(match) for match in files.glob(pattern))


def missing_files(paths: list[str]) -> list[str]:
    """Select the files that do not exist.

    Args:
        paths: Paths or addresses of files.

    Raises:
        MisconfigurationException: The server of an address does not answer.
    """

    def exists(path: str) -> bool:
        if not is_address(path):
            return Path(path).is_file()
        with _answering(path):
            files, inner = url_to_fs(path)
            return bool(files.exists(inner))

    with ThreadPoolExecutor(16) as threads:
        return [path for path, is_present in zip(paths, threads.map(exists, paths), strict=True) if not is_present]


@contextmanager
def _answering(path: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of fsspec, or of any of the packages that it reads with
        raise MisconfigurationException(
            f"data: {path} cannot be reached ({error}): check the address, the network, the credentials and, where "
            "the S3 is not Amazon's, AWS_ENDPOINT_URL"
        ) from error


def open_file(path: str, on_retry: Callable[[], None] | None = None) -> IO[bytes] | RemoteFile:
    """Open a local or remote file for reading.

    Args:
        path: Path or address of the file.
        on_retry: Function called before each repeated read of a remote file.
    """
    return RemoteFile(path, on_retry) if is_address(path) else Path(path).open("rb", _BUFFER_SIZE)


class RemoteFile:
    """Remote file that is opened again at the same position when a read fails.

    Args:
        path: Address of the file; see ``check_address``.
        on_retry: Function called before each repeated read.
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
        """Close the connection."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def seek(self, position: int) -> int:
        """Move to a position in bytes from the start, where the next read begins."""
        self._position = position
        return position

    def read(self, size: int) -> bytes:
        """Read the next ``size`` bytes, or fewer at the end of the file.

        Raises:
            OSError: The read failed, and so did all its repetitions.
        """
        num_tries = 0
        while True:
            try:
                return self._read(size)
            except FileNotFoundError:
                raise
            except Exception as error:  # of fsspec, or of any of the packages that it reads with
                self._file = None  # closing a lost connection may fail too
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
