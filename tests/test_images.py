"""Opening of images: damaged metadata, refused sizes, and files that are not images."""

import io
import os
import warnings
from pathlib import Path

import image_files
import numpy as np
import pytest
from image_files import PIXELS, SIZE, encoded, exif, jpeg, orientation_block, segment, with_exif
from PIL import Image

from vlkd_pl.images import ImageError, ImageSizeError, as_rgb, check_image, open_image, read_image, upright

TURNED = {
    1: [],
    2: [Image.Transpose.FLIP_LEFT_RIGHT],
    3: [Image.Transpose.ROTATE_180],
    4: [Image.Transpose.FLIP_TOP_BOTTOM],
    5: [Image.Transpose.TRANSPOSE],
    6: [Image.Transpose.ROTATE_270],
    7: [Image.Transpose.TRANSVERSE],
    8: [Image.Transpose.ROTATE_90],
}
PLACES = list(with_exif(orientation_block(1)))
DAMAGED_BLOCKS = {
    "a wrong type": exif((0x0112, 2, 1, b"6\0\0\0"), (0x011A, 2, 4, b"72\0\0"), (0x0128, 3, 1, 2)),
    "a resolution of none": exif(
        (0x0112, 3, 1, 6), (0x011A, 5, 1, 2**31), (0x011B, 5, 1, 2**32 - 1), (0x0128, 3, 1, 3)
    ),
    "negative numbers": exif((0x0112, 9, 1, b"\xff" * 4), (0x011A, 10, 1, 8)),
    "directories in a circle": exif((0x8769, 4, 1, 8), (0x8825, 4, 1, 8), (0xA005, 4, 1, 8)),
    "counts beyond the end": exif((0x010F, 2, 2**32 - 1, 2**31), (0x9286, 7, 2**31, 8)),
    "no directory": b"II*\0\xff\xff\xff\xff",
    "a directory cut off": orientation_block(6)[:14],
    "another byte order": b"II\0*" + orientation_block(6, ">")[4:],
    "nothing": b"",
    "no EXIF at all": b"\0" * 50,
}


@pytest.fixture(autouse=True)
def warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def read(content):
    return read_image(io.BytesIO(content))


def looks_like(image, expected):
    """Return whether two images are equal up to the losses of JPEG."""
    return (
        image.mode == "RGB" and image.size == expected.size and np.abs(np.int16(image) - np.int16(expected)).max() < 40
    )


def turned(orientation):
    image = PIXELS
    for method in TURNED[orientation]:
        image = image.transpose(method)
    return image


# Metadata


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("orientation", TURNED)
def test_the_orientation_tag_turns_every_format(orientation, byte_order):
    for place, content in with_exif(orientation_block(orientation, byte_order)).items():
        image = read(content)
        assert looks_like(image, turned(orientation)), place
        assert as_rgb(image).size == image.size  # not a second time
        assert looks_like(as_rgb(Image.open(io.BytesIO(content))), turned(orientation)), place


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("compression", [None, "tiff_lzw", "jpeg"])
def test_the_orientation_tag_turns_a_tiff_once(orientation, compression):
    content = encoded(PIXELS, "TIFF", tiffinfo={image_files.ORIENTATION: orientation}, compression=compression)
    assert looks_like(read(content), turned(orientation))
    assert looks_like(as_rgb(Image.open(io.BytesIO(content))), turned(orientation))


@pytest.mark.parametrize("block", DAMAGED_BLOCKS.values(), ids=DAMAGED_BLOCKS)
def test_no_exif_content_makes_an_image_unreadable(block):
    for place, content in with_exif(block).items():
        assert sorted(read(content).size) == sorted(SIZE), place


def test_an_orientation_is_read_next_to_damaged_tags():
    block = exif((0x010F, 2, 2**32 - 1, 2**31), (0x0112, 3, 1, 6), (0x011A, 2, 4, b"72\0\0"), (0x8769, 4, 1, 8))
    for place, content in with_exif(block).items():
        assert looks_like(read(content), turned(6)), place


