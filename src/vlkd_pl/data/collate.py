"""Tokenizers and collation that all data modules share."""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32

import numpy as np
import torch

from vlkd_pl.batch import EvaluationBatch, ImageText, ImageTextBatch, ImageTexts
from vlkd_pl.clip.tokenizer import CLIPTokenizer
from vlkd_pl.data.infilling import TextInfilling


class Collator:
    """Makes batches of images with texts.

    The corruption of a text is drawn from the seed and the sample's key alone, so that it does not depend on the number
    of workers.

    Args:
        clip_tokenizer: CLIP's tokenizer.
        infilling: Corrupts the texts, and holds BART's tokenizer.
        seed: Decides the corruption.
    """

    def __init__(self, clip_tokenizer: CLIPTokenizer, infilling: TextInfilling, seed: int) -> None:
        self.clip_tokenizer = clip_tokenizer
        self.infilling = infilling
        self.seed = seed

    def __call__(self, samples: Sequence[ImageText]) -> ImageTextBatch:
        """A batch of one text for each image."""
        texts = [sample["text"] for sample in samples]
        batch = self.texts(texts, [sample["key"] for sample in samples])
        batch["image"] = torch.stack([sample["image"] for sample in samples])
        batch["clip_text_ids"] = self.clip_tokenizer(texts)
        return batch

    def texts(self, texts: Sequence[str], keys: Sequence[str]) -> ImageTextBatch:
        """A batch of what BART needs alone.

        Args:
            texts: B texts.
            keys: B keys of the samples, that decide the corruption.
        """
        rngs = [np.random.default_rng((self.seed, crc32(key.encode(errors="surrogateescape")))) for key in keys]
        infilling = self.infilling(texts, rngs)
        labels = infilling["labels"]  # the clean texts' ids, which need not be made again
        return {
            "bart_text_ids": labels.masked_fill(labels == -100, self.infilling.tokenizer.pad_token_id),
            "bart_text_mask": (labels != -100).long(),
            "corrupted_ids": infilling["corrupted_ids"],
            "corrupted_mask": infilling["corrupted_mask"],
            "labels": labels,
            "keys": list(keys),
        }

    def evaluation(self, samples: Sequence[ImageTexts]) -> EvaluationBatch:
        """A batch of images with all their texts, corrupted in the same way each time."""
        firsts: list[ImageText] = [
            {"image": sample["image"], "text": sample["references"][0], "key": str(sample["image_id"])}
            for sample in samples
        ]
        return {
            **self(firsts),
            "image_id": torch.tensor([sample["image_id"] for sample in samples]),
            "references": [sample["references"] for sample in samples],
        }
