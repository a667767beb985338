"""Reads webdataset shards: finds them, takes samples out of them, and counts what is no good."""

from __future__ import annotations

import io
import re
import tarfile
import unicodedata
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from braceexpand import braceexpand
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from vlkd_pl.addresses import check_address, is_address
from vlkd_pl.data.base import ImageText
from vlkd_pl.data.images import ImageSizeError, open_image, upright
from vlkd_pl.data.remote import expand_wildcards, missing_files, open_file
from vlkd_pl.data.tars import tar_members

RawSample = dict[str, Any]

KeepSample = Callable[[str, str, int], bool]
"""Whether to take a sample, by its key, the path of its shard, and its place among all samples of the shard."""

BROKEN_SHARD = (tarfile.ReadError, OSError)
"""What reading a shard raises where it is corrupt or out of reach."""

SKIP_REASONS = ("broken_tar", "missing_part", "unreadable_image", "not_rgb", "too_large", "empty_text")
"""Why a sample is skipped; ``broken_tar`` counts shards, of which the rest is lost."""

COUNTED = (*SKIP_REASONS, "retries", "seen")
"""What is counted; ``retries`` are reads tried again, ``seen`` are raw samples looked at."""

_IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
MAX_IMAGE_PIXELS = 50_000_000
"""Pixels of an image in training at most, by default."""

PAIR_PARTS = (*_IMAGE_EXTENSIONS, "txt")
"""Extensions of the parts of a sample that make a pair."""

SAMPLE_PARTS = (*PAIR_PARTS, "json")
"""Those and img2dataset's metadata; members with other extensions are not read."""

_METADATA = re.compile(r"__[^/]*__(/|$)|(.*/)?__MACOSX/")  # webdataset's own, and what macOS adds
_INVISIBLE_CATEGORIES = ("Cc", "Cf", "Mn", "Me", "Zl", "Zp", "Zs")
_INVISIBLE_CHARACTERS = "\u115f\u1160\u2800\u3164\uffa0\ufffd"  # fillers, an empty pattern, and undecodable bytes


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


class UniformSubset:
    """A uniform subset of all samples with a text, the same on every run and every machine.

    It holds the samples whose keys have the smallest hashes; of samples with the same key it takes the first. The keys
    are read from the headers of the tar files.

    Args:
        shards: All shards.
        size: Samples in the subset.

    Raises:
        MisconfigurationException: The shards hold fewer samples.
    """

    def __init__(self, shards: Sequence[str], size: int) -> None:
        hashes = np.fromiter((key_hash(key) for path in shards for key, _ in text_keys(path)), dtype=np.uint64)
        self.threshold = subset_threshold(hashes, size)
        num_last = size - int((hashes < self.threshold).sum())
        # of the largest hash, which several samples with the same key may have
        self._last: set[tuple[str, int]] | None = None
        if num_last < (hashes == self.threshold).sum():
            last = (
                (path, place) for path in shards for key, place in text_keys(path) if key_hash(key) == self.threshold
            )
            self._last = set(islice(last, num_last))

    def __call__(self, key: str, path: str = "", place: int = 0) -> bool:
        """Whether the subset holds a sample; see ``KeepSample``."""
        value = key_hash(key)
        if value == self.threshold and self._last is not None:
            return (path, place) in self._last
        return value <= self.threshold


def key_hash(key: str) -> int:
    """A hash of a sample's key, below 2⁶⁴, the same on every machine."""
    return int.from_bytes(blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest(), "big")


def subset_threshold(hashes: NDArray[np.uint64], size: int) -> int:
    """The largest hash in the uniform subset of a size.

    Args:
        hashes: Those of all keys, each once.
        size: Samples in the subset.

    Raises:
        MisconfigurationException: There are fewer.
    """
    if len(hashes) < size:
        raise MisconfigurationException(f"data.subset_size is {size}, but the shards hold {len(hashes)} samples")
    return int(np.partition(hashes, size - 1)[size - 1])