@pytest.mark.parametrize("orientation", [0, 9, 255, 65535])
def test_an_unknown_orientation_is_upright(orientation):
    for content in with_exif(orientation_block(orientation)).values():
        assert looks_like(read(content), PIXELS)


def test_xmp_does_not_turn():
    packet = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    content = jpeg(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + packet))
    assert looks_like(read(content), PIXELS)
    assert looks_like(as_rgb(Image.open(io.BytesIO(content))), PIXELS)


@pytest.mark.parametrize("seed", range(4))
def test_mutated_metadata(seed):
    rng = image_files.rng_of(seed)
    block = exif(
        *((0x0112, 3, 1, 6), (0x010F, 2, 4, b"abc\0"), (0x011A, 5, 1, 8), (0x8769, 4, 1, 30), (0x8825, 4, 1, 40)),
        *((0x0128, 3, 1, 2), (0x0213, 3, 1, 1)),
    )
    for _ in range(25):
        mutated = image_files.mutated(block, rng)
        files = with_exif(mutated) | image_files.with_metadata(mutated, rng)
        for kind, content in files.items():
            assert sorted(read(content).size) == sorted(SIZE), kind
        assert sorted(read(image_files.damaged_tiff(rng)).size) == sorted(SIZE)


@pytest.mark.parametrize("seed", range(2))
def test_mutated_files_are_images_or_one_error(seed):
    rng = image_files.rng_of(seed)
    reasons = []
    for kind, content in image_files.every_format().items():
        assert sorted(read(content).size) == sorted(SIZE), kind
        for _ in range(8):
            try:
                assert read(image_files.mutated(content, rng)).mode == "RGB"
            except ImageError as error:
                reasons.append(str(error))
    assert all(reasons)
    assert not any("\n" in reason for reason in reasons)


def test_pixels_are_those_of_pillow():
    for kind, content in image_files.every_format().items():
        if kind not in ("JPEG", "PNG", "WEBP", "MPO", "PNG of I;16", "TIFF of I;16"):  # turned, or of 16 bits
            expected = Image.open(io.BytesIO(content))
            expected.info.pop("transparency", None)
            assert np.array_equal(read(content), expected.convert("RGB")), kind


def test_a_palette_with_transparency_keeps_its_colours():
    image = PIXELS.quantize(16)
    content = encoded(image, transparency=bytes(range(0, 256, 16)))
    assert np.array_equal(read(content), image.convert("RGB"))
    assert np.array_equal(as_rgb(Image.open(io.BytesIO(content))), image.convert("RGB"))


def test_what_users_pass_is_left_as_it_is():
    image = Image.open(io.BytesIO(with_exif(orientation_block(6))["jpeg"]))
    assert upright(image).size == SIZE[::-1]
    assert image.size == SIZE
    assert "exif" in image.info


# Sizes


