"""Reads tar files member by member, in bounded memory, and says where one is broken."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

_MAX_MEMBER_BYTES = 1 << 28
_MAX_LONG_NAME_BYTES = 1 << 14
_LONG_NAME_TYPES = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
)


def tar_headers(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The headers of the files in a tar, one at a time, without links, devices and webdataset's metadata."""
    for member in archive:
        archive.members.clear()  # type: ignore[attr-defined]  # or it would keep every header
        if not 0 <= member.size <= _MAX_MEMBER_BYTES:  # of a sparse file: what it would be in memory
            raise tarfile.ReadError(f"a member of {member.size} bytes is no part of a sample")
        if member.isreg() and not re.match(r"__[^/]*__($|/)", member.name):
            yield member


def tar_members(file: Any, select: Callable[[str], bool] | None) -> Iterator[tuple[str, bytes]]:
    """Name and content of the files in a tar, one at a time.

    Nothing is written anywhere, links and devices are passed over, and a name is never taken for a path.

    Args:
        file: The tar, open for reading.
        select: Which names to read; all by default.

    Raises:
        tarfile.TarError: The file is broken at this place, or ends without the mark of its end.
        ValueError: The same, where a header holds nonsense.
    """
    with opened_tar(file, "r|") as archive:
        for member in tar_headers(archive):
            if select is None or select(member.name):
                content = archive.extractfile(member)
                assert content is not None  # it is a file
                yield member.name, content.read()
        while rest := archive.fileobj.read(1 << 20):
            if any(rest):
                raise tarfile.ReadError("something stands behind the mark of the end")


@contextmanager
def opened_tar(file: Any, mode: Literal["r:", "r|"]) -> Iterator[tarfile.TarFile]:
    """A tar that is read; what is wrong with it is a ``TarError`` or a ``ValueError``."""
    try:
        with tarfile.open(fileobj=file, mode=mode, tarinfo=_Header, encoding="utf-8", errors="replace") as archive:
            yield archive
    except RecursionError as error:  # header after header that tells the name of the next
        raise tarfile.ReadError("too many long names") from error


class _Header(tarfile.TarInfo):
    """A member of a tar, whose header must be whole: ``tarfile`` itself takes a broken one for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the mark of the end
            what = "a broken header" if len(buf) == tarfile.BLOCKSIZE else "there is no mark of the end"
            raise tarfile.ReadError(f"{what}: {error}") from error
        if header.size < 0 or (header.type in _LONG_NAME_TYPES and header.size > _MAX_LONG_NAME_BYTES):
            raise tarfile.ReadError(f"a header or name of {header.size} bytes")
        return header
