"""Shards with every fault of a tar file, a sample or an image, and the expected result of each."""

import gzip
import io
import struct
import tarfile
import zlib
from collections import Counter
from types import SimpleNamespace

import numpy as np
from PIL import Image


def image(seed, size=(70, 66), mode="RGB", file_format="JPEG"):
    """An image of noise; equal arguments give equal images."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, file_format)
    return buffer.getvalue()


def member(name, content=b"", **attributes):
    """A member of a tar."""
    header = tarfile.TarInfo(name)
    header.size = len(content)
    for attribute, value in attributes.items():
        setattr(header, attribute, value)
    return header, content


def pair(key, content, text=b"a red fish", extension="jpg"):
    """The members of a sample."""
    return [member(f"{key}.{extension}", content), member(f"{key}.txt", text)]


def tar(*parts):
    """A tar of members, as bytes."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for header, content in [item for part in parts for item in part]:
            archive.addfile(header, io.BytesIO(content))
    return buffer.getvalue()


def bomb():
    """A PNG of 30,000 × 30,000 pixels, about 100 KB that decode to a gigabyte."""
    compress = zlib.compressobj(9)
    rows = b"\0" * (300 * (1 + 30_000 // 8))
    data = b"".join([*(compress.compress(rows) for _ in range(100)), compress.flush()])
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def flipped(content, place):
    """Flip one bit."""
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :]


def header_of(content, name):
    """The offset of a member's header."""
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return archive.getmember(name).offset


def claiming(header, size):
    """A tar with one header, which claims a size, and no content."""
    header.size = size
    return header.tobuf(tarfile.GNU_FORMAT)


def sparse(size):
    """A tar with one sparse file of one block, which expands to ``size`` bytes in memory."""
    header = bytearray(member("sparse.jpg", b"\0" * 512, type=tarfile.GNUTYPE_SPARSE)[0].tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"00000000000\0" + b"00000001000\0"
    header[483:495] = b"%011o\0" % size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + b"\0" * 512 + b"\0" * 10_240


def pax(*records, type=tarfile.XHDTYPE):
    """A header of records such as ``b"size=5"`` for the next member."""
    content = b"".join(b"%d %s\n" % (len(record) + 4, record) for record in records)
    assert all(10 <= len(record) + 4 <= 99 for record in records)  # a length of two digits
    return member("pax", content, type=type)


def write_damaged(folder):
    """Writes the shards.

    Returns:
        ``prepared`` and ``trained``: how many samples are good, and are lost for which reason, in preparation and in
        training.
    """
    good = [pair(f"g{i}", image(i), f"good fish {i}".encode()) for i in range(6)]
    whole = tar(*good)
    jpeg, png = image(10), image(11, file_format="PNG")
    again = [pair("same", image(12)), pair("same", image(13))]
    # its content, the expected result of preparation, and that of training if it differs
    shards = {
        "good": (whole, {"good": 6}),
        "flipped_header": (flipped(whole, header_of(whole, "g3.jpg") + 5), {"broken_tar": 1}, 3),
        "flipped_last_header": (
            flipped(whole, header_of(whole, "g5.txt") + 5),
            {"broken_tar": 1, "missing_part": 1},
            5,
        ),
        "truncated": (whole[: header_of(whole, "g3.jpg") + 700], {"broken_tar": 1}, 3),
        "truncated_between": (whole[: header_of(whole, "g3.jpg")], {"broken_tar": 1}, 3),
        "zeroed_header": (
            whole[: header_of(whole, "g2.jpg")] + b"\0" * 512 + whole[header_of(whole, "g2.jpg") + 512 :],
            {"broken_tar": 1},
            2,
        ),
        "images": (
            tar(
                pair("cut", jpeg[: len(jpeg) // 2]),
                pair("no_start", flipped(jpeg, 1)),
                pair("flipped", flipped(png, len(png) // 2), extension="png"),
                pair("zeros", b"\0" * 5_000),
                pair("nothing", b""),
                pair("text", b"<html>404</html>"),
                pair("postscript", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n%%EndComments\nshowpage\n"),
                pair("bomb", bomb(), extension="png"),
                pair("line", image(14, size=(20_000, 1), file_format="PNG"), extension="png"),
                pair("png_called_jpg", png, b"a png file"),
            ),
            {"unreadable_image": 7, "too_large": 2, "good": 1},
        ),
        "samples": (
            tar(
                pair("no_words", image(15), b" \n"),
                pair("nul", image(15), b"\0\0\0"),
                pair("no_width", image(15), "\ufeff\u200b \u2800".encode()),
                [member("alone.jpg", image(16)), member("words.txt", b"words without image")],
                pair("not_utf_8", image(17), b"a \xff fish"),
                [member("odd.__key__", b"b"), *pair("odd", image(18))],
                pair(b"caf\xe9".decode("utf-8", "surrogateescape"), image(19)),
                again[0],
                again[1],
                pair("as_before", image(12)),
            ),
            {"empty_text": 3, "missing_part": 2, "good": 4, "repeated_key": 1, "duplicate": 1},
        ),
        "limits": (
            tar(
                pair("small", image(20, size=(30, 66))),
                pair("flat", image(21, size=(500, 66))),
                pair("one_word", image(22), b"fish"),
                pair("many_words", image(23), b"fish " * 200),
            ),
            {"too_small": 1, "too_long_or_flat": 1, "caption_length": 2},
        ),
        "grey": (tar(pair("grey", image(24, mode="L"))), {"good": 1}),
        "paths": (
            tar(
                pair("../../escaped", image(25)),
                pair("/tmp/absolute", image(26)),
                [member("link.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"), member("link.txt", b"a link")],
                [member("hard.jpg", type=tarfile.LNKTYPE, linkname="../../escaped.jpg"), member("hard.txt", b"a link")],
                [member("device.jpg", type=tarfile.CHRTYPE, devmajor=1, devminor=5), member("device.txt", b"zeros")],
                [member("pipe.jpg", type=tarfile.FIFOTYPE), member("folder", type=tarfile.DIRTYPE)],
            ),
            {"good": 2, "missing_part": 3},
        ),
        "empty": (b"\0" * 10_240, {}),
        "no_bytes": (b"", {"broken_tar": 1}),
        "not_a_tar": (b"no tar file at all" * 100, {"broken_tar": 1}),
        "compressed": (gzip.compress(whole), {"broken_tar": 1}),
        "claims_32_gb": (claiming(tarfile.TarInfo("huge.jpg"), 1 << 35), {"broken_tar": 1}),
        "claims_a_zettabyte": (claiming(tarfile.TarInfo("huge.jpg"), 1 << 70), {"broken_tar": 1}),
        "claims_less_than_nothing": (claiming(member("x", type=tarfile.XHDTYPE)[0], -(1 << 70)), {"broken_tar": 1}),
        "sparse": (sparse(1 << 32), {"broken_tar": 1}),
        "sparse_below_the_limit": (sparse(268_000_000), {"broken_tar": 1}),
        "pax_sparse_0_0": (
            tar([pax(b"GNU.sparse.size=268000000", b"GNU.sparse.numblocks=0")], pair("s", image(27))),
            {"broken_tar": 1},
        ),
        "pax_sparse_0_1": (
            tar([pax(b"GNU.sparse.map=0,5", b"GNU.sparse.size=268000000")], pair("s", image(27))),
            {"broken_tar": 1},
        ),
        "pax_sparse_1_0": (
            tar(
                [pax(b"GNU.sparse.major=1", b"GNU.sparse.minor=0", b"GNU.sparse.realsize=268000000")],
                pair("s", b"0\n"),
            ),
            {"broken_tar": 1},
        ),
        "pax_length_of_26_digits": (
            tar([member("pax", b"9" * 26 + b" path=a.jpg\n", type=tarfile.XHDTYPE)], pair("p", image(27))),
            {"broken_tar": 1},
        ),
        "pax_negative_size": (tar([pax(b"size=-1234")], pair("p", image(27))), {"broken_tar": 1}),
        "pax_size_of_30_digits": (tar([pax(b"size=" + b"9" * 30)], pair("p", image(27))), {"broken_tar": 1}),
        "pax_size_that_is_no_number": (tar([pax(b"size=1e3")], pair("p", image(27))), {"broken_tar": 1}),
        "global_size": (tar([pax(b"size=5000", type=tarfile.XGLTYPE)], pair("p", image(27))), {"broken_tar": 1}),
        "pax_at_the_end": (tar(pair("p", image(28)), [pax(b"path=a.jpg")]), {"broken_tar": 1, "good": 1}),
        "odd_but_good_pax": (
            tar(
                [pax(b"comment=x" * 3, type=tarfile.XGLTYPE), pax(b"mtime=nan", b"atime=-inf")],
                pair("p", image(29), b"odd but good"),
            ),
            {"good": 1},
        ),
        "long_names": (claiming(member("x", type=tarfile.GNUTYPE_LONGNAME)[0], 512) + b"n" * 512, {"broken_tar": 1}),
        "names_of_names": (
            (claiming(member("x", type=tarfile.GNUTYPE_LONGNAME)[0], 5) + b"n" * 512) * 2_000,
            {"broken_tar": 1},
        ),
    }
    prepared: Counter[str] = Counter()
    for name, (content, losses, *num_good) in shards.items():
        (folder / f"{name}.tar").write_bytes(content)
        prepared.update(losses)
        if num_good:  # copies of the good ones
            prepared.update(duplicate=num_good[0])
    trained = Counter({reason: prepared[reason] for reason in ("broken_tar", "missing_part", "unreadable_image")})
    trained.update({reason: prepared[reason] for reason in ("too_large", "empty_text")}, not_rgb=1)
    limits = ("too_small", "too_long_or_flat", "caption_length", "repeated_key", "duplicate")
    trained["good"] = sum(prepared[reason] for reason in ("good", *limits)) - 1
    return SimpleNamespace(folder=folder, prepared=prepared, trained=trained, num_shards=len(shards))
