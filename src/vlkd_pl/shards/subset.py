"""Uniform subsets of the samples of shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.shards.reader import SHARD_ERRORS, shard_samples


class UniformSubset:
    """Uniform subset of the samples of shards, the same on every run and every machine.

    The subset holds the samples whose keys have the smallest hashes; of several samples with the same key, the first
    ones. Only samples with a text count. Keys are read from the headers of the tar files, without their contents.

    Args:
        shards: Paths or addresses of all shards.
        size: Number of samples in the subset, from 1.

    Raises:
        MisconfigurationException: The shards hold fewer samples.

    Example:
        >>> from pathlib import Path
        >>> from random import Random
        >>> from tempfile import TemporaryDirectory
        >>> from vlkd_pl.sample.writers import write_shards
        >>> with TemporaryDirectory() as folder:
        ...     write_shards(Path(folder), num_pairs=6, num_shards=2, rng=Random(0))
        ...     keep = UniformSubset(sorted(map(str, Path(folder).glob("*.tar"))), size=2)
        >>> sum(keep(f"{number:09d}") for number in range(6))
        2
    """

    def __init__(self, shards: Sequence[str], size: int) -> None:
        hashes = np.fromiter((key_hash(key) for path in shards for key, _ in text_keys(path)), dtype=np.uint64)
        self.threshold = subset_threshold(hashes, size)
        num_last = size - int((hashes < self.threshold).sum())
        # several samples with the same key may share the largest hash
        self._last: set[tuple[str, int]] | None = None
        if num_last < (hashes == self.threshold).sum():
            last = (
                (path, place) for path in shards for key, place in text_keys(path) if key_hash(key) == self.threshold
            )
            self._last = set(islice(last, num_last))

    def __call__(self, key: str, path: str = "", place: int = 0) -> bool:
        """Return whether the subset holds a sample.

        Args:
            key: Key of the sample.
            path: Path of its shard.
            place: Index of the sample in the shard, from 0.
        """
        value = key_hash(key)
        if value == self.threshold and self._last is not None:
            return (path, place) in self._last
        return value <= self.threshold


def key_hash(key: str) -> int:
    """Hash a sample's key to an integer below 2⁶⁴, equal on every machine.

    Example:
        >>> hex(key_hash("000000017"))
        '0x71a6d902ad208057'
    """
    return int.from_bytes(blake2b(key.encode(errors="surrogateescape"), digest_size=8).digest(), "big")


def subset_threshold(hashes: NDArray[np.uint64], size: int) -> int:
    """The largest hash in the uniform subset of a given size.

    Args:
        hashes: Hashes (N,) uint64 of the keys of all N samples.
        size: Number of samples in the subset, from 1.

    Raises:
        MisconfigurationException: There are fewer samples.

    Example:
        >>> subset_threshold(np.array([40, 10, 30, 20], dtype=np.uint64), size=2)
        20
    """
    if len(hashes) < size:
        raise MisconfigurationException(f"data.subset_size is {size}, but the shards hold {len(hashes)} samples")
    return int(np.partition(hashes, size - 1)[size - 1])


def text_keys(path: str) -> Iterator[tuple[str, int]]:
    """Read key and index of each sample with a text from a shard's headers, up to the fault of a corrupt shard."""
    try:
        for sample in shard_samples(path, parts=()):
            if "txt" in sample.extensions:
                yield sample.raw["__key__"], sample.place
    except SHARD_ERRORS:
        return  # the fault is counted when the shard's contents are read
