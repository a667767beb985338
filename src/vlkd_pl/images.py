"""Opening of image files: the one place that handles formats, sizes, metadata and orientation."""

from __future__ import annotations

import io
import os
import stat
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

from PIL import Image

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Pillow's names of the allowed formats; for some others Pillow would start external programs."""

MAX_PIXELS = 178_956_970
"""Maximum of an image's pixels (width times height), Pillow's limit against decompression bombs."""

MAX_ASPECT_RATIO = 100
"""Maximum of longer side over shorter side; CLIP's transform would scale a thinner image to gigabytes."""

MAX_FILE_BYTES = 2**30
"""Maximum size of an image file in bytes; an uncompressed image of ``MAX_PIXELS`` is smaller."""

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
_PNG_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_WEBP_CHUNKS = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ANIM", b"ANMF")
_TIFF_TAGS = frozenset(
    {
        *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284),  # size, type, compression and place of the pixels
        *(292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339, 347),  # fax, predictor, palette, tiles, samples, JPEG
        *(*range(512, 522), *range(529, 533)),  # JPEG of TIFF 6.0, YCbCr
    }
)

# check_image_size decides instead of Pillow, which would warn from half of MAX_PIXELS on
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


class ImageError(ValueError):
    """An image cannot be used: its file is missing, unreadable or corrupt, or its format or size is not allowed."""


class ImageSizeError(ImageError):
    """An image is empty, too large, or too thin."""


def check_image_size(width: int, height: int, max_pixels: int = MAX_PIXELS) -> None:
    """Refuse an image by its size, before it is decoded or scaled.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        max_pixels: Maximum of the image's pixels.

    Raises:
        ImageSizeError: The image is empty, has more than ``max_pixels``, or exceeds ``MAX_ASPECT_RATIO``.

    Example:
        >>> check_image_size(640, 480)
        >>> check_image_size(640, 0)
        Traceback (most recent call last):
        vlkd_pl.images.ImageSizeError: an image of 640 x 0 pixels is empty
    """
    if min(width, height) < 1:
        raise ImageSizeError(f"an image of {width} x {height} pixels is empty")
    if width * height > max_pixels:
        raise ImageSizeError(f"an image of {width} x {height} pixels is too large: the maximum is {max_pixels:,}")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ImageSizeError(f"an image of {width} x {height} pixels is too thin: the maximum is {MAX_ASPECT_RATIO}:1")


