"""Collation of images with texts."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np
import torch

from vlkd_pl.batch import EvaluationBatch, ImageText, ImageTextBatch, ImageTexts
from vlkd_pl.clip.tokenizer import CLIPTokenizer
from vlkd_pl.data.infilling import TextInfilling


class Collator:
    """Collates images with texts into batches.

    The corruption of a text depends on the seed and the key of its sample only, not on the number of workers.

    Args:
        clip_tokenizer: Tokenizer of the CLIP.
        infilling: Tokenizes and corrupts the texts for BART.
        seed: Seed of the corruption.
    """

    def __init__(self, clip_tokenizer: CLIPTokenizer, infilling: TextInfilling, seed: int) -> None:
        self.clip_tokenizer = clip_tokenizer
        self.infilling = infilling
        self.seed = seed

    def __call__(self, samples: Sequence[ImageText]) -> ImageTextBatch:
        """Collate samples of an image and a text each."""
        texts = [sample["text"] for sample in samples]
        batch = self.texts(texts, [sample["key"] for sample in samples])
        batch["image"] = torch.stack([sample["image"] for sample in samples])
        batch["clip_text_ids"] = self.clip_tokenizer(texts)
        return batch

    def texts(self, texts: Sequence[str], keys: Sequence[str]) -> ImageTextBatch:
        """Collate texts into the entries of a batch that BART needs.

        Args:
            texts: List of B texts.
            keys: Keys of the B samples, which decide the corruption.
        """
        rngs = [np.random.default_rng((self.seed, crc32(key.encode(errors="surrogateescape")))) for key in keys]
        infilling = self.infilling(texts, rngs)
        labels = infilling["labels"]  # the token ids of the clean texts, which need not be computed again
        return {
            "bart_text_ids": labels.masked_fill(labels == -100, self.infilling.tokenizer.pad_token_id),
            "bart_text_mask": (labels != -100).long(),
            "corrupted_ids": infilling["corrupted_ids"],
            "corrupted_mask": infilling["corrupted_mask"],
            "labels": labels,
            "keys": list(keys),
        }

    def evaluation(self, samples: Sequence[ImageTexts]) -> EvaluationBatch:
        """Collate images with all their texts; the first text of each is corrupted, in the same way every time."""
        firsts: list[ImageText] = [
            {"image": sample["image"], "text": sample["references"][0], "key": str(sample["image_id"])}
            for sample in samples
        ]
        return {
            **self(firsts),
            "image_id": torch.tensor([sample["image_id"] for sample in samples]),
            "references": [sample["references"] for sample in samples],
        }
