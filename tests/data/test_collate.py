"""Tokenizers and collation."""

from pathlib import Path

import clip
import numpy as np
import pytest
import torch
from clip.clip import _transform
from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from transformers import AutoTokenizer

from vlkd_pl.clip.frozen import normalized
from vlkd_pl.clip.tokenizer import CLIPTokenizer, load_clip_tokenizer
from vlkd_pl.clip.transform import clip_transform
from vlkd_pl.clip.weights import clip_image_size
from vlkd_pl.data.collate import Collator
from vlkd_pl.data.infilling import TextInfilling
from vlkd_pl.errors import ModelFileError
from vlkd_pl.models.bart import load_bart_tokenizer
from vlkd_pl.weights.model_files import merges_vocab_size

TEXTS = ["A photograph of a giraffe, eating.", "two dogs", "x" * 400]


def test_clip_ids_are_openais_without_the_padding():
    expected = clip.tokenize(TEXTS, truncate=True)
    ids = CLIPTokenizer()(TEXTS)
    assert (ids == expected[:, : ids.shape[1]]).all()
    assert CLIPTokenizer()(TEXTS[:2]).shape[1] == (expected[0] != 0).sum()


def test_a_clip_folder_brings_its_own_vocabulary(clip_folder):
    tokenizer = load_clip_tokenizer(str(clip_folder))
    ids = tokenizer(["a red fish", "from left to right a red fish, a blue boat and a green key on the grass"])
    assert ids.max() == 654
    assert ids[0].tolist()[:5] == [653, *tokenizer.tokenizer.encode("a red fish"), 654]
    assert tokenizer(["boat " * 100]).shape == (1, 24)
    assert tokenizer(["boat " * 100])[0, -1] == 654


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("ViT-B/16", 224),
        ("RN50x16", 384),
        ("RN50x64", 448),
        ("/a/b/ViT-L-14-336px.pt", 336),
        ("downloads/RN50x4.pt", 288),
    ],
)
def test_image_size_by_name(name, size):
    assert clip_image_size(name) == size


def test_image_size_of_folders_and_strangers(clip_folder):
    assert clip_image_size(str(clip_folder)) == 64
    with pytest.raises(MisconfigurationException, match=r"give --data\.image_size"):
        clip_image_size("mine.pt")


def test_missing_bart_tokenizer(tmp_path):
    with pytest.raises(FileNotFoundError, match="BART cannot be loaded from"):
        load_bart_tokenizer(str(tmp_path / "nothing"))


def same_as_clips_own(image, image_size):
    tensor = clip_transform(image_size)(image)
    assert tensor.shape == (3, image_size, image_size)
    assert tensor.dtype == torch.uint8
    return torch.equal(normalized(tensor), _transform(image_size)(image))


@pytest.mark.parametrize(
    ("mode", "size"),
    [("L", (90, 150)), ("CMYK", (64, 64)), ("RGBA", (65, 64)), ("RGBA", (300, 90)), ("LA", (80, 70)), ("P", (99, 200))],
)
def test_transform_is_clips_own_for_every_mode(mode, size):
    colors = Image.merge("RGB", [Image.effect_noise(size, 80) for _ in range(3)])
    assert same_as_clips_own(colors.convert(mode), 64)


def test_transform_is_clips_own_for_every_size():
    rng = np.random.default_rng(0)
    for image_size in (32, 64, 224, 336):
        for width, height in [(1, 1), (image_size, image_size), (400, 300), *rng.integers(1, 700, (60, 2)).tolist()]:
            pixels = (
                rng.choice([0, 255], (height, width, 3)) if width % 2 else rng.integers(256, size=(height, width, 3))
            )
            if max(width, height) < 30 * min(width, height):
                assert same_as_clips_own(Image.fromarray(pixels.astype(np.uint8)), image_size), (width, height)


@pytest.mark.parametrize("own_merges", [False, True])
def test_clip_text_ids_are_openais(clip_folder, own_merges):
    tokenizer = load_clip_tokenizer(str(clip_folder) if own_merges else "ViT-B/16")
    rng = np.random.default_rng(0)
    printable = [chr(code) for code in range(32, 127)]
    texts = ["".join(rng.choice(printable, rng.integers(60))) for _ in range(500)]
    texts += [
        "A dog's <|endoftext|>ball -- it isn't 12.5cm",
        "",
        "  two  spaces ",
        "a\tb\x1cc\nd",
        "Tom &amp;amp; Jerry",
    ]
    texts += [
        "caf\u00e9 \u201cquoted\u201d",
        "\u03a3\u0391\u03a3 \u0130",
        "schÃ¶n",
        "\ufb01sh",
        "a\u3000b",
        "\x1b[31mred",
    ]
    for text in [*texts, *texts]:  # also from memory
        expected = [
            tokenizer.start_id,
            *tokenizer.tokenizer.encode(text)[: tokenizer.context_length - 2],
            tokenizer.end_id,
        ]
        assert tokenizer([text])[0].tolist() == expected, text


