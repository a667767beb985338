"""Reading of webdataset shards: from the patterns that name them to raw samples."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from braceexpand import braceexpand
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.shards.addresses import check_address, is_address
from vlkd_pl.shards.decoder import SAMPLE_PARTS, RawSample, caption
from vlkd_pl.shards.remote import expand_wildcards, missing_files, open_file
from vlkd_pl.shards.tar import tar_members

KeepSample = Callable[[str, str, int], bool]
"""Function of a sample's key, its shard's path and its index in the shard that says whether to read the sample."""

SHARD_ERRORS = (tarfile.ReadError, OSError)
"""Exceptions of reading a shard that is corrupt or cannot be reached."""

_METADATA = re.compile(r"__[^/]*__(/|$)|(.*/)?__MACOSX/")  # webdataset's own, and what macOS adds


def find_shards(patterns: str | Sequence[str]) -> list[str]:
    """Expand patterns to the list of shards that they match.

    The path of an existing file is taken literally, and so is the longest existing folder that a pattern begins with,
    even if they contain ``[``, ``]``, ``{``, ``}`` or ``*``. In the rest, braces are expanded, and then wildcards.

    Args:
        patterns: Paths, or addresses (``s3://``, ``gs://``, ``https://``; see ``check_address``), with braces
            (``{00000..00331}.tar``) or, where files can be listed, wildcards (``*.tar``).

    Returns:
        Paths and addresses of the shards, in the order of the patterns.

    Raises:
        FileNotFoundError: A shard does not exist, or a wildcard matches no file.
        MisconfigurationException: A pattern is a command, an address whose scheme is not allowed, or has unbalanced
            braces.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     for number in range(3):
        ...         Path(folder, f"{number:05d}.tar").touch()
        ...     shards = find_shards(f"{folder}/{{00000..00001}}.tar")
        >>> [Path(shard).name for shard in shards]
        ['00000.tar', '00001.tar']
    """
    shards: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        folder, rest = _split_literal(pattern)
        try:
            expanded = list(braceexpand(rest))
        except ValueError as error:
            raise MisconfigurationException(f"data.shards: the braces of {pattern} do not match ({error})") from error
        for path in expanded:
            check_address(folder + path)
            matches = expand_wildcards(path, folder)
            if not matches:
                raise FileNotFoundError(f"data.shards: no file matches {folder + path}: give the paths of .tar files")
            shards += matches
    missing = missing_files(shards)
    if missing:
        raise FileNotFoundError(
            f"data.shards: {len(missing)} of {len(shards)} shards do not exist; first: {', '.join(missing[:3])}"
        )
    return shards


def _split_literal(pattern: str) -> tuple[str, str]:
    """Split a pattern into the file or longest folder that exists, and the rest."""
    if is_address(pattern):
        return "", pattern
    if Path(pattern).is_file():
        return pattern, ""
    folder, slash, rest = pattern.rpartition("/")
    while slash and not Path(folder + slash).is_dir():
        folder, slash, _ = folder.rpartition("/")
        rest = pattern[len(folder + slash) :]
    return folder + slash, rest


def sample_name(name: str) -> tuple[str, str] | None:
    """Split a tar member's name into the key and the extension of a sample, as webdataset does.

    The key is the path up to the first dot of the file's name; the extension is the rest, in lower case. Consecutive
    members with the same key form a sample; a repeated extension begins a new one.

    Args:
        name: Name of a member of a tar file.

    Returns:
        Key and extension; None for a file that belongs to no sample: one without key or extension, a hidden file such
        as the ``._`` files of macOS, or one of ``__MACOSX`` or of webdataset's metadata.

    Example:
        >>> sample_name("a/000000017.jpg"), sample_name("._000000017.jpg")
        (('a/000000017', 'jpg'), None)
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or _METADATA.match(name):
        return None
    return folder + slash + stem, extension.lower()


class ShardSample(NamedTuple):
    """A sample of a shard.

    Attributes:
        raw: The key as ``__key__``, and the bytes of each part by its extension.
        extensions: Extensions of all members of the sample, read or not.
        place: Index of the sample in the shard, from 0.
        is_kept: Whether the sample was selected; nothing of the others is read.
    """

    raw: RawSample
    extensions: set[str]
    place: int
    is_kept: bool


def shard_samples(
    path: str,
    keep: KeepSample | None = None,
    parts: Container[str] = SAMPLE_PARTS,
    on_retry: Callable[[], None] | None = None,
) -> Iterator[ShardSample]:
    """Iterate over the samples of a shard, reading only what is selected and seeking over the rest.

    Args:
        path: Path or address of a tar file without compression.
        keep: Function that selects the samples to read; all by default.
        parts: Extensions of the parts to read.
        on_retry: Function called before each repeated read of a remote file.

    Yields:
        Each sample in the order of the file, selected or not.

    Raises:
        tarfile.ReadError: The file is corrupt or truncated; all samples before that place have been yielded.
        OSError: The file cannot be read.
    """
    sample: ShardSample | None = None
    try:
        with open_file(path, on_retry) as file:
            for member in tar_members(file):
                named = sample_name(member.name)
                if named is None:
                    continue
                key, extension = named
                if sample is None or key != sample.raw["__key__"] or extension in sample.extensions:
                    if sample is not None:
                        yield sample
                    place = 0 if sample is None else sample.place + 1
                    sample = ShardSample({"__key__": key}, set(), place, keep is None or keep(key, path, place))
                if sample.is_kept and extension in parts:
                    sample.raw[extension] = member.read()
                else:
                    member.skip()
                sample.extensions.add(extension)
    except tarfile.ReadError:
        if sample is not None and sample.extensions:
            yield sample
        raise
    if sample is not None:
        yield sample


def read_shard(
    path: str,
    keep: KeepSample | None = None,
    parts: Container[str] = SAMPLE_PARTS,
    on_retry: Callable[[], None] | None = None,
) -> Iterator[RawSample]:
    """Iterate over the selected raw samples of a shard; arguments as for ``shard_samples``."""
    return (sample.raw for sample in shard_samples(path, keep, parts, on_retry) if sample.is_kept)


def count_samples(path: str) -> int:
    """Count the samples of a shard from its headers alone.

    Raises:
        tarfile.ReadError: The file is corrupt.
        OSError: The file cannot be read.
    """
    return sum(1 for _ in shard_samples(path, parts=()))


def read_captions(shards: Sequence[str], num: int, keep: KeepSample | None = None) -> list[str]:
    """Read the first ``num`` captions of shards, or fewer if they hold fewer; corrupt shards are skipped."""
    captions: list[str] = []
    for path in shards:
        try:
            for raw in read_shard(path, keep, ("txt",)):
                text = caption(raw)
                if text:
                    captions.append(text)
                if len(captions) == num:
                    return captions
        except SHARD_ERRORS:
            continue
    return captions
