"""How image files are opened: the one place where formats, sizes and EXIF orientation are handled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from PIL import Image

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Pillow's names of the formats that are opened; Pillow itself would start other programs for some of the rest."""

MAX_PIXELS = 178_956_970
"""Width times height of an image at most, as Pillow's own limit against decompression bombs."""

MAX_ASPECT_RATIO = 100
"""Longer side over shorter side at most: CLIP's transform scales the shorter side, a thin image to gigabytes."""

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What opening, decoding and ``as_rgb`` raise for a file that is not a readable image."""

_ORIENTATION_TAG = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageSizeError(ValueError):
    """An image is empty, too large, or too thin."""


def check_image_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Refuses an image by its size, before it is decoded or scaled.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        max_pixels: Pixels of an image at most.

    Raises:
        ImageSizeError: The image is empty, has more than ``max_pixels``, or is thinner than ``MAX_ASPECT_RATIO``.
    """
    if min(width, height) < 1:
        raise ImageSizeError(f"an image of {width} x {height} pixels is empty")
    if width * height > max_pixels:
        raise ImageSizeError(f"an image of {width} x {height} pixels is too large: {max_pixels:,} are read at most")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageSizeError(
            f"an image of {width} x {height} pixels is too thin: sides of {MAX_ASPECT_RATIO}:1 are read at most"
        )


@contextmanager
def open_image(file: str | Path | IO[bytes], max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Opens an image without decoding it.

    Args:
        file: Path of an image file, or one open for reading.
        max_pixels: Pixels of an image at most.

    Yields:
        The image, of one of ``IMAGE_FORMATS`` and of a size that ``check_image_size`` accepts.

    Raises:
        OSError: The file is missing, or is not a readable image of these formats.
        ImageSizeError: The image is empty, too large or too thin.
        PIL.Image.DecompressionBombError: The image is larger than Pillow's own limit.
    """
    with Image.open(file, formats=IMAGE_FORMATS) as image:
        check_image_size(*image.size, max_pixels)
        yield image


def upright(image: Image.Image) -> Image.Image:
    """Turns an image as its EXIF orientation tag says; no other EXIF content is read, and a damaged one is ignored."""
    try:
        method = _TRANSPOSITIONS.get(image.getexif().get(_ORIENTATION_TAG))
    except Exception:  # Pillow's parser raises errors of many classes; without a readable tag the image is upright
        return image
    return image if method is None else image.transpose(method)


def as_rgb(image: Image.Image) -> Image.Image:
    """Converts an image to RGB and turns it upright; 16-bit grey becomes 8-bit, which Pillow itself would clip.

    Raises:
        OSError: The image is damaged.
        ImageSizeError: It is empty, too large or too thin.
        ValueError: Its pixels are floats, whose white level is unknown.
    """
    check_image_size(*image.size)
    if image.mode == "F":
        raise ValueError("its pixels are floats: save it with 8 or 16 bits")
    image = upright(image)
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    return image.convert("RGB")
