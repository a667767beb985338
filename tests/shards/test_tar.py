"""Tar files: their samples, and corrupt or hostile archives, which neither crash nor fill the memory."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from damaged_shards import member, pair, tar
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.batch import ShardEnd
from vlkd_pl.clip.tokenizer import load_clip_tokenizer
from vlkd_pl.clip.transform import clip_transform
from vlkd_pl.features.cache import write_index
from vlkd_pl.features.format import SUFFIX, FeatureSettings, FeatureWriter
from vlkd_pl.features.shard_dataset import UncachedShards
from vlkd_pl.prepare.reshard import _at, _Part
from vlkd_pl.shards.decoder import PAIR_PARTS, SKIP_REASONS, SampleDecoder, is_blank
from vlkd_pl.shards.reader import count_samples, find_shards, read_captions, read_shard, sample_name
from vlkd_pl.shards.subset import UniformSubset, key_hash, text_keys
from vlkd_pl.shards.tar import tar_members


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tars_of_all_formats_are_read(tar_format):
    names = ["0.jpg", "folder/0.txt", "a" * 90 + "/" + "b" * 60, "café.jpg"]
    if tar_format != tarfile.USTAR_FORMAT:
        names += ["c" * 300, "é" * 200]
    contents = {
        name: bytes([number]) * size
        for number, (name, size) in enumerate(zip(names, [0, 1, 512, 513, 5, 2_000_000], strict=False))
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as archive:
        for name, content in contents.items():
            header = tarfile.TarInfo(name)
            header.size, header.mtime = len(content), 1.5 if tar_format == tarfile.PAX_FORMAT else 1
            archive.addfile(header, io.BytesIO(content))
    assert {members.name: members.read() for members in tar_members(io.BytesIO(buffer.getvalue()))} == contents


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("000000012.jpg", ("000000012", "jpg")),
        ("0.TXT", ("0", "txt")),
        ("a.en.txt", ("a", "en.txt")),
        ("img.0.jpg", ("img", "0.jpg")),
        ("part.1/0.jpg", ("part.1/0", "jpg")),
        ("./0.jpg", ("./0", "jpg")),
        ("/0.jpg", ("/0", "jpg")),
        ("a\nb.jpg", ("a\nb", "jpg")),
        ("._0.jpg", None),
        ("folder/._0.jpg", None),
        ("__MACOSX/0.jpg", None),
        ("folder/__MACOSX/0.jpg", None),
        ("__webdataset__/0.jpg", None),
        ("0", None),
        (".jpg", None),
        ("folder.d/0", None),
    ],
)
def test_key_and_extension_of_a_name(name, expected):
    assert sample_name(name) == expected


KINDS = {
    "plain": [pair(f"{i:03d}", b"j", b"fish %d" % i) for i in range(40)],
    "dots": [[member(f"a{i // 2}.{i % 2}.jpg", b"j"), member(f"a{i // 2}.{i % 2}.txt", b"t")] for i in range(40)]
    + [pair(f"b{i}", b"j") for i in range(20)],
    "macos": [
        [member(f"{prefix}{i}.{extension}", b"x") for extension in ("jpg", "txt") for prefix in ("._", "")]
        for i in range(40)
    ],
    "macos_folder": [[*pair(f"__MACOSX/{i}", b"x"), *pair(f"{i}", b"j")] for i in range(40)],
    "upper": [[member(f"{i}.JPG", b"j"), member(f"{i}.{'TXT' if i % 3 else 'txt'}", b"t")] for i in range(40)],
    "second_text": [[*pair(str(i), b"j"), member(f"{i}.en.txt", b"e")] for i in range(40)],
    "second_text_of_one_name": [[*pair(str(i), b"j"), member(f"{i}.TXT", b"e")] for i in range(40)],
    "folders": [pair(f"{folder}/{i}", b"j") for folder in ("a", "b.c") for i in range(20)],
    "without_text": [[member(f"{i}.jpg", b"j"), *([member(f"{i}.txt", b"t")] if i % 3 else [])] for i in range(40)],
    "repeated": [pair(str(i % 7), b"j", b"fish %d" % i) for i in range(40)],
    "repeated_at_once": [pair(str(i // 5), b"j", b"fish %d" % i) for i in range(40)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_subset_has_as_many_samples_as_asked_for(tmp_path, kind):
    shards = [str(tmp_path / f"{number}.tar") for number in range(2)]
    for path in shards:  # the same keys in both
        Path(path).write_bytes(tar(*KINDS[kind]))
    total = sum(1 for path in shards for raw in read_shard(path) if "txt" in raw)
    assert total > 0
    before = set()
    for size in (1, 2, 9, total // 2, total - 1, total):
        subset = UniformSubset(shards, size)
        members = {
            (path, place)
            for path in shards
            for place, raw in enumerate(read_shard(path))
            if "txt" in raw and subset(raw["__key__"], path, place)
        }
        assert len(members) == size
        assert before <= members
        assert sum(1 for path in shards for raw in read_shard(path, subset) if "txt" in raw) == size
        assert len(read_captions(shards, 1000, subset)) == size
        before = members
    with pytest.raises(MisconfigurationException, match=f"is {total + 1}, but the shards hold {total} samples"):
        UniformSubset(shards, total + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_are_counted_as_they_are_read(tmp_path, kind):
    path = tmp_path / "0.tar"
    path.write_bytes(tar(*KINDS[kind]))
    raws = list(read_shard(str(path)))
    assert count_samples(str(path)) == len(raws)
    assert list(text_keys(str(path))) == [(raw["__key__"], place) for place, raw in enumerate(raws) if "txt" in raw]


def test_a_cache_draws_the_subset_of_the_shards(tmp_path):
    """Keys may repeat, also in samples that are skipped."""
    settings = FeatureSettings("clip", 8, "pooled", "float16", None, 100, True, False)
    keys = [[str(i % 7) for i in range(20)], [str(i) for i in range(10)]]
    for number, of_shard in enumerate(keys):
        (tmp_path / f"{number}.tar").write_bytes(tar(*(pair(key, b"j") for key in of_shard)))
        writer = FeatureWriter(tmp_path / f"{number}{SUFFIX}", settings)
        writer.append(
            torch.zeros(18 - 8 * number, 1, 4),
            torch.zeros(18 - 8 * number, 4),
            ["t"] * len(of_shard[:18]),
            of_shard[:18],
        )
        writer.finish(ShardEnd([key_hash(key) for key in of_shard], dict.fromkeys(SKIP_REASONS, 0)))
    cache = write_index(tmp_path, ["0", "1"], settings)
    rows = [(place, key) for place, key in enumerate(keys[0][:18])] + list(enumerate(keys[1]))
    for size in range(1, 31):
        subset = UniformSubset([str(tmp_path / f"{number}.tar") for number in range(2)], size)
        extra = [
            row for row, (place, key) in enumerate(rows) if subset(key, str(tmp_path / f"{int(row >= 18)}.tar"), place)
        ]
        assert cache.subset(size).tolist() == extra


def num_read():
    """The number of bytes that this process has read."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes as Linux does")
