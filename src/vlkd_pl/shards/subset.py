"""Uniform subsets of the samples of shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.shards.reader import BROKEN_SHARD, shard_samples


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


def text_keys(path: str) -> Iterator[tuple[str, int]]:
    """Key and place of each sample with a text, of a broken shard those before it breaks; no contents are read."""
    try:
        for sample in shard_samples(path, parts=()):
            if "txt" in sample.extensions:
                yield sample.raw["__key__"], sample.place
    except BROKEN_SHARD:
        return  # what a broken shard still gives is counted when it is read
