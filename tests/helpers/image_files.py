"""Image files with metadata of every kind, good and damaged, around the same pixels."""

import io
import random
import struct
import zlib

import numpy as np
from PIL import Image

SIZE = (40, 24)
PIXELS = Image.fromarray(
    (np.add.outer(np.arange(24) * 6, np.arange(40) * 3)[..., None] + np.array([0, 20, 40])).clip(0, 255).astype("uint8")
)
"""A gradient that looks different in each orientation."""

ORIENTATION, X_RESOLUTION, RESOLUTION_UNIT, EXIF_DIRECTORY = 0x0112, 0x011A, 0x0128, 0x8769


def encoded(image=PIXELS, image_format="PNG", **options):
    """An image file's bytes."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def exif(*entries, byte_order="<"):
    """An EXIF block; each entry is the tag, the type, the count, and four bytes or a number."""
    block = (b"II*\0" if byte_order == "<" else b"MM\0*") + struct.pack(f"{byte_order}IH", 8, len(entries))
    for tag, kind, count, value in entries:
        if not isinstance(value, bytes):
            value = struct.pack(f"{byte_order}{'H' if kind == 3 else 'I'}", value).ljust(4, b"\0")
        block += struct.pack(f"{byte_order}HHI", tag, kind, count) + value
    return block + bytes(4)


def orientation_block(orientation, byte_order="<"):
    """An EXIF block with an orientation."""
    return exif((ORIENTATION, 3, 1, orientation), byte_order=byte_order)


def segment(marker, payload):
    """A segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, len(payload) + 2) + payload


def jpeg(*segments, jfif=True):
    """A JPEG with further segments at its beginning."""
    content = encoded(image_format="JPEG", quality=95)
    return content[:2] + b"".join(segments) + content[2 if jfif else 20 :]


def chunk(name, payload):
    """A chunk of a PNG."""
    return struct.pack(">I", len(payload)) + name + payload + struct.pack(">I", zlib.crc32(name + payload))


def png(before=(), after=()):
    """A PNG with further chunks before and after its pixels."""
    content = encoded()
    start, end = content.index(b"IDAT") - 4, content.rindex(b"IEND") - 4
    return content[:start] + b"".join(before) + content[start:end] + b"".join(after) + content[end:]


def with_exif(block):
    """Files with an EXIF block, by format and position."""
    return {
        "jpeg": jpeg(segment(0xE1, b"Exif\0\0" + block)),
        "jpeg without jfif": jpeg(segment(0xE1, b"Exif\0\0" + block), jfif=False),
        "png": png(before=[chunk(b"eXIf", block)]),
        "png, behind the pixels": png(after=[chunk(b"eXIf", block)]),
        "webp": encoded(image_format="WEBP", lossless=True, exif=block),
    }


def with_metadata(payload, rng):
    """A JPEG and two PNG files with other metadata of the content ``payload``."""
    heads = {
        0xE0: b"JFIF\0",
        0xE1: b"http://ns.adobe.com/xap/1.0/\0",
        0xE2: rng.choice([b"MPF\0", b"ICC_PROFILE\0" + bytes([rng.randrange(3), rng.randrange(3)])]),
        0xED: b"Photoshop 3.0\0" + rng.choice([b"", b"8BIM\4\4"]),
        0xEE: b"Adobe",
        0xFE: b"",
    }
    marker = rng.choice(sorted(heads))
    payload_of_segment = payload[: rng.randrange(6)] if marker in (0xE0, 0xEE) else payload
    names = b"iCCP tEXt zTXt iTXt pHYs gAMA cHRM sRGB tIME acTL fcTL fdAT tRNS sBIT bKGD hIST sPLT abCd".split()
    further = chunk(rng.choice(names), payload)
    return {
        f"jpeg with {marker:x}": jpeg(segment(marker, heads[marker] + payload_of_segment)),
        f"png with {further[4:8]}": png(before=[further]),
        f"png with {further[4:8]} behind": png(after=[further]),
        "png with a wrong checksum": png(before=[further[:-1] + bytes([further[-1] ^ 255])]),
    }