def test_what_is_not_asked_for_is_seeked_over(tmp_path):
    path = str(tmp_path / "0.tar")
    Path(path).write_bytes(
        tar(*([*pair(f"{i:04d}", bytes(50_000)), member(f"{i:04d}.json", b"{}")] for i in range(200)))
    )
    total = Path(path).stat().st_size
    num_read()
    before = num_read()
    subset = UniformSubset([path], 6)
    counted = num_read()
    assert counted - before < total / 8
    assert len(list(read_shard(path, subset, PAIR_PARTS))) == 6
    assert num_read() - counted < total / 8 + 6 * 50_000
    before = num_read()
    assert [raw["__key__"] for raw in _at(_Part(path, [3, 5]))] == ["0003", "0005"]
    assert num_read() - before < 5 * 50_000
    assert len(read_captions([path], 1000)) == 200
    assert num_read() - before < total / 4


def test_every_reader_counts_damaged_shards_alike(damaged, clip_folder):
    """Reading with and without contents gives the same samples, and a cache skips the samples that training skips."""
    shards = [str(path) for path in sorted(damaged.folder.glob("*.tar"))]
    num_broken = 0
    for path in shards:
        raws = []
        try:
            for raw in read_shard(path):
                raws.append(raw)
            assert count_samples(path) == len(raws)
        except tarfile.ReadError:
            num_broken += 1
            with pytest.raises(tarfile.ReadError):
                count_samples(path)
        assert list(text_keys(path)) == [(raw["__key__"], place) for place, raw in enumerate(raws) if "txt" in raw]
        assert read_captions([path], 100) == read_captions([path], 100, lambda key, path, place: True)
    assert num_broken == damaged.trained["broken_tar"]
    decoder = SampleDecoder(clip_transform(32), 50_000_000, skip_non_rgb=True, num_workers=0)
    uncached = UncachedShards(
        [(path, path) for path in shards], decoder, load_clip_tokenizer(str(clip_folder)), 10, keep=None
    )
    skipped = dict.fromkeys(SKIP_REASONS, 0)
    num_good = 0
    for batch in uncached:
        num_good += len(batch["keys"])
        for reason, num in (batch["end"].skipped if batch["end"] is not None else {}).items():
            skipped[reason] += num
    assert {"good": num_good, **skipped} == dict(damaged.trained)


