"""Decoding of raw samples to an image and its text, with counts of the samples that are skipped."""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vlkd_pl.batch import ImageText
from vlkd_pl.images import ImageSizeError, open_image, upright

RawSample = dict[str, Any]

SKIP_REASONS = ("broken_tar", "missing_part", "unreadable_image", "not_rgb", "too_large", "empty_text")
"""Reasons for skipping a sample; ``broken_tar`` counts corrupt shards, whose remaining samples are lost."""

COUNTED = (*SKIP_REASONS, "retries", "seen")
"""The counters of a decoder; ``retries`` are repeated reads, ``seen`` are raw samples, good or bad."""

_IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
MAX_IMAGE_PIXELS = 50_000_000
"""Default maximum of an image's pixels (width times height) in training."""

PAIR_PARTS = (*_IMAGE_EXTENSIONS, "txt")
"""Extensions of the image and the text of a sample."""

SAMPLE_PARTS = (*PAIR_PARTS, "json")
"""Extensions that are read: image, text, and img2dataset's metadata; other members are skipped."""

_INVISIBLE_CATEGORIES = ("Cc", "Cf", "Mn", "Me", "Zl", "Zp", "Zs")
_INVISIBLE_CHARACTERS = "\u115f\u1160\u2800\u3164\uffa0\ufffd"  # fillers, an empty pattern, and undecodable bytes


class SampleDecoder:
    """Decoder of raw samples, which counts the samples that it skips and why.

    Args:
        transform: Function from an RGB image to a tensor.
        max_image_pixels: Maximum of an image's pixels; larger images are skipped before they are decoded.
        skip_non_rgb: Whether to skip images of another mode than RGB; otherwise they are converted.
        num_workers: Number of data workers that share the counts; 0 for the main process alone.
        draft_size: Minimum of the shorter side, in pixels, down to which JPEG images are decoded at a half, a quarter
            or an eighth of their size; None to decode all at full size.

    Example:
        >>> from vlkd_pl.clip.transform import clip_transform
        >>> decoder = SampleDecoder(clip_transform(64), MAX_IMAGE_PIXELS, skip_non_rgb=True, num_workers=0)
        >>> decoder({"__key__": "0", "txt": b"a red fish"}, worker=0) is None
        True
        >>> skip_summary(decoder.skipped)
        '1 missing_part'
    """

    def __init__(
        self,
        transform: Callable[[Image.Image], Tensor],
        max_image_pixels: int,
        skip_non_rgb: bool,
        num_workers: int,
        draft_size: int | None = None,
    ) -> None:
        self.transform = transform
        self.max_image_pixels = max_image_pixels
        self.skip_non_rgb = skip_non_rgb
        self.num_workers = num_workers
        self.draft_size = draft_size
        self.reset_counts()

    def reset_counts(self) -> None:
        """Set all counts to 0, in memory that this process shares with its workers but not with forked ranks."""
        # one row for each worker, which alone writes to it
        self.counts = torch.zeros(max(1, self.num_workers), len(COUNTED), dtype=torch.int64).share_memory_()

    def __call__(self, raw: RawSample, worker: int) -> ImageText | None:
        """Decode and count a raw sample; None if it is skipped."""
        self.count("seen", worker)
        sample = self.decode(raw)
        if isinstance(sample, str):
            self.count(sample, worker)
            return None
        return sample

    def decode(self, raw: RawSample) -> ImageText | str:
        """Decode a raw sample without counting it; the reason of ``SKIP_REASONS`` if it is to be skipped."""
        extension = image_extension(raw)
        if extension is None or "txt" not in raw:
            return "missing_part"
        text = caption(raw)
        if not text:
            return "empty_text"
        try:
            with open_image(io.BytesIO(raw[extension]), self.max_image_pixels) as image:
                if image.mode != "RGB" and self.skip_non_rgb:
                    return "not_rgb"
                if self.draft_size is not None:
                    image.draft(None, (self.draft_size, self.draft_size))
                image.load()
                pixels = upright(image if image.mode == "RGB" else image.convert("RGB"))
        except (ImageSizeError, Image.DecompressionBombError):
            return "too_large"
        except Exception:  # what Pillow's decoders raise on a damaged file differs between its versions
            return "unreadable_image"
        return {"image": self.transform(pixels), "text": text, "key": raw["__key__"]}

    def count(self, counter: str, worker: int) -> None:
        """Add 1 to a counter of ``COUNTED``, in the row of a worker."""
        self.counts.numpy()[worker, COUNTED.index(counter)] += 1  # torch would take as long as reading a header

    @property
    def num_seen(self) -> int:
        """Number of raw samples that all workers have decoded or skipped."""
        return int(self.counts[:, COUNTED.index("seen")].sum())

    @property
    def num_retries(self) -> int:
        """Number of reads that all workers have repeated."""
        return int(self.counts[:, COUNTED.index("retries")].sum())

    @property
    def skipped(self) -> dict[str, int]:
        """Number of samples that all workers have skipped, by reason."""
        return dict(zip(SKIP_REASONS, self.counts.sum(0).tolist(), strict=False))


def skip_summary(skipped: Mapping[str, int], nothing: str = "none") -> str:
    """Format the counts of skipped samples as text.

    Args:
        skipped: Number of samples by reason; reasons with 0 are left out.
        nothing: Text for no skipped sample.

    Example:
        >>> skip_summary({"too_large": 1200, "not_rgb": 0, "empty_text": 3})
        '1,200 too_large, 3 empty_text'
    """
    return ", ".join(f"{num:,} {reason}" for reason, num in skipped.items() if num) or nothing


def image_extension(raw: RawSample) -> str | None:
    """The extension of a raw sample's image part; None without an image."""
    return next((extension for extension in _IMAGE_EXTENSIONS if extension in raw), None)


def caption(raw: RawSample) -> str:
    """The text of a raw sample; empty if it is missing or blank (``is_blank``)."""
    text: str = raw.get("txt", b"").decode("utf-8", "replace").strip()
    return "" if is_blank(text) else text


def is_blank(text: str) -> bool:
    r"""Return whether a text holds only white space, control characters and characters without width.

    Example:
        >>> is_blank(" \u200b\n"), is_blank(" a fish")
        (True, False)
    """
    return all(
        unicodedata.category(character) in _INVISIBLE_CATEGORIES or character in _INVISIBLE_CHARACTERS
        for character in text
    )
