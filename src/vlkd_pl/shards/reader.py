"""Reads webdataset shards: finds them, takes samples out of them, and counts what is no good."""

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
"""Whether to take a sample, by its key, the path of its shard, and its place among all samples of the shard."""

BROKEN_SHARD = (tarfile.ReadError, OSError)
"""What reading a shard raises where it is corrupt or out of reach."""

_METADATA = re.compile(r"__[^/]*__(/|$)|(.*/)?__MACOSX/")  # webdataset's own, and what macOS adds


def find_shards(patterns: str | Sequence[str]) -> list[str]:
    """The shards that patterns name.

    The path of an existing file is taken literally, and so is the longest existing folder that a pattern begins with,
    whatever ``[``, ``]``, ``{``, ``}`` and ``*`` they contain. Of the rest braces are expanded, and then wildcards.

    Args:
        patterns: Paths, or addresses (``s3://``, ``gs://``, ``https://``; see ``check_address``), with braces
            (``{00000..00331}.tar``) or wildcards (``*.tar``), the latter where the files can be listed.

    Raises:
        FileNotFoundError: A named shard does not exist, or a wildcard finds none.
        MisconfigurationException: A pattern is a command, an address of a scheme that is not allowed, or has braces
            that do not match.
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
            found = expand_wildcards(path, folder)
            if not found:
                raise FileNotFoundError(f"data.shards: no shard fits {folder + path}: give the paths of .tar files")
            shards += found
    missing = missing_files(shards)
    if missing:
        raise FileNotFoundError(
            f"data.shards: {len(missing)} of {len(shards)} shards do not exist; first: {', '.join(missing[:3])}"
        )
    return shards


def _split_literal(pattern: str) -> tuple[str, str]:
    """The part of a pattern that exists, a file or its longest folder, and the rest."""
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
    """The key and the extension that a member's name gives, as webdataset splits it.

    The key is the path up to the first dot of the file's name; the extension is the rest, in lower case. A sample is
    the members with one key that follow one another; where an extension comes again, a new sample begins.

    Args:
        name: Name of a member of a tar.

    Returns:
        None for a file that is no part of a sample: without key or extension, hidden as the ``._`` files of macOS, or
        in ``__MACOSX`` or webdataset's metadata.
    """
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    if not stem or not dot or _METADATA.match(name):
        return None
    return folder + slash + stem, extension.lower()


class ShardSample(NamedTuple):
    """A sample of a shard.

    Attributes:
        raw: ``__key__``, and the bytes of the parts that were read by their extensions.
        extensions: Those of all its members.
        place: Its number among all samples of the shard.
        is_kept: Whether it was asked for; of others nothing is read.
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
    """All samples of a shard, of which only what is asked for is read; the rest is seeked over.

    Args:
        path: A tar file that is not compressed, on a local disk or at an address.
        keep: Which samples to read; all by default.
        parts: Extensions of the parts to read.
        on_retry: Called each time that a connection broke and the read is tried again.

    Raises:
        tarfile.ReadError: The file is corrupt at this place, or ends without the mark of its end; all before it has
            been yielded.
        OSError: It cannot be read.
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
    """The raw samples of a shard that are asked for; see ``shard_samples``."""
    return (sample.raw for sample in shard_samples(path, keep, parts, on_retry) if sample.is_kept)


def count_samples(path: str) -> int:
    """The number of samples in a shard; none of its contents is read.

    Raises:
        tarfile.ReadError: The file is corrupt.
        OSError: It cannot be read.
    """
    return sum(1 for _ in shard_samples(path, parts=()))


def read_captions(shards: Sequence[str], num: int, keep: KeepSample | None = None) -> list[str]:
    """The first ``num`` captions of the shards, fewer where there are no more; broken shards are passed over."""
    captions: list[str] = []
    for path in shards:
        try:
            for raw in read_shard(path, keep, ("txt",)):
                text = caption(raw)
                if text:
                    captions.append(text)
                if len(captions) == num:
                    return captions
        except BROKEN_SHARD:
            continue
    return captions
