"""Reads tar files member by member, in bounded memory: the one place where a corrupt or hostile archive is refused.

Every fault of an archive is a ``tarfile.ReadError``. ``tarfile`` parses each header. What lies between them is read
here: ``tarfile`` follows chains of headers recursively, accepts any size, expands sparse members, and raises errors of
many other classes.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import Protocol

MAX_MEMBER_BYTES = 1 << 28
"""Bytes of a member at most: a larger one is no part of a sample."""

_MAX_EXTENSION_BYTES = 1 << 14
_READ_AT_ONCE = 1 << 20
_LONG_NAME_TYPES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PAX_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_PAX_RECORD = re.compile(rb"(\d{1,6}) ([^=\n]+)=")  # more digits would be more bytes than an extension may have


class SeekableFile(Protocol):
    """A file that is open for reading."""

    def read(self, size: int, /) -> bytes:
        """Reads up to ``size`` bytes, none at the end."""

    def seek(self, position: int, /) -> int:
        """Moves to a position in bytes from the start."""


class TarMember:
    """A regular file of a tar, whose content is read or skipped before the next member.

    Args:
        archive: The tar, positioned at the content.
        name: Name of the member.
        size: Bytes of its content.
    """

    def __init__(self, archive: _Archive, name: str, size: int) -> None:
        self.name = name
        self._archive = archive
        self._num_left = size

    def read(self) -> bytes:
        """The content.

        Raises:
            tarfile.ReadError: The tar ends within it.
        """
        size, self._num_left = self._num_left, 0
        return self._archive.read(size)

    def skip(self) -> None:
        """Seeks over what has not been read of the content.

        Raises:
            tarfile.ReadError: The tar ends within it.
        """
        size, self._num_left = self._num_left, 0
        self._archive.skip(size)


def tar_members(file: SeekableFile) -> Iterator[TarMember]:
    """The regular files of a tar, one at a time; links, devices and folders are skipped.

    Nothing is written anywhere, and a name is never taken for a path. Contents that are not read are seeked over.

    Args:
        file: A tar that is not compressed, open for reading at its start.

    Yields:
        Each member, to be read or skipped before the next.

    Raises:
        tarfile.ReadError: The tar is corrupt at this place, ends without the mark of its end, holds a sparse member or
            one of more than ``MAX_MEMBER_BYTES``.
        OSError: It cannot be read.
    """
    archive = _Archive(file)
    name: str | None = None  # by headers that extend the next one
    size: int | None = None
    while (header := archive.header()) is not None:
        if header.type in (*_LONG_NAME_TYPES, *_PAX_TYPES):
            if not 0 <= header.size <= _MAX_EXTENSION_BYTES:
                raise tarfile.ReadError(f"a header or name of {header.size} bytes")
            content = archive.read(header.size)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                name = content.partition(b"\0")[0].decode("utf-8", "replace") if name is None else name
            elif header.type in _PAX_TYPES:
                records = _pax_records(content)
                if header.type == tarfile.XGLTYPE and not records.keys().isdisjoint((b"path", b"size")):
                    raise tarfile.ReadError("a header that gives all members one name or size")
                if b"path" in records and name is None:
                    name = records[b"path"].decode("utf-8", "replace")
                if b"size" in records and size is None:
                    size = _pax_size(records[b"size"])
            continue
        size = header.size if size is None else size
        if not 0 <= size <= MAX_MEMBER_BYTES:
            raise tarfile.ReadError(f"a member of {size} bytes is no part of a sample")
        if header.type == tarfile.GNUTYPE_SPARSE:
            raise tarfile.ReadError("a sparse member")
        member = TarMember(archive, header.name if name is None else name, size)
        if header.isreg():
            yield member
        if header.isreg() or header.type not in tarfile.SUPPORTED_TYPES:
            member.skip()
        name = size = None
    if name is not None or size is not None:
        raise tarfile.ReadError("the last header is missing")


class _Archive:
    """The blocks of a tar, read in order.

    Args:
        file: The tar, open for reading at its start.
    """

    def __init__(self, file: SeekableFile) -> None:
        self._file = file
        self._position = 0

    def read(self, size: int) -> bytes:
        """Exactly the next bytes; no more memory is taken than there are."""
        blocks = []
        while size and (block := self._file.read(min(size, _READ_AT_ONCE))):
            blocks.append(block)
            size -= len(block)
            self._position += len(block)
        if size:
            raise tarfile.ReadError("bytes are missing at the end")
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    def skip(self, size: int) -> None:
        """Seeks over bytes, of which the last must be there."""
        if size:
            self._position += size - 1
            self._file.seek(self._position)
            self.read(1)

    def header(self) -> tarfile.TarInfo | None:
        """The next header; None at the end, behind which there may be nothing."""
        padding = -self._position % tarfile.BLOCKSIZE
        try:
            block = self.read(padding + tarfile.BLOCKSIZE)[padding:]
        except tarfile.ReadError as error:
            raise tarfile.ReadError(f"there is no mark of the end: {error}") from error
        if block.count(0) == len(block):
            while rest := self._file.read(_READ_AT_ONCE):
                if rest.count(0) < len(rest):
                    raise tarfile.ReadError("something stands behind the mark of the end")
            return None
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "replace")
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"a broken header: {error}") from error


def _pax_records(content: bytes) -> dict[bytes, bytes]:
    """The keywords and values of an extended header."""
    records: dict[bytes, bytes] = {}
    position = 0
    while position < len(content):
        record = _PAX_RECORD.match(content, position)
        end = position + int(record[1]) if record is not None else 0
        if record is None or not record.end() < end <= len(content) or content[end - 1] != ord("\n"):
            raise tarfile.ReadError("a malformed extended header")
        if record[2].startswith(b"GNU.sparse."):
            raise tarfile.ReadError("a sparse member")
        records[record[2]] = content[record.end() : end - 1]
        position = end
    return records


def _pax_size(value: bytes) -> int:
    if not value.isdigit() or len(value) > len(str(MAX_MEMBER_BYTES)):
        raise tarfile.ReadError(f"a member of {value[:40]!r} bytes")
    return int(value)
