"""From the parts of a sample to an image and its text; counts what is skipped."""

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
"""Why a sample is skipped; ``broken_tar`` counts shards, of which the rest is lost."""

COUNTED = (*SKIP_REASONS, "retries", "seen")
"""What is counted; ``retries`` are reads tried again, ``seen`` are raw samples looked at."""

_IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
MAX_IMAGE_PIXELS = 50_000_000
"""Pixels of an image in training at most, by default."""

PAIR_PARTS = (*_IMAGE_EXTENSIONS, "txt")
"""Extensions of the parts of a sample that make a pair."""

SAMPLE_PARTS = (*PAIR_PARTS, "json")
"""Those and img2dataset's metadata; members with other extensions are not read."""

_INVISIBLE_CATEGORIES = ("Cc", "Cf", "Mn", "Me", "Zl", "Zp", "Zs")
_INVISIBLE_CHARACTERS = "\u115f\u1160\u2800\u3164\uffa0\ufffd"  # fillers, an empty pattern, and undecodable bytes


class SampleDecoder:
    """Makes samples of raw ones, and counts those that are no good.

    Args:
        transform: From an image to a tensor.
        max_image_pixels: Images with more are skipped before they are decoded.
        skip_non_rgb: Whether images of another mode are skipped; they are converted otherwise.
        num_workers: Workers that count.
        draft_size: JPEG images are decoded at a half, a quarter or an eighth of their size where that leaves this
            many pixels of the shorter side; None for their full size.
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
        self.forget()

    def forget(self) -> None:
        """Begins to count, in this process and its workers alone: ranks that are forked would share the counts."""
        # one row for each worker, which alone writes it; shared with the main process
        self.counts = torch.zeros(max(1, self.num_workers), len(COUNTED), dtype=torch.int64).share_memory_()

    def __call__(self, raw: RawSample, worker: int) -> ImageText | None:
        """The sample, or None where it is skipped."""
        self.count("seen", worker)
        sample = self.decoded(raw)
        if isinstance(sample, str):
            self.count(sample, worker)
            return None
        return sample

    def decoded(self, raw: RawSample) -> ImageText | str:
        """The sample, or the reason why it is no good; it is not counted."""
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

    def count(self, what: str, worker: int) -> None:
        """Counts one thing of ``COUNTED``."""
        self.counts.numpy()[worker, COUNTED.index(what)] += 1  # through torch it would take as long as reading a header

    @property
    def num_seen(self) -> int:
        """Raw samples looked at by all workers."""
        return int(self.counts[:, COUNTED.index("seen")].sum())

    @property
    def num_retries(self) -> int:
        """Reads that were tried again, by all workers."""
        return int(self.counts[:, COUNTED.index("retries")].sum())

    @property
    def skipped(self) -> dict[str, int]:
        """How much was skipped for each reason, by all workers."""
        return dict(zip(SKIP_REASONS, self.counts.sum(0).tolist(), strict=False))


def told_by_reason(skipped: Mapping[str, int], nothing: str = "none") -> str:
    """What was skipped, in words; ``nothing`` where nothing was."""
    return ", ".join(f"{num:,} {reason}" for reason, num in skipped.items() if num) or nothing


def image_extension(raw: RawSample) -> str | None:
    """The extension of the part that is the image; None where there is none."""
    return next((extension for extension in _IMAGE_EXTENSIONS if extension in raw), None)


def caption(raw: RawSample) -> str:
    """The text of a raw sample; empty where it has none, or none that can be seen: see ``is_blank``."""
    text: str = raw.get("txt", b"").decode("utf-8", "replace").strip()
    return "" if is_blank(text) else text


def is_blank(text: str) -> bool:
    """Whether a text has nothing to read: only white space, NUL and control characters, and such as have no width."""
    return all(
        unicodedata.category(character) in _INVISIBLE_CATEGORIES or character in _INVISIBLE_CHARACTERS
        for character in text
    )
