"""Reads webdataset shards: finds them, takes samples out of them, and counts what is no good."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from braceexpand import braceexpand
from numpy.typing import NDArray
from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from webdataset.tariterators import base_plus_ext

from vlkd_pl.data.base import ImageText
from vlkd_pl.data.images import ImageSizeError, open_image, upright
from vlkd_pl.data.remote import check_address, expand_wildcards, missing_files, open_file
from vlkd_pl.data.tars import opened_tar, tar_headers, tar_members

RawSample = dict[str, Any]

SKIP_REASONS = ("broken_tar", "missing_part", "unreadable_image", "not_rgb", "too_large", "empty_text")
"""Why a sample is skipped; ``broken_tar`` counts shards, of which the rest is lost."""

COUNTED = (*SKIP_REASONS, "retries", "seen")
"""What is counted; ``retries`` are reads tried again, ``seen`` are raw samples looked at."""

_IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


def find_shards(patterns: str | Sequence[str]) -> list[str]:
    """The shards that patterns name.

    Args:
        patterns: Paths, or addresses that fsspec reads (``s3://``, ``gs://``, ``https://``, …), with braces
            (``{00000..00331}.tar``) or wildcards (``*.tar``), the latter where the files can be listed.

    Raises:
        FileNotFoundError: A named shard does not exist, or a wildcard finds none.
        MisconfigurationException: A pattern is a command, or an address of an unknown scheme.
    """
    shards: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        check_address(pattern)
        for path in braceexpand(pattern):
            found = expand_wildcards(path)
            if not found:
                raise FileNotFoundError(f"data.shards: no shard fits {path}: give the paths of .tar files")
            shards += found
    missing = missing_files(shards)
    if missing:
        raise FileNotFoundError(
            f"data.shards: {len(missing)} of {len(shards)} shards do not exist; first: {', '.join(missing[:3])}"
        )
    return shards


def read_shard(
    path: str, select: Callable[[str], bool] | None = None, on_retry: Callable[[], None] | None = None
) -> Iterator[RawSample]:
    """The raw samples of a shard: the bytes of each part by its extension, and ``__key__``.

    Members that follow one another and have the same key are a sample; where a part comes again, so does the sample.

    Args:
        path: A tar file that is not compressed, on a local disk or at an address.
        select: Which members to read; all by default.
        on_retry: Called each time that a connection broke and the read is tried again.

    Raises:
        tarfile.TarError: The file is broken at this place, or ends without the mark of its end; all before it has been
            yielded.
        ValueError: The same, where a header holds nonsense.
        OSError: It cannot be read.
    """
    sample: RawSample = {}
    try:
        with open_file(path, on_retry) as file:
            for name, content in tar_members(file, select):
                key, extension = base_plus_ext(name)
                if key is None:
                    continue
                extension = extension.lower()
                if sample and (key != sample["__key__"] or extension in sample):
                    yield sample
                    sample = {}
                sample |= {extension: content, "__key__": key}
    except (tarfile.TarError, ValueError):
        if sample:
            yield sample
        raise
    if sample:
        yield sample


def count_samples(path: str) -> int:
    """The keys in a shard; none of its contents is read.

    Raises:
        tarfile.TarError: The file is broken.
        ValueError: The same, where a header holds nonsense.
        OSError: It cannot be read.
    """
    with open_file(path) as file, opened_tar(file, "r:") as archive:
        return len({base_plus_ext(member.name)[0] for member in tar_headers(archive)} - {None})


def read_captions(shards: Sequence[str], num: int, keep: Callable[[str], bool]) -> list[str]:
    """The first ``num`` captions of the shards, fewer where there are no more; broken shards are passed over."""
    captions: list[str] = []
    for path in shards:
        try:
            for sample in read_shard(path, lambda name: name.endswith(".txt")):
                text = sample.get("txt", b"").decode("utf-8", "replace").strip()
                if text and keep(sample["__key__"]):
                    captions.append(text)
                if len(captions) == num:
                    return captions
        except (tarfile.TarError, OSError, ValueError):
            continue
    return captions


class UniformSubset:
    """A uniform subset of all samples, the same on every run and every machine.

    It holds the samples whose keys have the smallest hashes. The keys are read from the headers of the tar files.

    Args:
        shards: All shards.
        size: Samples in the subset.

    Raises:
        MisconfigurationException: The shards hold fewer samples.
    """

    def __init__(self, shards: Sequence[str], size: int) -> None:
        hashes = np.fromiter({key_hash(key) for path in shards for key in text_keys(path)}, dtype=np.uint64)
        self.threshold = subset_threshold(hashes, size)

    def __call__(self, key: str) -> bool:
        """Whether the subset holds the sample of this key."""
        return key_hash(key) <= self.threshold


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
        text = raw["txt"].decode("utf-8", "replace").strip()
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


def text_keys(path: str) -> Iterator[str]:
    """The keys of the samples with a text, of a broken shard those before it breaks; no contents are read."""
    try:
        with open_file(path) as file, opened_tar(file, "r:") as archive:
            for member in tar_headers(archive):
                if member.name.endswith(".txt"):
                    yield member.name.removesuffix(".txt")
    except (tarfile.TarError, OSError, ValueError):
        return  # what a broken shard still gives is counted when it is read