def damaged_tiff(rng):
    """A TIFF with a valid directory, except for tags that do not concern the pixels."""
    tags = {
        **{ORIENTATION: 1, 0x010F: "maker", X_RESOLUTION: 72.0, 0x011B: 72.0, RESOLUTION_UNIT: 3, 700: b"<x/>"},
        **{33723: b"iptc", 34377: b"8BIM"},
    }
    content = bytearray(encoded(image_format="TIFF", tiffinfo=tags, compression=rng.choice([None, "tiff_lzw"])))
    (start,) = struct.unpack("<I", content[4:8])
    (number,) = struct.unpack("<H", content[start : start + 2])
    for place in range(start + 2, start + 2 + 12 * number, 12):
        (tag,) = struct.unpack("<H", content[place : place + 2])
        if tag not in tags:
            continue
        new_tag = rng.choice([tag, tag, 0x8769, 0x8825, 0xA005, 330])
        if new_tag > tag:
            content[place : place + 2] = struct.pack("<H", new_tag)
        if rng.random() < 0.5:
            content[place + 2 : place + 4] = struct.pack("<H", rng.choice([0, 1, 2, 3, 4, 5, 7, 9, 10, 12, 13, 16, 99]))
        if rng.random() < 0.5:
            content[place + 4 : place + 8] = struct.pack("<I", rng.choice([0, 1, 2, 5, 1000, 2**31, 2**32 - 1]))
        if rng.random() < 0.5:
            content[place + 8 : place + 12] = struct.pack("<I", rng.choice([0, 1, start, 2**31, 2**32 - 1]))
    end = start + 2 + 12 * number
    content[end : end + 4] = struct.pack("<I", rng.choice([0, start, 3, 10**8]))  # where the next page is
    return bytes(content)


def mutated(content, rng):
    """Bytes with some of them changed, inserted or cut off."""
    content = bytearray(content)
    place = rng.randrange(len(content))
    match rng.randrange(4):
        case 0:
            for _ in range(rng.randint(1, 8)):
                content[rng.randrange(len(content))] = rng.randrange(256)
        case 1:
            del content[max(1, place) :]
        case 2:
            content[place : place + 4] = rng.choice([b"\xff" * 4, bytes(4), b"\x7f\xff\xff\xff", b"\x80\0\0\0"])
        case 3:
            content[place:place] = rng.randbytes(rng.randint(1, 20))
    return bytes(content)


def every_format():
    """Files of each format and of many modes, also of several frames."""
    frames = {"save_all": True, "append_images": [PIXELS.resize((30, 30)), PIXELS.transpose(0)]}
    same_size = frames | {"append_images": [PIXELS.transpose(0)]}
    block = b"Exif\0\0" + orientation_block(6)
    files = {
        "JPEG": encoded(PIXELS, "JPEG", exif=block, progressive=True),
        "PNG": encoded(PIXELS, "PNG", exif=block),
        "WEBP": encoded(PIXELS, "WEBP", exif=block),
        "TIFF of JPEG": encoded(PIXELS, "TIFF", compression="jpeg"),
        "animated WEBP": encoded(PIXELS, "WEBP", **same_size),
        "animated PNG": encoded(PIXELS, "PNG", **same_size),
        "animated GIF": encoded(PIXELS.convert("P"), "GIF", transparency=3, **frames),
        "TIFF of pages": encoded(PIXELS, "TIFF", **frames),
        "MPO": encoded(PIXELS, "MPO", exif=block, **same_size),
    }
    modes = {
        "GIF": "P",
        "BMP": "RGB P 1 L",
        "TIFF": "RGB 1 L P CMYK RGBA LAB I;16",
        "PPM": "RGB L 1",
        "PNG": "1 L P LA RGBA I;16",
        "JPEG": "L CMYK",
        "WEBP": "RGBA",
    }
    for image_format, names in modes.items():
        for mode in names.split():
            image = PIXELS.convert("L").convert("I").convert("I;16") if mode == "I;16" else PIXELS.convert(mode)
            files[f"{image_format} of {mode}"] = encoded(image, image_format)
    return files


def rng_of(seed):
    """A source of random numbers."""
    return random.Random(seed)
