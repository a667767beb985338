"""Training batches from cached features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from vlkd_pl.batch import ImageTextBatch
from vlkd_pl.data.collate import Collator
from vlkd_pl.data.stream import TextCorpus
from vlkd_pl.features.cache import FeatureCache


class CachedPairs(Dataset[ImageTextBatch]):
    """A dataset of pairs in a feature cache, read a batch at a time by the keys of ``EpochOrder``.

    The text of a sample is corrupted as in the same pass over the shards.

    Args:
        cache: The feature cache.
        samples: Numbers of the samples in the cache (N,) int64.
        collator: Makes the texts' part of a batch.
        corpus: Texts without images to add to each batch; None for none.
        seed: Seed of the draw of these texts.
    """

    def __init__(
        self,
        cache: FeatureCache,
        samples: NDArray[np.int64],
        collator: Collator,
        corpus: TextCorpus | None = None,
        seed: int = 0,
    ) -> None:
        self.cache = cache
        self.samples = samples
        self.collator = collator
        self.corpus = corpus
        self.seed = seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> ImageTextBatch:
        """Read a batch.

        Args:
            keys: Epoch and index into ``samples`` of each pair.
        """
        samples = self.cache.read(self.samples[[place for _, place in keys]])
        names = [f"{epoch}/{key}" for (epoch, _), key in zip(keys, samples.keys, strict=True)]
        batch = self.collator.texts(samples.texts, names)
        batch["image_tokens"], batch["clip_text_embedding"] = samples.image_tokens, samples.clip_text_embedding
        if samples.image_scales is not None:
            batch["image_scales"] = samples.image_scales
        if self.corpus is not None:
            self.corpus.add_to(batch, np.random.default_rng((self.seed, *keys[0])))
        return batch


def identity(batch: Any) -> Any:
    """Return a batch unchanged, as the ``collate_fn`` of ``CachedPairs``, which returns batches."""
    return batch
