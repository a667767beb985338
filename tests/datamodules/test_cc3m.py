"""The stream of shards: order, splitting, resuming, and what is no good."""

import io
import random
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import exif, orientation_block, with_exif
from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.batch import StreamPosition
from vlkd_pl.data.coco_files import EvaluationFiles
from vlkd_pl.data.shard_source import ImageLimits
from vlkd_pl.data.stream import TextCorpusFile
from vlkd_pl.datamodules.cc3m import CC3MDataModule
from vlkd_pl.shards.decoder import SKIP_REASONS
from vlkd_pl.shards.subset import UniformSubset

NUM_PAIRS = 48


def jpeg(seed, mode="RGB", size=(70, 66)):
    rng = np.random.default_rng(seed)
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).convert(mode).save(buffer, "JPEG")
    return buffer.getvalue()


def write_shard(path, samples):
    """Writes (key, extension, bytes) in order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, extension, content in samples:
            member = tarfile.TarInfo(f"{key}.{extension}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Four shards of twelve pairs; each caption states its number."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(4):
        pairs = range(12 * shard, 12 * shard + 12)
        samples = [
            (f"{i:05d}", ext, content)
            for i in pairs
            for ext, content in (("jpg", jpeg(i)), ("txt", f"fish {i}".encode()))
        ]
        write_shard(folder / f"{shard:05d}.tar", samples)
    return folder


@pytest.fixture
def build(clip_folder, bart_folder, shards):
    def build_module(patterns=None, **options):
        settings = {"batch_size": 4, "num_workers": 0, "shuffle_buffer": 5} | options
        module = CC3MDataModule(patterns or str(shards / "*.tar"), str(clip_folder), str(bart_folder), **settings)
        module.setup("fit")
        return module

    return build_module


def numbers(module, batch):
    """The numbers in the captions of a batch."""
    texts = module.collator.infilling.tokenizer.batch_decode(batch["bart_text_ids"], skip_special_tokens=True)
    return [int(text.removeprefix("fish ")) for text in texts]


def take(module, num_batches):
    """The first batches, each handed over as the trainer does."""
    batches = []
    for batch in module.train_dataloader():
        batches.append(module.on_before_batch_transfer(batch, 0))
        if len(batches) == num_batches:
            return batches


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_pass_holds_every_pair_once(build, num_workers):
    module = build(num_workers=num_workers)
    seen = [number for batch in take(module, NUM_PAIRS // 4) for number in numbers(module, batch)]
    assert sorted(seen) == list(range(NUM_PAIRS))
    assert seen != sorted(seen)


def test_passes_differ_and_runs_do_not(build):
    module = build()
    first, second = ([n for b in part for n in numbers(module, b)] for part in np.array_split(take(module, 24), 2))
    assert sorted(first) == sorted(second)
    assert first != second
    again = build()
    assert [n for b in take(again, 12) for n in numbers(again, b)] == first
    other = build(seed=1)
    assert [n for b in take(other, 12) for n in numbers(other, b)] != first


def test_ranks_share_a_pass(build):
    seen = []
    for rank in range(2):
        module = build()
        stream = module.train_dataloader().dataset
        stream.rank, stream.world_size = rank, 2
        batches = iter(stream)
        seen.append([number for _ in range(6) for number in numbers(module, next(batches))])
    assert sorted(seen[0] + seen[1]) == list(range(NUM_PAIRS))


def test_batch_contract(build, tmp_path):
    (tmp_path / "corpus.txt").write_text("fish 100\nA picture of fish 7.\twhat is this? Answer: fish.\n")
    module = build(text_corpus=TextCorpusFile(str(tmp_path / "corpus.txt"), batch_size=3, text_as_image=2))
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (4, 3, 64, 64)
    assert batch["image"].dtype == torch.uint8
    assert batch["clip_text_ids"].shape[1] < 24
    assert batch["text_infilling"]["labels"].shape[0] == 3
    as_image, tokenizer = batch["text_as_image"], module.bart_tokenizer
    assert torch.equal(as_image["clip_text_ids"], module.clip_tokenizer(["fish 7"] * 2))
    assert tokenizer.batch_decode(as_image["labels"], True) == ["what is this? Answer: fish."] * 2
    assert tokenizer.decode(as_image["corrupted_ids"][0][1:-1]).replace(" <", "<") == "what is this? Answer:<mask>."
    assert batch["stream_position"] == StreamPosition(0, 1, 0, 4, [0] * len(SKIP_REASONS) + [0, 4])
    assert batch["keys"] == [f"0/{number:05d}" for number in numbers(module, batch)]
    image = Image.open(io.BytesIO(jpeg(numbers(module, batch)[0])))
    torch.testing.assert_close(batch["image"][0], module.transform(image))


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first if isinstance(first[name], torch.Tensor))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("cut", [1, 7, 12, 17])
def test_a_resumed_stream_resumes_exactly(build, shards, tmp_path, num_workers, cut):
    """With bad samples between, in the middle of a pass and beyond its end."""
    bad = [("bad", "jpg", jpeg(0)[:50]), ("bad", "txt", b"fish 99")]
    extra = [
        (f"e{i}", ext, content) for i in range(7) for ext, content in (("jpg", jpeg(i)), ("txt", f"fish {i}".encode()))
    ]
    write_shard(tmp_path / "extra.tar", [*extra[:6], *bad, *extra[6:]])
    lines = [f"fish {i}" if i % 3 else f"fish {i}.\thow many? Answer: {i}." for i in range(50)]
    (tmp_path / "corpus.txt").write_text("\n".join(lines))
    settings = {
        "patterns": [str(shards / "*.tar"), str(tmp_path / "extra.tar")],
        "num_workers": num_workers,
        "text_corpus": TextCorpusFile(str(tmp_path / "corpus.txt"), text_as_image=5),
        "image_limits": ImageLimits(max_bad_share=0.5),
    }
    uncut_module = build(**settings)
    uncut = take(uncut_module, 22)
    cut_module = build(**settings)
    take(cut_module, cut)
    resumed = build(**settings)
    resumed.load_state_dict(cut_module.state_dict())
    rest = take(resumed, 22 - cut)
    for first, second in zip(uncut[cut:], rest, strict=True):
        assert same(first, second)
        assert same(first["text_infilling"], second["text_infilling"])
        assert same(first["text_as_image"], second["text_as_image"])
    assert resumed.state_dict() == uncut_module.state_dict()
    assert (
        sum(sum(position.counts[: len(SKIP_REASONS)]) for position in resumed.shard_source.positions.values()) > 0
        or cut < 12
    )


def test_the_buffer_is_bounded_in_bytes(build):
    """Where it holds fewer samples the order is another; where its bytes suffice it is what it has always been."""

    def order(**options):
        stream = build(**options).train_dataloader().dataset
        return [raw["__key__"] for raw in stream._shuffled(epoch=0, part=0, num_parts=1, worker=0)]

    def most_held(**options):
        """Bytes that the stream holds at most when it reads the next sample."""
        stream = build(**options).train_dataloader().dataset
        chosen, held, most = stream._kept, {}, [0]

        def noted(path, worker):
            for raw in chosen(path, worker):
                held[raw["__key__"]] = sum(map(len, raw.values()))
                yield raw
                most.append(sum(held.values()))

        stream._kept = noted
        for raw in stream._shuffled(epoch=0, part=0, num_parts=1, worker=0):
            del held[raw["__key__"]]
        assert not held
        return max(most)

    largest = 4000
    assert most_held(shuffle_buffer=20) > 10 * largest
    for limit in (0, largest, 3 * largest, 10 * largest):
        assert most_held(shuffle_buffer=20, shuffle_buffer_bytes=limit) <= limit
        assert sorted(order(shuffle_buffer_bytes=limit)) == [f"{number:05d}" for number in range(NUM_PAIRS)]
    assert order(shuffle_buffer=20, shuffle_buffer_bytes=3 * largest) != order(shuffle_buffer=20)
    assert order(shuffle_buffer=5, shuffle_buffer_bytes=7 * largest) == order(shuffle_buffer=5)
    before = (
        "28 27 26 25 32 24 34 35 00 29 30 02 31 03 04 06 08 05 10 07 33 12 09 01 13 14 11 16 15 21 18 20 36 23 37 19"
    )
    assert " ".join(key[3:] for key in order(shuffle_buffer=5)[:36]) == before


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_stream_with_a_buffer_full_by_bytes_resumes_exactly(build, num_workers):
    settings = {"num_workers": num_workers, "shuffle_buffer": 20, "shuffle_buffer_bytes": 20_000}
    uncut_module, cut_module, resumed = build(**settings), build(**settings), build(**settings)
    uncut = take(uncut_module, 20)
    take(cut_module, 7)
    resumed.load_state_dict(cut_module.state_dict())
    for first, second in zip(uncut[7:], take(resumed, 13), strict=True):
        assert same(first, second)
    assert resumed.state_dict() == uncut_module.state_dict()


def test_another_number_of_workers_starts_the_next_pass(build):
    module = build()
    take(module, 5)
    resumed = build(num_workers=2)
    with pytest.warns(UserWarning, match="the data resume at pass 1"):
        resumed.load_state_dict(module.state_dict())
    assert {p.epoch for p in resumed.shard_source.positions.values()} == {1}


DAMAGED = {
    "unreadable_image": [("a", "jpg", jpeg(0)[: len(jpeg(0)) // 2]), ("a", "txt", b"fish 1")],
    "not_rgb": [
        ("b", "jpg", jpeg(0, "L")),
        ("b", "txt", b"fish 1"),
        ("c", "jpg", jpeg(0, "CMYK")),
        ("c", "txt", b"fish 1"),
    ],
    "too_large": [("d", "jpg", jpeg(0, size=(200, 200))), ("d", "txt", b"fish 1")],
    "empty_text": [("e", "jpg", jpeg(0)), ("e", "txt", b" \n")],
    "missing_part": [("f", "jpg", jpeg(0)), ("g", "txt", b"fish 1")],
}


def test_bad_samples_are_skipped_and_counted(build, shards, tmp_path):
    write_shard(tmp_path / "bad.tar", [sample for samples in DAMAGED.values() for sample in samples])
    with tarfile.open(shards / "00000.tar") as archive:
        end = archive.getmembers()[10].offset_data + 100  # within the sixth image
    (tmp_path / "cut.tar").write_bytes((shards / "00000.tar").read_bytes()[:end])
    (tmp_path / "zeros.tar").write_bytes(b"no tar file at all" * 100)
    module = build(
        [str(shards / "*.tar"), str(tmp_path / "*.tar")],
        batch_size=1,
        image_limits=ImageLimits(20_000, max_bad_share=0.7),
    )
    seen = [number for batch in take(module, NUM_PAIRS + 5) for number in numbers(module, batch)]
    assert sorted(seen) == sorted([*range(NUM_PAIRS), 0, 1, 2, 3, 4])
    expected = {
        "unreadable_image": 1,
        "not_rgb": 2,
        "too_large": 1,
        "empty_text": 1,
        "missing_part": 2,
        "broken_tar": 2,
    }
    assert module.skipped == expected
    assert module.report().startswith(
        f"data: {module.decoder.num_seen} samples read, skipped: 2 broken_tar, 2 missing_part, 1"
    )


def test_non_rgb_images_can_be_converted(build, tmp_path):
    write_shard(
        tmp_path / "grey.tar",
        [(f"{i}", ext, c) for i in range(4) for ext, c in (("jpg", jpeg(i, "L")), ("txt", b"fish 1"))],
    )
    module = build(str(tmp_path / "grey.tar"), image_limits=ImageLimits(skip_non_rgb=False))
    assert take(module, 1)[0]["image"].shape == (4, 3, 64, 64)
    assert sum(module.skipped.values()) == 0


@pytest.mark.parametrize("draft", [False, True])
@pytest.mark.parametrize("extension", ["jpg", "png", "webp"])
def test_the_orientation_tag_turns_images_of_shards(build, extension, draft):
    decoder = build(image_limits=ImageLimits(draft_decoding=draft, skip_non_rgb=False)).decoder
    kinds = {"jpg": "jpeg", "png": "png, behind the pixels", "webp": "webp"}

    def decode(orientation):
        content = with_exif(orientation_block(orientation))[kinds[extension]]
        return decoder.decode({"__key__": "0", extension: content, "txt": b"a fish"})["image"].int()

    upright = decode(1)
    assert (decode(3) - upright.flip(1, 2)).abs().float().mean() < 3
    assert (decode(6) - upright.transpose(1, 2).flip(2)).abs().float().mean() < 3
    assert (decode(6) - upright).abs().float().mean() > 9


def test_damaged_metadata_does_not_cost_a_sample(build):
    decoder = build(image_limits=ImageLimits(skip_non_rgb=False)).decoder
    for content in with_exif(exif((0x011A, 2, 4, b"72\0\0"), (0x0128, 3, 1, 2))).values():
        raw = {"__key__": "0", "jpg": content, "txt": b"a fish"}
        assert decoder.decode(raw)["image"].shape == (3, 64, 64)


@pytest.mark.parametrize(
    ("file_format", "size", "is_smaller"),
    [("JPEG", (260, 128), True), ("JPEG", (1030, 520), True), ("JPEG", (260, 127), False), ("PNG", (260, 128), False)],
)
def test_draft_decoding_of_large_jpeg_alone(build, tmp_path, file_format, size, is_smaller):
    waves = np.sin(
        np.add.outer(np.arange(size[1]), np.arange(size[0]))[..., None] / (size[1] * np.array([0.3, 0.4, 0.5]))
    )
    buffer = io.BytesIO()
    Image.fromarray((127 + 120 * waves).astype(np.uint8)).save(buffer, file_format)
    extension = {"JPEG": "jpg", "PNG": "png"}[file_format]
    raw = {"__key__": "0", extension: buffer.getvalue(), "txt": b"fish 1"}
    full, draft = (
        build(image_limits=ImageLimits(draft_decoding=on)).decoder.decode(raw)["image"].int() for on in (False, True)
    )
    assert draft.shape == full.shape == (3, 64, 64)
    assert torch.equal(full, draft) != is_smaller
    assert (full - draft).abs().float().mean() < 3


@pytest.mark.parametrize("num_workers", [0, 2])
def test_too_many_bad_samples_stop_training(build, tmp_path, num_workers):
    for shard in range(2):
        good = [(f"g{i}", ext, content) for i in range(8) for ext, content in (("jpg", jpeg(i)), ("txt", b"fish 1"))]
        write_shard(tmp_path / f"{shard}.tar", good + [(f"b{i}", "txt", b"fish 1") for i in range(2)])
    module = build(str(tmp_path / "*.tar"), num_workers=num_workers, image_limits=ImageLimits(max_bad_share=0.1))
    with pytest.raises(
        MisconfigurationException, match=r"too much is bad, \d+ of 1\d\d\d samples.*missing_part"
    ) as caught:
        take(module, 1000)
    num_bad, num_seen = map(int, re.findall(r"(\d+) of (\d+) samples", str(caught.value))[0])
    assert num_bad / num_seen == pytest.approx(0.2, abs=0.005)  # workers are anywhere in their ten samples
    lenient = build(str(tmp_path / "*.tar"), num_workers=num_workers, image_limits=ImageLimits(max_bad_share=0.3))
    assert len(take(lenient, 300)) == 300


def test_corrupt_shards_count_by_shard(build, shards, tmp_path):
    (tmp_path / "zeros.tar").write_bytes(b"no tar file at all" * 100)
    module = build([str(shards / "*.tar"), str(tmp_path / "zeros.tar")], image_limits=ImageLimits(max_bad_share=0.15))
    with pytest.raises(MisconfigurationException, match="1 shards"):
        take(module, 100)


def test_a_pass_without_a_usable_sample_is_an_error(build, tmp_path):
    write_shard(tmp_path / "empty.tar", [])
    with pytest.raises(MisconfigurationException, match="gave no usable sample"):
        take(build(str(tmp_path / "empty.tar")), 1)


def test_missing_shards(build, shards):
    with pytest.raises(FileNotFoundError, match=r"2 of 6 shards do not exist; first: .*00004\.tar, .*00005\.tar"):
        build(str(shards / "{00000..00005}.tar"))
    with pytest.raises(FileNotFoundError, match="no file matches"):
        build(str(shards / "*.nothing"))


def test_too_few_shards(build):
    with pytest.raises(
        MisconfigurationException,
        match=r"4 shards are too few for 1 processes × 5 workers.*lower data.num_workers to 4",
    ):
        build(num_workers=5)


@pytest.mark.parametrize("size", [1, 10, 48])
def test_subset_is_exact_and_the_same_each_time(build, size):
    first, second = build(subset_size=size, batch_size=1), build(subset_size=size, batch_size=1, seed=5)
    seen = [{n for batch in take(module, size) for n in numbers(module, batch)} for module in (first, second)]
    assert len(seen[0]) == size
    assert seen[0] == seen[1]
    assert len(first.training_captions(1000)) == size


def test_subset_is_uniform(tmp_path):
    keys = [f"{i:09d}" for i in range(4000)]
    write_shard(tmp_path / "a.tar", [(key, "txt", b"x") for key in keys])
    subset = UniformSubset([str(tmp_path / "a.tar")], 1000)
    chosen = np.array([subset(key) for key in keys])
    assert chosen.sum() == 1000
    assert np.abs(chosen.reshape(8, 500).sum(1) - 125).max() < 40  # four standard deviations of a uniform draw
    larger = UniformSubset([str(tmp_path / "a.tar")], 2000)
    assert all(larger(key) for key in np.array(keys)[chosen])


def test_a_subset_larger_than_the_data(build):
    with pytest.raises(MisconfigurationException, match="subset_size is 49, but the shards hold 48 samples"):
        build(subset_size=49)


def test_training_captions_are_the_first(build):
    assert build().training_captions(14) == [f"fish {i}" for i in range(14)]


def test_evaluation_files(build, world):
    module = build(
        evaluation=EvaluationFiles(
            val_captions=str(world.folder / "captions_val.json"),
            val_images=str(world.folder / "images"),
            batch_size=4,
            num_samples=5,
        )
    )
    sizes = [len(batch["references"]) for batch in module.val_dataloader()]
    assert sizes == [4, 1]
    with pytest.raises(MisconfigurationException, match="nothing to test on"):
        module.test_dataloader()


def test_evaluation_leaves_the_random_numbers_alone(build, world):
    module = build(evaluation=EvaluationFiles(str(world.folder / "images"), str(world.folder / "captions_val.json")))
    before = torch.get_rng_state()
    assert list(module.val_dataloader())
    assert torch.equal(torch.get_rng_state(), before)


def test_text_corpus_errors(build, tmp_path):
    with pytest.raises(FileNotFoundError, match="no text file"):
        build(text_corpus=TextCorpusFile(str(tmp_path / "nothing.txt")))
    Path(tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(MisconfigurationException, match="is empty"):
        build(text_corpus=TextCorpusFile(str(tmp_path / "empty.txt")))
    Path(tmp_path / "latin.txt").write_bytes(b"a passage\ncaf\xe9\n")
    with pytest.raises(MisconfigurationException, match=r"latin\.txt is not UTF-8 at byte 13 \(0xe9"):
        build(text_corpus=TextCorpusFile(str(tmp_path / "latin.txt")))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("fish 1.\n\nfish 2.\ta?\tb?\n\tc?\n", r"2 of 3 lines of .* the first is line 3, 'fish 2\.\\ta\?\\tb\?'"),
        ("fish 1.\t \n", r"1 of 1 lines of .* nothing before or after one"),
        ("fish 1. how many? Answer: 1.\n", r"text_as_image: no line of .*corpus\.txt has a tab"),
    ],
)
def test_lines_that_are_no_passage_with_a_question(build, tmp_path, lines, message):
    """Refused for text as image alone; infilling reads a tab as a space."""
    path = tmp_path / "corpus.txt"
    path.write_text(lines)
    with pytest.raises(MisconfigurationException, match=message):
        build(text_corpus=TextCorpusFile(str(path), text_as_image=1))
    batch = next(iter(build(text_corpus=TextCorpusFile(str(path))).train_dataloader()))
    assert "text_as_image" not in batch


def test_text_as_image_adds_to_the_same_infilling(build, tmp_path):
    """The draws of the other texts are those without it, and a tab is a space for them."""
    (tmp_path / "tabs.txt").write_text("\n".join(f"fish {i}.\twhich? Answer: {i}." for i in range(50)))
    (tmp_path / "spaces.txt").write_text((tmp_path / "tabs.txt").read_text().replace("\t", " "))
    plain = take(build(text_corpus=TextCorpusFile(str(tmp_path / "spaces.txt"), 3)), 4)
    both = take(build(text_corpus=TextCorpusFile(str(tmp_path / "tabs.txt"), 3, text_as_image=2)), 4)
    alone = take(build(text_corpus=TextCorpusFile(str(tmp_path / "tabs.txt"), 0, text_as_image=2)), 4)
    for first, second, third in zip(plain, both, alone, strict=True):
        assert same(first, second)
        assert same(first["text_infilling"], second["text_infilling"])
        assert "text_infilling" not in third
        assert len(second["text_as_image"]["labels"]) == len(third["text_as_image"]["labels"]) == 2


def test_what_clip_embeds_is_truncated_to_its_context(build, tmp_path):
    (tmp_path / "long.txt").write_text(f"{'fish 7 ' * 500}.\twhich color is the fish?\n")
    module = build(text_corpus=TextCorpusFile(str(tmp_path / "long.txt"), 0, text_as_image=1))
    batch = next(iter(module.train_dataloader()))
    assert batch["text_as_image"]["clip_text_ids"].shape == (1, module.clip_tokenizer.context_length)
    mask_id = module.bart_tokenizer.mask_token_id
    assert mask_id in batch["text_as_image"]["corrupted_ids"]  # without an answer, as other texts


@pytest.mark.parametrize(
    ("numbers", "message"),
    [((-1, 1), "batch_size is -1"), ((1, -2), "text_as_image is -2"), ((0, 0), "are both 0: give 1 or more of one")],
)
def test_numbers_of_passages(numbers, message):
    with pytest.raises(MisconfigurationException, match=message):
        TextCorpusFile("corpus.txt", numbers[0], text_as_image=numbers[1])


def test_passages_end_at_line_feeds_alone(build, tmp_path):
    Path(tmp_path / "lines.txt").write_bytes("\ufeffone\u2028line\r\nand\x85an\x0cother\n".encode())
    assert build(text_corpus=TextCorpusFile(str(tmp_path / "lines.txt"))).corpus.lines == [
        "one\u2028line",
        "and\x85an\x0cother",
    ]


def test_random_bytes_never_crash(build, shards, tmp_path):
    """Bits flipped anywhere in a shard cost samples, not the run."""
    whole = (shards / "00001.tar").read_bytes()
    rng = random.Random(0)
    for number in range(8):
        damaged = bytearray(whole)
        for _ in range(30):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        (tmp_path / f"{number}.tar").write_bytes(damaged)
    module = build([str(shards / "00000.tar"), str(tmp_path / "*.tar")], image_limits=ImageLimits(max_bad_share=1.0))
    assert len(take(module, 30)) == 30


def test_damaged_shards_cost_what_is_damaged(build, damaged):
    module = build(str(damaged.folder / "*.tar"))
    stream = module.train_dataloader().dataset
    samples = [module.decoder(raw, 0) for raw in stream._shuffled(epoch=0, part=0, num_parts=1, worker=0)]
    num_good = len(samples) - samples.count(None)
    assert {"good": num_good, **module.skipped} == dict(damaged.trained)


def test_damaged_shards_never_end_a_run(build, damaged, tmp_path):
    module = build(
        str(damaged.folder / "*.tar"), num_workers=2, batch_size=5, image_limits=ImageLimits(max_bad_share=9.0)
    )
    for _ in range(3):  # passes
        assert len(take(module, damaged.trained["good"] // 5)) == damaged.trained["good"] // 5
    assert not Path(tmp_path.parent, "escaped.jpg").exists()
    assert not Path("/tmp/absolute.jpg").exists()


@pytest.mark.parametrize("batch_size", [0, -1])
def test_an_empty_batch_is_refused(world, batch_size):
    with pytest.raises(MisconfigurationException, match=f"data.batch_size is {batch_size}: give at least 1"):
        CC3MDataModule(world.shards, world.clip, world.bart, batch_size)