FUZZ = """
import io, random, resource, sys, tarfile
from pathlib import Path
from vlkd_pl.shards.tar import tar_members
resource.setrlimit(resource.RLIMIT_AS, (400 << 20, 400 << 20))
rng = random.Random(0)
contents = [path.read_bytes() for path in sorted(Path(sys.argv[1]).glob("*.tar"))]

def damage(content):
    blocks = bytearray(content)
    for _ in range(rng.choice([1, 1, 3])):
        headers = [i for i in range(0, len(blocks) - 511, 512) if blocks[i + 257 : i + 262] == b"ustar"] or [0]
        begin = rng.choice(headers)
        header = blocks[begin : begin + 512].ljust(512, b"\\0")
        kind = rng.randrange(7)
        if kind == 0:
            header[rng.randrange(512)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            header[156] = rng.choice(b"01234567gxXLKSVDMA")
        elif kind == 2:
            number = b"%011o" % rng.randrange(1 << rng.randrange(33))
            header[124:136] = rng.choice([b"\\x80" + rng.randbytes(11), b"\\xff" * 12, number + b" ", b"-0000000001 "])
        elif kind == 3:
            header[156:157], header[483:495] = b"S", b"%011o " % rng.randrange(1 << 28)
        elif kind == 4:
            del blocks[rng.randrange(len(blocks) + 1) :]
        elif kind == 5:
            blocks[begin:begin] = header
        else:
            blocks[begin + 512 : begin + 512] = rng.choice([b"30 size=", b"9" * 26 + b" path=", b"11 path=", b"0 "])
        header[148:156] = b" " * 8
        header[148:156] = b"%06o  " % sum(header)
        blocks[begin : begin + 512] = header
    return bytes(blocks)

num_whole = num_broken = 0
for number in range(3000):
    content = damage(rng.choice(contents))
    try:
        for found in tar_members(io.BytesIO(content)):
            assert rng.random() < 0.3 or len(found.read()) <= len(content)
        num_whole += 1
    except tarfile.ReadError:
        num_broken += 1
print(num_whole, num_broken)
"""


def test_mutated_tars_are_read_or_corrupt_in_bounded_memory(damaged):
    done = subprocess.run([sys.executable, "-c", FUZZ, str(damaged.folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    num_whole, num_broken = map(int, done.stdout.split())
    assert num_whole + num_broken == 3000
    assert min(num_whole, num_broken) > 100


LITERAL = ["a[1].tar", "a{1,2}.tar", "a*.tar", "{0..3}.tar", "[ab]/{c}/0.tar", "open{/0.tar", "a:b.tar"]


@pytest.mark.parametrize("name", LITERAL)
@pytest.mark.parametrize("is_relative", [True, False])
def test_an_existing_file_is_taken_literally(tmp_path, monkeypatch, name, is_relative):
    for path in LITERAL:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(tar())
    monkeypatch.chdir(tmp_path)
    path = name if is_relative else str(tmp_path / name)
    assert find_shards(path) == [path]


@pytest.mark.parametrize("folder", ["[2024]", "{a,b}", "a*", "[x] {0..1}/[y]"])
def test_an_existing_folder_is_taken_literally(tmp_path, folder):
    shards = [str(tmp_path / folder / f"0000{number}.tar") for number in range(3)]
    for path in shards:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(tar())
    for rest in ("*.tar", "{00000..00002}.tar", "0000[0-2].tar", "{00000,0000[12]}.tar"):
        assert find_shards(f"{tmp_path}/{folder}/{rest}") == shards
    with pytest.raises(FileNotFoundError, match=r"no file matches .*/\*\.nothing"):
        find_shards(f"{tmp_path}/{folder}/*.nothing")


def test_braces_that_do_not_match_are_named(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"the braces of .*\{0\.\.3\.tar do not match"):
        find_shards(str(tmp_path / "{0..3.tar"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        (" \t\n", True),
        ("\0\0", True),
        ("\x01\x7f", True),
        ("\ufeff", True),
        ("\u200b \u200d\u2060", True),
        ("\u2800", True),
        ("\u3164", True),
        ("\ufffd\ufffd", True),
        ("a", False),
        ("\0a", False),
        ("?", False),
        ("7", False),
        ("\u732b", False),
        ("\U0001f41f", False),
    ],
)
def test_blank_texts(text, expected):
    assert is_blank(text) is expected
