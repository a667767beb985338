"""Training batches of cached features."""

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
    """Pairs of a cache, a batch at a time, for ``EpochOrder`` to draw from.

    A sample's text is corrupted as in the same pass over the shards.

    Args:
        cache: The features.
        samples: The numbers in it of the samples to take.
        collator: Makes BART's part of a batch.
        corpus: Texts to put beside the pairs.
        seed: Decides which texts.
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
        """A batch.

        Args:
            keys: The epoch and the place among ``samples`` of each of its pairs.
        """
        samples = self.cache.read(self.samples[[place for _, place in keys]])
        names = [f"{epoch}/{key}" for (epoch, _), key in zip(keys, samples.keys, strict=True)]
        batch = self.collator.texts(samples.texts, names)
        batch["image_tokens"], batch["clip_text_embedding"] = samples.image_tokens, samples.clip_text_embedding
        if samples.image_scales is not None:
            batch["image_scales"] = samples.image_scales
        if self.corpus is not None:
            batch["text_infilling"] = self.corpus.draw(np.random.default_rng((self.seed, *keys[0])))
        return batch


def ready(batch: Any) -> Any:
    """For ``collate_fn``: ``CachedPairs`` gives whole batches."""
    return batch
