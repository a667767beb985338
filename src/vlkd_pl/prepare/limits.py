"""Which samples are worth keeping, and what a decoder makes of one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from vlkd_pl.batch import ImageText
from vlkd_pl.shards.decoder import (
    MAX_IMAGE_PIXELS,
    SKIP_REASONS,
    RawSample,
    SampleDecoder,
)

LOSS_REASONS = (*SKIP_REASONS, "too_small", "too_long_or_flat", "caption_length", "repeated_key", "duplicate")
"""Why a sample is left out; ``broken_tar`` counts shards, of which the rest is lost."""


@dataclass(frozen=True)
class SampleLimits:
    """Which samples are taken.

    Args:
        min_side: Pixels of an image's shorter side at least.
        max_pixels: Pixels of an image at most.
        max_aspect_ratio: Longer side over shorter side at most.
        min_words: Words of a caption at least.
        max_words: Words of a caption at most.
    """

    min_side: int = 64
    max_pixels: int = MAX_IMAGE_PIXELS
    max_aspect_ratio: float = 4.0
    min_words: int = 2
    max_words: int = 100

    def reason(self, width: int, height: int, text: str) -> str | None:
        """Why a sample is not taken; None where it is."""
        if min(width, height) < self.min_side:
            return "too_small"
        if max(width, height) > self.max_aspect_ratio * min(width, height):
            return "too_long_or_flat"
        if not self.min_words <= len(text.split()) <= self.max_words:
            return "caption_length"
        return None


class PreparationDecoder:
    """Decodes raw samples for their sizes, and says which of the readable ones training skips by default.

    Args:
        max_pixels: Pixels of an image at most.
    """

    def __init__(self, max_pixels: int) -> None:
        self._in_training = SampleDecoder(_size, min(max_pixels, MAX_IMAGE_PIXELS), skip_non_rgb=True, num_workers=0)
        self._lenient = SampleDecoder(_size, max_pixels, skip_non_rgb=False, num_workers=0)

    def __call__(self, raw: RawSample) -> tuple[ImageText | str, str | None]:
        """Decode a sample.

        Returns:
            The sample, whose ``image`` is its width and height, or the reason why it is not readable; and the reason
            why training skips a readable one, or None.
        """
        sample = self._in_training.decode(raw)
        if not isinstance(sample, str):
            return sample, None
        reason = sample
        sample = self._lenient.decode(raw)
        return sample, None if isinstance(sample, str) else reason


def _size(image: Image.Image) -> Tensor:
    return torch.tensor(image.size)