@pytest.mark.parametrize("size", [(1, 60_000), (600_000, 1), (1, 101), (3, 301)])
@pytest.mark.parametrize("image_format", ["PNG", "BMP", "PPM", "TIFF", "GIF", "JPEG", "WEBP"])
def test_thin_images_are_refused_by_their_header(tmp_path, monkeypatch, image_format, size):
    if max(size) > {"GIF": 65_535, "JPEG": 65_500, "WEBP": 16_383}.get(image_format, 10**6):
        size = (1, 16_383)
    Image.new("RGB", size).save(tmp_path / "a.jpg", image_format)
    monkeypatch.setattr(Image.Image, "load", lambda image: pytest.fail("it was decoded"))
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda image: pytest.fail("it was decoded"))
    with pytest.raises(ImageSizeError, match=rf"a\.jpg: an image of {size[0]} x {size[1]} pixels is too thin"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("size", [(1, 100), (1, 1), (200, 2)])
def test_images_that_are_just_not_too_thin(size):
    assert read(encoded(Image.new("RGB", size))).size == size


@pytest.mark.parametrize("width", [16_383, 12_000])
def test_an_enormous_webp_is_refused(width):
    content = bytearray(encoded(image_format="WEBP", exif=orientation_block(1)))
    place = content.index(b"VP8X") + 12
    content[place : place + 6] = (width - 1).to_bytes(3, "little") * 2
    with pytest.raises(ImageError):
        read(bytes(content))


def test_enormous_images_are_refused_by_their_header():
    for content in (b"P6 100000 100000 255\n", b"P5 65535 65535 65535\n", b"GIF89a\xff\xff\xff\xff\0\0\0,"):
        with pytest.raises(ImageError):
            read(content + bytes(100))
    with pytest.raises(ImageSizeError, match="too large: the maximum is 959"), open_image(io.BytesIO(encoded()), 959):
        pass


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0)])
def test_empty_images_are_refused(size):
    with pytest.raises(ImageSizeError, match="is empty"):
        as_rgb(Image.new("RGB", size))


def test_a_decompression_bomb_is_too_large(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9)
    with pytest.raises(ImageSizeError, match="decompression bomb"):
        read(encoded())


# Files


def test_other_formats_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("subprocess.Popen", lambda *arguments, **options: pytest.fail("a program was started"))
    monkeypatch.setattr("subprocess.check_call", lambda *arguments, **options: pytest.fail("a program was started"))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    others = [
        postscript,
        encoded(PIXELS, "EPS"),
        encoded(PIXELS, "TGA"),
        encoded(PIXELS, "PCX"),
        encoded(PIXELS, "ICO"),
    ]
    for content in [*others, b"%PDF-1.4", b"<svg/>", b"x", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF", b"II*\0", b"BM"]:
        (tmp_path / "a.jpg").write_bytes(content)
        with pytest.raises(ImageError, match=r"a\.jpg: it "):
            read_image(tmp_path / "a.jpg")


def test_what_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "fifo.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    reasons = {
        "/dev/zero": "it is not a regular file",
        tmp_path / "fifo.jpg": "it is not a regular file",
        tmp_path / "link.jpg": "it is not a regular file",
        tmp_path / "folder.jpg": "it is a folder",
        tmp_path / "empty.jpg": "the file is empty",
        tmp_path / "loop.jpg": "Too many levels of symbolic links",
        tmp_path / "nothing.jpg": "No such file or directory",
        "/proc/self/environ": "the file is empty",
        "a\0b.jpg": "embedded null",
        "x" * 5000: "File name too long",
    }
    for file, reason in reasons.items():
        for reader in (read_image, check_image):
            with pytest.raises(ImageError, match=reason) as caught:
                reader(file)
            assert str(caught.value).startswith(f"{file}: ")


def test_a_file_of_gigabytes_is_refused(tmp_path):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.write(encoded(image_format="JPEG"))
        file.truncate(2**30 + 1)
    with pytest.raises(ImageError, match="with 1,073,741,825 bytes: the maximum is 1,073,741,824"):
        read_image(tmp_path / "a.jpg")


@pytest.mark.parametrize("options", [{"progressive": True}, {"quality": 40}, {}])
def test_the_check_finds_truncated_files(tmp_path, options):
    content = encoded(PIXELS.resize((300, 200)), "JPEG", **options)
    for name, end in (("good", None), ("short", -20), ("half", len(content) // 2)):
        (tmp_path / name).write_bytes(content[:end])
    check_image(tmp_path / "good")
    for name in ("short", "half"):
        with pytest.raises(ImageError, match=f"{name}: it cannot be decoded: image file is truncated"):
            check_image(tmp_path / name)


def test_no_other_place_opens_images():
    source = Path(__file__).parents[1] / "src" / "vlkd_pl"
    assert [path.name for path in source.rglob("*.py") if "Image.open(" in path.read_text()] == ["images.py"]
