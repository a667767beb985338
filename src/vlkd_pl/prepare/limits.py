"""Limits on the samples of a dataset, and a decoder that checks them."""

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
"""Reasons for leaving a sample out; ``broken_tar`` counts corrupt shards, whose remaining samples are lost."""


@dataclass(frozen=True)
class SampleLimits:
    """Limits on the images and captions of a dataset.

    Args:
        min_side: Minimum of an image's shorter side in pixels.
        max_pixels: Maximum of an image's pixels, width times height.
        max_aspect_ratio: Maximum of longer side over shorter side.
        min_words: Minimum number of words in a caption.
        max_words: Maximum number of words in a caption.

    Example:
        >>> SampleLimits(min_words=3).reason(640, 480, "a fish")
        'caption_length'
    """

    min_side: int = 64
    max_pixels: int = MAX_IMAGE_PIXELS
    max_aspect_ratio: float = 4.0
    min_words: int = 2
    max_words: int = 100

    def reason(self, width: int, height: int, text: str) -> str | None:
        """The reason of ``LOSS_REASONS`` for leaving a sample out; None for a sample within the limits."""
        if min(width, height) < self.min_side:
            return "too_small"
        if max(width, height) > self.max_aspect_ratio * min(width, height):
            return "too_long_or_flat"
        if not self.min_words <= len(text.split()) <= self.max_words:
            return "caption_length"
        return None


class PreparationDecoder:
    """Decoder of raw samples for their sizes, which also reports the samples that training skips by default.

    Args:
        max_pixels: Maximum of an image's pixels, width times height.
    """

    def __init__(self, max_pixels: int) -> None:
        self._in_training = SampleDecoder(_size, min(max_pixels, MAX_IMAGE_PIXELS), skip_non_rgb=True, num_workers=0)
        self._lenient = SampleDecoder(_size, max_pixels, skip_non_rgb=False, num_workers=0)

    def __call__(self, raw: RawSample) -> tuple[ImageText | str, str | None]:
        """Decode a raw sample.

        Returns:
            The sample with width and height as ``image``, or the reason why it is unreadable; and the reason why
            training skips a readable sample by default, or None.
        """
        sample = self._in_training.decode(raw)
        if not isinstance(sample, str):
            return sample, None
        reason = sample
        sample = self._lenient.decode(raw)
        return sample, None if isinstance(sample, str) else reason


def _size(image: Image.Image) -> Tensor:
    return torch.tensor(image.size)
