"""Tokenizers and collation."""

import clip
import pytest
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from transformers import AutoTokenizer

from vlkd_pl.data.base import CLIPTokenizer, Collator, clip_image_size, load_bart_tokenizer, load_clip_tokenizer
from vlkd_pl.data.infilling import TextInfilling
from vlkd_pl.data.transforms import clip_transform

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
    with pytest.raises(FileNotFoundError, match="no tokenizer of BART"):
        load_bart_tokenizer(str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("mode", "size"), [("RGB", (300, 200)), ("L", (90, 150)), ("CMYK", (64, 64)), ("RGBA", (65, 64))]
)
def test_transform_is_clips_own(mode, size):
    from clip.clip import _transform
    from PIL import Image

    image = Image.effect_noise(size, 80).convert(mode)
    tensor = clip_transform(64)(image)
    assert tensor.shape == (3, 64, 64)
    torch.testing.assert_close(tensor, _transform(64)(image), rtol=0, atol=0)


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
    pictures = [{"image": torch.zeros(3, 2, 2), "image_id": 7, "references": ["a red fish", "a fish"]}] * 2
    batch = collator.evaluation(pictures)
    assert batch["image_id"].tolist() == [7, 7]
    assert batch["references"] == [["a red fish", "a fish"]] * 2
    assert collator.infilling.tokenizer.decode(batch["labels"][0]) == "<s>a red fish</s>"
    assert (batch["corrupted_ids"] == collator.evaluation(pictures)["corrupted_ids"]).all()
