"""Reading of tar files member by member, in bounded memory; corrupt and hostile archives are refused here.

Every fault of an archive raises ``tarfile.ReadError``. ``tarfile`` parses each header; the rest is read here, because
``tarfile`` follows chains of headers recursively, accepts any size, expands sparse members, and raises errors of many
other classes.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import Protocol

MAX_MEMBER_BYTES = 1 << 28
"""Maximum of a member's bytes; a larger member cannot belong to a sample."""

_MAX_EXTENSION_BYTES = 1 << 14
_READ_AT_ONCE = 1 << 20
_LONG_NAME_TYPES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PAX_TYPES = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
_PAX_RECORD = re.compile(rb"(\d{1,6}) ([^=\n]+)=")  # more digits would be more bytes than an extension may have


class SeekableFile(Protocol):
    """File that is open for reading bytes."""

    def read(self, size: int, /) -> bytes:
        """Read up to ``size`` bytes, or none at the end."""

    def seek(self, position: int, /) -> int:
        """Move to a position in bytes from the start."""


class TarMember:
    """Regular file in a tar, to be read or skipped before the next member.

    Args:
        archive: Archive positioned at the start of the content.
        name: Name of the member.
        size: Size of the content in bytes.
    """

    def __init__(self, archive: _Archive, name: str, size: int) -> None:
        self.name = name
        self._archive = archive
        self._num_left = size

    def read(self) -> bytes:
        """Read the rest of the content.

        Raises:
            tarfile.ReadError: The archive ends within the content.
        """
        size, self._num_left = self._num_left, 0
        return self._archive.read(size)

    def skip(self) -> None:
        """Seek over the rest of the content.

        Raises:
            tarfile.ReadError: The archive ends within the content.
        """
        size, self._num_left = self._num_left, 0
        self._archive.skip(size)


def tar_members(file: SeekableFile) -> Iterator[TarMember]:
    """Iterate over the regular files of a tar; links, devices and folders are skipped.

    Nothing is written to disk, and a member's name is never used as a path. Unread contents are seeked over.

    Args:
        file: Tar file without compression, open for reading at its start.

    Yields:
        Each member, to be read or skipped before the next.

    Raises:
        tarfile.ReadError: The tar is corrupt or truncated at this place, or holds a sparse member or one of more than
            ``MAX_MEMBER_BYTES``.
        OSError: The file cannot be read.
    """
    archive = _Archive(file)
    name: str | None = None  # from headers that extend the next one
    size: int | None = None
    while (header := archive.header()) is not None:
        if header.type in (*_LONG_NAME_TYPES, *_PAX_TYPES):
            if not 0 <= header.size <= _MAX_EXTENSION_BYTES:
                raise tarfile.ReadError(f"an extended header or name has {header.size} bytes, which is too many")
            content = archive.read(header.size)
            if header.type == tarfile.GNUTYPE_LONGNAME:
                name = content.partition(b"\0")[0].decode("utf-8", "replace") if name is None else name
            elif header.type in _PAX_TYPES:
                records = _pax_records(content)
                if header.type == tarfile.XGLTYPE and not records.keys().isdisjoint((b"path", b"size")):
                    raise tarfile.ReadError("a global header sets the name or size of all members")
                if b"path" in records and name is None:
                    name = records[b"path"].decode("utf-8", "replace")
                if b"size" in records and size is None:
                    size = _pax_size(records[b"size"])
            continue
        size = header.size if size is None else size
        if not 0 <= size <= MAX_MEMBER_BYTES:
            raise tarfile.ReadError(f"a member of {size} bytes is too large for a sample")
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
    """Sequential reader of a tar's blocks.

    Args:
        file: Tar file open for reading at its start.
    """

    def __init__(self, file: SeekableFile) -> None:
        self._file = file
        self._position = 0

    def read(self, size: int) -> bytes:
        """Read exactly the next ``size`` bytes, in memory that grows only with the bytes that exist."""
        blocks = []
        while size and (block := self._file.read(min(size, _READ_AT_ONCE))):
            blocks.append(block)
            size -= len(block)
            self._position += len(block)
        if size:
            raise tarfile.ReadError("bytes are missing at the end")
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    def skip(self, size: int) -> None:
        """Seek over ``size`` bytes, and check that the last one exists."""
        if size:
            self._position += size - 1
            self._file.seek(self._position)
            self.read(1)

    def header(self) -> tarfile.TarInfo | None:
        """Read the next header; None at the end mark, after which only zeros may follow."""
        padding = -self._position % tarfile.BLOCKSIZE
        try:
            block = self.read(padding + tarfile.BLOCKSIZE)[padding:]
        except tarfile.ReadError as error:
            raise tarfile.ReadError(f"the end mark is missing: {error}") from error
        if block.count(0) == len(block):
            while rest := self._file.read(_READ_AT_ONCE):
                if rest.count(0) < len(rest):
                    raise tarfile.ReadError("data follows the end mark")
            return None
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "replace")
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"a corrupt header: {error}") from error


def _pax_records(content: bytes) -> dict[bytes, bytes]:
    """Parse the keywords and values of an extended header."""
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