class SampleDecoder:
    """Makes samples of raw ones, and counts those that are no good.

    Args:
        transform: From a picture to a tensor.
        max_image_pixels: Pictures with more are skipped before they are decoded.
        skip_non_rgb: Whether pictures of another mode are skipped; they are converted otherwise.
        num_workers: Workers that count.
        draft_size: JPEG pictures are decoded at a half, a quarter or an eighth of their size where that leaves this
            many pixels of the shorter side; None for their full size.
    """

    def __init__(
        self,
        transform: Callable[[Image.Image], Tensor],
        max_image_pixels: int,
        skip_non_rgb: bool,
        num_workers: int,
        draft_size: int | None = None,
    ) -> None:
        self.transform = transform
        self.max_image_pixels = max_image_pixels
        self.skip_non_rgb = skip_non_rgb
        self.num_workers = num_workers
        self.draft_size = draft_size
        self.forget()

    def forget(self) -> None:
        """Begins to count, in this process and its workers alone: ranks that are forked would share the counts."""
        # one row for each worker, which alone writes it; shared with the main process
        self.counts = torch.zeros(max(1, self.num_workers), len(COUNTED), dtype=torch.int64).share_memory_()

    def __call__(self, raw: RawSample, worker: int) -> ImageText | None:
        """The sample, or None where it is skipped."""
        self.count("seen", worker)
        sample = self.decoded(raw)
        if isinstance(sample, str):
            self.count(sample, worker)
            return None
        return sample

    def decoded(self, raw: RawSample) -> ImageText | str:
        """The sample, or the reason why it is no good; it is not counted."""
        extension = image_extension(raw)
        if extension is None or "txt" not in raw:
            return "missing_part"
        text = caption(raw)
        if not text:
            return "empty_text"
        try:
            with open_image(io.BytesIO(raw[extension]), self.max_image_pixels) as image:
                if image.mode != "RGB" and self.skip_non_rgb:
                    return "not_rgb"
                if self.draft_size is not None:
                    image.draft(None, (self.draft_size, self.draft_size))
                image.load()
                pixels = upright(image if image.mode == "RGB" else image.convert("RGB"))
        except (ImageSizeError, Image.DecompressionBombError):
            return "too_large"
        except Exception:  # what Pillow's decoders raise on a damaged file differs between its versions
            return "unreadable_image"
        return {"image": self.transform(pixels), "text": text, "key": raw["__key__"]}

    def count(self, what: str, worker: int) -> None:
        """Counts one thing of ``COUNTED``."""
        self.counts.numpy()[worker, COUNTED.index(what)] += 1  # through torch it would take as long as reading a header

    @property
    def num_seen(self) -> int:
        """Raw samples looked at by all workers."""
        return int(self.counts[:, COUNTED.index("seen")].sum())

    @property
    def num_retries(self) -> int:
        """Reads that were tried again, by all workers."""
        return int(self.counts[:, COUNTED.index("retries")].sum())

    @property
    def skipped(self) -> dict[str, int]:
        """How much was skipped for each reason, by all workers."""
        return dict(zip(SKIP_REASONS, self.counts.sum(0).tolist(), strict=False))


def told_by_reason(skipped: Mapping[str, int], nothing: str = "none") -> str:
    """What was skipped, in words; ``nothing`` where nothing was."""
    return ", ".join(f"{num:,} {reason}" for reason, num in skipped.items() if num) or nothing


def image_extension(raw: RawSample) -> str | None:
    """The extension of the part that is the picture; None where there is none."""
    return next((extension for extension in _IMAGE_EXTENSIONS if extension in raw), None)


def caption(raw: RawSample) -> str:
    """The text of a raw sample; empty where it has none, or none that can be seen: see ``is_blank``."""
    text: str = raw.get("txt", b"").decode("utf-8", "replace").strip()
    return "" if is_blank(text) else text


def is_blank(text: str) -> bool:
    """Whether a text has nothing to read: only white space, NUL and control characters, and such as have no width."""
    return all(
        unicodedata.category(character) in _INVISIBLE_CATEGORIES or character in _INVISIBLE_CHARACTERS
        for character in text
    )


def text_keys(path: str) -> Iterator[tuple[str, int]]:
    """Key and place of each sample with a text, of a broken shard those before it breaks; no contents are read."""
    try:
        for sample in shard_samples(path, parts=()):
            if "txt" in sample.extensions:
                yield sample.raw["__key__"], sample.place
    except BROKEN_SHARD:
        return  # what a broken shard still gives is counted when it is read
