"""Reads webdataset shards: finds them, takes samples out of them, and counts what is no good."""

from __future__ import annotations

import glob
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from braceexpand import braceexpand
from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from webdataset.tariterators import group_by_keys, tar_file_iterator

from vlkd_pl.data.base import ImageText

RawSample = dict[str, Any]

SKIP_REASONS = ("broken_tar", "missing_part", "unreadable_image", "not_rgb", "too_large", "empty_text")
"""Why a sample is skipped; ``broken_tar`` counts shards, of which the rest is lost."""

_IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")


def find_shards(patterns: str | Sequence[str]) -> list[str]:
    """The shards that patterns name.

    Args:
        patterns: Paths with braces (``{00000..00331}.tar``) or wildcards (``*.tar``).

    Raises:
        FileNotFoundError: A named shard does not exist, or a wildcard finds none.
        MisconfigurationException: A pattern is a command or an address, not a path.
    """
    shards: list[str] = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if pattern.startswith("pipe:") or "://" in pattern:
            raise MisconfigurationException(
                f"data.shards: {pattern} is not a path: commands and addresses are not read"
            )
        for path in braceexpand(pattern):
            found = sorted(glob.glob(path)) if glob.has_magic(path) else [path]
            if not found:
                raise FileNotFoundError(f"data.shards: no shard fits {path}: give the paths of .tar files")
            shards += found
    missing = [path for path in shards if not Path(path).is_file()]
    if missing:
        raise FileNotFoundError(
            f"data.shards: {len(missing)} of {len(shards)} shards do not exist; first: {', '.join(missing[:3])}"
        )
    return shards


def read_shard(path: str, select: Callable[[str], bool] | None = None) -> Iterator[RawSample]:
    """The raw samples of a shard: the bytes of each part by its extension, and ``__key__``.

    Args:
        path: A tar file.
        select: Which members to read; all by default.

    Raises:
        tarfile.TarError: The file is broken at this place.
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        members = ({**member, "__url__": path} for member in tar_file_iterator(file, select_files=select))
        yield from group_by_keys(members)


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
        hashes = np.fromiter({_hash(key) for path in shards for key in _keys(path)}, dtype=np.uint64)
        if len(hashes) < size:
            raise MisconfigurationException(f"data.subset_size is {size}, but the shards hold {len(hashes)} samples")
        self.threshold = int(np.partition(hashes, size - 1)[size - 1])

    def __call__(self, key: str) -> bool:
        """Whether the subset holds the sample of this key."""
        return _hash(key) <= self.threshold


class SampleDecoder:
    """Makes samples of raw ones, and counts those that are no good.

    Args:
        transform: From a picture to a tensor.
        max_image_pixels: Pictures with more are skipped before they are decoded.
        skip_non_rgb: Whether pictures of another mode are skipped; they are converted otherwise.
        num_workers: Workers that count.
    """

    def __init__(
        self,
        transform: Callable[[Image.Image], Tensor],
        max_image_pixels: int,
        skip_non_rgb: bool,
        num_workers: int,
    ) -> None:
        self.transform = transform
        self.max_image_pixels = max_image_pixels
        self.skip_non_rgb = skip_non_rgb
        # one row for each worker, which alone writes it; shared with the main process
        self.counts = torch.zeros(max(1, num_workers), len(SKIP_REASONS) + 1, dtype=torch.int64).share_memory_()

    def __call__(self, raw: RawSample, worker: int) -> ImageText | None:
        """The sample, or None where it is skipped."""
        self.counts[worker, -1] += 1
        sample = self._decoded(raw)
        if isinstance(sample, str):
            self.count(sample, worker)
            return None
        return sample

    def _decoded(self, raw: RawSample) -> ImageText | str:
        """The sample, or the reason why it is skipped."""
        content = next((raw[extension] for extension in _IMAGE_EXTENSIONS if extension in raw), None)
        if content is None or "txt" not in raw:
            return "missing_part"
        text = raw["txt"].decode("utf-8", "replace").strip()
        if not text:
            return "empty_text"
        try:
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > self.max_image_pixels:
                    return "too_large"
                if image.mode != "RGB" and self.skip_non_rgb:
                    return "not_rgb"
                pixels = self.transform(image.convert("RGB"))
        except Image.DecompressionBombError:
            return "too_large"
        except (OSError, ValueError, SyntaxError):  # all that Pillow raises on damaged files
            return "unreadable_image"
        return {"image": pixels, "text": text, "key": raw["__key__"]}

    def count(self, reason: str, worker: int) -> None:
        """Counts one thing skipped."""
        self.counts[worker, SKIP_REASONS.index(reason)] += 1

    @property
    def num_seen(self) -> int:
        """Raw samples looked at by all workers."""
        return int(self.counts[:, -1].sum())

    @property
    def skipped(self) -> dict[str, int]:
        """How much was skipped for each reason, by all workers."""
        return dict(zip(SKIP_REASONS, self.counts.sum(0).tolist(), strict=False))


def _keys(path: str) -> Iterator[str]:
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.isreg() and member.name.endswith(".txt"):
                    yield member.name.removesuffix(".txt")
    except (tarfile.TarError, OSError):
        return  # what a broken shard still gives is counted when it is read


def _hash(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big")