def test_words_are_forgotten_when_there_are_too_many(clip_folder, monkeypatch):
    monkeypatch.setattr("vlkd_pl.clip.tokenizer._MOST_WORDS", 3)
    tokenizer = load_clip_tokenizer(str(clip_folder))
    text = "a red fish left of a blue boat in the snow"
    assert tokenizer([text])[0, 1:-1].tolist() == tokenizer.tokenizer.encode(text)
    assert len(tokenizer._ids_of_word) <= 3


def test_very_long_words_are_cut_and_ordinary_text_is_not():
    tokenizer = CLIPTokenizer()
    texts = [
        "pneumonoultramicroscopicsilicovolcanoconiosis " * 3,
        "https://example.org/" + "a-long/path_" * 40,
        "\u4e00\u4e8c\u4e09" * 200,
        "\U0001f602" * 600,
        "x" * 1000,
        "caf\u00e9" * 300,
        "a" + " " * 3000 + "b",
        "word " * 900,
    ]
    expected = clip.tokenize(texts, truncate=True)
    assert (tokenizer(texts) == expected).all()
    lengths = []
    encode = tokenizer.tokenizer.bpe
    tokenizer.tokenizer.bpe = lambda symbols: lengths.append(len(symbols)) or encode(symbols)
    rng = np.random.default_rng(0)
    letters = "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 50_000))
    for text in (letters, f"caf\u00e9 {letters}", "\u00e9" * 50_000, f"&amp;{letters}"):
        assert tokenizer([text]).shape == (1, 77)
    assert max(lengths) <= 2048


@pytest.mark.parametrize("clip_kind", ["folder", "file"])
def test_merges_must_make_the_vocabulary(clip_folder, tmp_path, clip_kind):
    path = tmp_path / "clip.safetensors"
    path.write_bytes((clip_folder / "clip.safetensors").read_bytes())
    if clip_kind == "file":
        path = path.rename(tmp_path / "other.safetensors")
        (tmp_path / "merges.txt.gz").write_bytes((clip_folder / "merges.txt.gz").read_bytes())
    with pytest.raises(
        ModelFileError, match=r"embeds 655 tokens, but it has no merges.txt.gz, and OpenAI's gives 49408"
    ):
        load_clip_tokenizer(str(tmp_path if clip_kind == "folder" else path))


def test_a_real_file_of_merges_is_read():
    from clip.simple_tokenizer import default_bpe

    assert merges_vocab_size(Path(default_bpe()).read_bytes()) == 49408


@pytest.fixture
def collator(clip_folder, bart_folder):
    return Collator(
        load_clip_tokenizer(str(clip_folder)), TextInfilling(AutoTokenizer.from_pretrained(bart_folder), 0.5), seed=3
    )


def samples(*keys):
    return [
        {"image": torch.full((3, 2, 2), float(i)), "text": "a red fish left of a blue boat", "key": key}
        for i, key in enumerate(keys)
    ]


def test_corruption_depends_on_seed_and_key_alone(collator):
    first, second = collator(samples("a", "b", "c")), collator(samples("x", "c"))
    rows = [
        batch["corrupted_ids"][row][batch["corrupted_mask"][row].bool()].tolist()
        for batch, row in ((first, 2), (second, 1))
    ]
    assert rows[0] == rows[1]
    assert len({tuple(row) for row in collator(samples(*map(str, range(20))))["corrupted_ids"].tolist()}) > 10


def test_batch_contract(collator):
    batch = collator(samples("a", "b"))
    assert batch["image"].shape == (2, 3, 2, 2)
    assert (batch["labels"] == batch["bart_text_ids"]).all()
    assert batch.pop("keys") == [sample["key"] for sample in samples("a", "b")]
    assert {value.dtype for name, value in batch.items() if name != "image"} == {torch.int64}


def test_evaluation_takes_the_first_reference(collator):
    images = [{"image": torch.zeros(3, 2, 2), "image_id": 7, "references": ["a red fish", "a fish"]}] * 2
    batch = collator.evaluation(images)
    assert batch["image_id"].tolist() == [7, 7]
    assert batch["references"] == [["a red fish", "a fish"]] * 2
    assert collator.infilling.tokenizer.decode(batch["labels"][0]) == "<s>a red fish</s>"
    assert (batch["corrupted_ids"] == collator.evaluation(images)["corrupted_ids"]).all()