@contextmanager
def open_image(file: str | Path | IO[bytes], max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an image without decoding it.

    The metadata (EXIF, XMP, ICC profiles, comments, indices of further images) is removed before Pillow parses the
    file, since damaged metadata would make a good image unreadable.

    Args:
        file: Path of an image file, or a file open for reading bytes.
        max_pixels: Maximum of the image's pixels.

    Yields:
        Image of one of ``IMAGE_FORMATS``, whose size ``check_image_size`` accepts, for ``as_rgb`` or ``upright``.

    Raises:
        ImageError: The file is missing, is not a regular file, or is not a readable image of these formats; or the
            ``with`` block raised the error. The message starts with the path.
        ImageSizeError: The image is empty, too large or too thin.
    """
    try:
        content, exif = _without_metadata(_content(file))
        with _opened(content) as image:
            check_image_size(*image.size, max_pixels)
            image.info["exif_orientation"] = _orientation(exif)
            yield image
    except ImageError as error:
        if isinstance(file, str | Path):
            raise type(error)(f"{file}: {error}") from error
        raise


def read_image(file: str | Path | IO[bytes], max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image file as RGB, turned upright.

    Args:
        file: Path of an image file, or a file open for reading bytes.
        max_pixels: Maximum of the image's pixels, width times height.

    Raises:
        ImageError: The file is missing, is not a readable image of ``IMAGE_FORMATS``, or has a size that is not
            allowed. The message starts with the path.

    Example:
        >>> file = io.BytesIO()
        >>> Image.new("L", (100, 80)).save(file, "PNG")
        >>> _ = file.seek(0)
        >>> read_image(file)
        <PIL.Image.Image image mode=RGB size=100x80...>
    """
    with open_image(file, max_pixels) as image:
        return as_rgb(image)


def check_image(file: str | Path) -> None:
    """Check that an image file can be decoded; a JPEG is decoded at an eighth of its size.

    Args:
        file: Path of the image file.

    Raises:
        ImageError: The image cannot be read; see ``read_image``.
    """
    with open_image(file) as image:
        image.draft(None, (1, 1))
        as_rgb(image)


def upright(image: Image.Image) -> Image.Image:
    """Turn an image upright by its EXIF orientation tag; a damaged tag and XMP are ignored.

    Args:
        image: Image of ``open_image``, or any other PIL image.

    Raises:
        Exception: The image cannot be decoded.
    """
    image.load()  # Pillow turns a TIFF itself and removes its tag
    orientation = image.info.get("exif_orientation")
    if orientation is None:
        exif = image.info.get("exif")
        orientation = _orientation(exif) if isinstance(exif, bytes) else _tiff_orientation(image)
    if orientation not in _TRANSPOSITIONS:
        return image
    turned = image.transpose(_TRANSPOSITIONS[orientation])
    turned.info = {}  # without it the image would be turned again
    return turned


def as_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to RGB and turn it upright; 16-bit grey is scaled to 8 bits, which Pillow would clip.

    Args:
        image: Image of ``open_image``, or any other PIL image.

    Raises:
        ImageError: The image is corrupt, or its pixels are floats, whose white level is unknown.
        ImageSizeError: The image is empty, too large or too thin.

    Example:
        >>> as_rgb(Image.new("I;16", (2, 2), 65535)).getpixel((0, 0))
        (255, 255, 255)
    """
    check_image_size(*image.size)
    if image.mode == "F":
        raise ImageError("its pixels are floats: save it with 8 or 16 bits")
    try:
        image = upright(image)
        if image.mode.startswith("I"):
            image = image.convert("I").point(lambda value: value / 256).convert("L")
        if "transparency" in image.info and image.mode != "RGB":
            image = image.copy()
            del image.info["transparency"]  # Pillow would convert it too, or warn that it cannot
        return image.convert("RGB")
    except Exception as error:  # on corrupt data, Pillow's decoders raise errors of many classes
        raise ImageError(f"it cannot be decoded: {_one_line(error)}") from error


def _content(file: str | Path | IO[bytes]) -> bytes:
    if not isinstance(file, str | Path):
        return file.read()
    try:
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO or a device may block or have side effects
            raise ImageError("it is a folder" if stat.S_ISDIR(status.st_mode) else "it is not a regular file")
        if status.st_size == 0:  # also files of /proc, some of which block
            raise ImageError("the file is empty")
        if status.st_size > MAX_FILE_BYTES:
            raise ImageError(f"the file is too large with {status.st_size:,} bytes: the maximum is {MAX_FILE_BYTES:,}")
        return Path(file).read_bytes()
    except (OSError, ValueError) as error:  # a ValueError means that no file can have this path
        raise ImageError(getattr(error, "strerror", None) or _one_line(error)) from error


def _opened(content: bytes) -> Image.Image:
    try:
        return Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageSizeError(_one_line(error).rstrip(".")) from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"it is not a readable image of the formats {', '.join(IMAGE_FORMATS)}") from error
    except Exception as error:  # Pillow raises errors of many classes
        raise ImageError(f"it cannot be opened: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# Metadata


def _without_metadata(content: bytes) -> tuple[bytes, bytes]:
    """Remove the metadata of an image file; returns the file and its EXIF block, empty for none.

    Parts that violate the format stay as they are, for Pillow to judge.
    """
    readers: dict[bytes, Callable[[bytes], tuple[bytes, bytes]]] = {
        b"\xff\xd8": _plain_jpeg,
        b"\x89P": _plain_png,
        b"RI": _plain_webp,
        b"II": _plain_tiff,
        b"MM": _plain_tiff,
    }
    plain = readers.get(content[:2])
    return plain(content) if plain is not None else (content, b"")


def _plain_jpeg(content: bytes) -> tuple[bytes, bytes]:
    parts, exif, place = [content[:2]], b"", 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker, length = content[place + 1], int.from_bytes(content[place + 2 : place + 4], "big")
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == 0xDA or 0xD0 <= marker <= 0xD9 or marker < 0xC0 or length < 2:  # pixels, or not a segment
            break
        segment = content[place : place + 2 + length]
        place += 2 + length
        if 0xE0 <= marker <= 0xEF or marker == 0xFE:
            # libjpeg reads the colour space from these two
            is_jfif = marker == 0xE0 and segment[4:].startswith(b"JFIF\0") and len(segment) >= 18
            is_adobe = marker == 0xEE and segment[4:].startswith(b"Adobe") and len(segment) >= 16
            if marker == 0xE1 and segment[4:].startswith(b"Exif\0\0"):
                exif = exif or segment[4:]
            if not is_jfif and not is_adobe:
                continue
        parts.append(segment)
    return b"".join([*parts, content[place:]]), exif


def _plain_png(content: bytes) -> tuple[bytes, bytes]:
    parts, exif, place = [content[:8]], b"", 8
    while place + 12 <= len(content):
        name, length = content[place + 4 : place + 8], int.from_bytes(content[place : place + 4], "big")
        if name == b"eXIf":
            exif = exif or content[place + 8 : place + 8 + length]
        if name in _PNG_CHUNKS:
            parts.append(content[place : place + 12 + length])
        place += 12 + length
        if name == b"IEND":
            break
    return b"".join([*parts, content[place:]]), exif


def _plain_webp(content: bytes) -> tuple[bytes, bytes]:
    parts, exif, place = [content[8:12]], b"", 12
    while place + 8 <= len(content):
        name, length = content[place : place + 4], int.from_bytes(content[place + 4 : place + 8], "little")
        chunk = content[place : place + 8 + length + length % 2]
        if name == b"VP8X" and len(chunk) > 8:
            chunk = chunk[:8] + bytes([chunk[8] & ~0x2C]) + chunk[9:]  # clear the flags of profile, EXIF and XMP
        if name == b"EXIF":
            exif = exif or chunk[8 : 8 + length]
        if name in _WEBP_CHUNKS:
            parts.append(chunk)
        place += 8 + length + length % 2
    plain = b"".join(parts)
    return b"RIFF" + len(plain).to_bytes(4, "little") + plain, exif


def _plain_tiff(content: bytes) -> tuple[bytes, bytes]:
    """Keep the first page alone: a new directory at the end of the file replaces the first one."""
    order, is_big, entries = _directory(content)
    pixel_entries = [entry for entry in entries if int.from_bytes(entry[:2], order) in _TIFF_TAGS]
    if not pixel_entries:
        return content, b""
    head, number, size = (8, 8, 8) if is_big else (4, 2, 4)  # bytes of the header, of the count and of an address
    content += bytes(-len(content) % 8)
    plain = [
        content[:head],
        len(content).to_bytes(size, order),
        content[head + size :],
        len(pixel_entries).to_bytes(number, order),
        *pixel_entries,
        bytes(size),
    ]
    return b"".join(plain), content


def _orientation(exif: bytes) -> int:
    """The orientation, from 1 to 8, of an EXIF block or a TIFF file; 1, upright, without a valid tag."""
    order, is_big, entries = _directory(exif.removeprefix(b"Exif\0\0"))
    first = 12 if is_big else 8
    for entry in entries:
        tag, kind = (int.from_bytes(entry[place : place + 2], order) for place in (0, 2))
        if tag == _ORIENTATION_TAG and kind in (3, 4) and int.from_bytes(entry[4:first], order) == 1:
            value = int.from_bytes(entry[first : first + (2 if kind == 3 else 4)], order)
            return value if value in _TRANSPOSITIONS else 1
    return 1


def _directory(content: bytes) -> tuple[Literal["little", "big"], bool, list[bytes]]:
    """Read the byte order of a TIFF file or EXIF block, whether it is a BigTIFF, and its first directory's entries."""
    order: Literal["little", "big"] = "little" if content[:2] == b"II" else "big"
    version = content[2:4]
    is_big = version in (b"+\0", b"\0+")
    if content[:2] not in (b"II", b"MM") or not (is_big or version in (b"*\0", b"\0*")):
        return order, False, []
    start = int.from_bytes(content[8:16] if is_big else content[4:8], order)
    number, size = (8, 20) if is_big else (2, 12)
    room = max(0, len(content) - start - number) // size
    num_entries = min(int.from_bytes(content[start : start + number], order), room)
    start += number
    return order, is_big, [content[start + size * index : start + size * (index + 1)] for index in range(num_entries)]


def _tiff_orientation(image: Image.Image) -> int:
    """The orientation of a TIFF that was opened elsewhere and that Pillow does not turn; otherwise 1."""
    try:
        value = getattr(image, "tag_v2", {}).get(_ORIENTATION_TAG)
    except Exception:  # Pillow decodes a tag on access, and may fail in many ways
        return 1
    return value if isinstance(value, int) else 1
