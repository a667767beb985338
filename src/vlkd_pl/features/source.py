"""Image-text pairs from a feature cache on a disk, or at an address of which each machine makes a copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlkd_pl.data.collate import Collator
from vlkd_pl.data.stream import TextCorpus
from vlkd_pl.features.cache import FeatureCache
from vlkd_pl.features.dataset import CachedPairs
from vlkd_pl.features.remote_copy import default_copy, fetch_cache
from vlkd_pl.shards.addresses import is_address


class CacheSource:
    """Reads pairs from a feature cache.

    Args:
        path: Folder of the cache, or its address on S3, GCS or HTTP.
        copy: Local folder for a copy of a cache at an address; one in ``~/.cache/vlkd_pl/features`` if None.

    Attributes:
        cache: The cache, after ``open``.
    """

    def __init__(self, path: str, copy: str | None = None) -> None:
        self.path = path
        self.is_remote = is_address(path)
        copy_folder = default_copy(path) if copy is None else Path(copy)
        self.folder = copy_folder if self.is_remote else Path(path)
        self.cache: FeatureCache | None = None
        self._samples: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    def fetch(self) -> None:
        """Copy a cache at an address to this machine; complete files are not copied again.

        Raises:
            FileNotFoundError: If the address holds no finished cache.
            MisconfigurationException: If the cache cannot be copied.
        """
        if self.is_remote:
            fetch_cache(self.path, self.folder)

    def open(self, subset_size: int | None, max_bad_share: float, **settings: Any) -> FeatureCache:
        """Open the cache, and choose the subset.

        Args:
            subset_size: Number of samples of a uniform subset to use; all if None.
            max_bad_share: Share of bad samples, or of unreadable shards, above which the cache is refused.
            **settings: Values of ``FeatureSettings`` that the cache must have been made with.

        Raises:
            FileNotFoundError: If the folder holds no finished cache.
            MisconfigurationException: If a file is damaged, or the cache was made with other settings.
        """
        self.cache = FeatureCache(self.folder)
        self.cache.check_data(max_bad_share, **settings)
        self._samples = self.cache.subset(subset_size)
        return self.cache

    def pairs(self, collator: Collator, corpus: TextCorpus | None, seed: int) -> CachedPairs:
        """Return the dataset of training batches, whose keys are those of ``EpochOrder``.

        Args:
            collator: Makes batches.
            corpus: Texts without images to add to each batch; None for none.
            seed: Seed of the draw of these texts.
        """
        assert self.cache is not None, "open the source first"
        return CachedPairs(self.cache, self._samples, collator, corpus, seed)

    def captions(self, num: int) -> list[str]:
        """Return the first captions of the cache."""
        assert self.cache is not None, "open the source first"
        return self.cache.captions(self._samples[:num])

    def report(self) -> str:
        """Summarize in one line what the cache holds and what was skipped when it was made."""
        assert self.cache is not None, "open the source first"
        return f"data: {len(self.cache)} samples in {self.path}; {self.cache.losses}"
