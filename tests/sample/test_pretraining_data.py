"""The pretraining data of the sample world's models."""

import random

import torch

from vlkd_pl.sample.pretraining_data import SceneDataModule, TextDataModule, grouped_scenes
from vlkd_pl.sample.tokenizers import clip_merges


def test_groups_are_near_and_no_description_comes_twice():
    scenes = grouped_scenes(random.Random(0), "train", 64, 8)
    assert len({scene.description for scene in scenes}) == 64
    assert {scene.split for scene in scenes} == {"train"}
    for first in range(0, 64, 8):
        assert len({scene.layout for scene in scenes[first : first + 8]}) == 1


def test_clip_batches(tmp_path):
    (tmp_path / "merges.txt.gz").write_bytes(clip_merges())
    module = SceneDataModule(str(tmp_path / "merges.txt.gz"), batch_size=16, num_val_batches=2)
    batch = next(iter(module.train_dataloader()))
    assert batch["image"].shape == (16, 3, 64, 64)
    assert batch["clip_text_ids"].shape[1] <= 24
    first, second = list(module.val_dataloader()), list(module.val_dataloader())
    assert len(first) == 2
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, second, strict=True))


def test_text_batches(bart_folder):
    module = TextDataModule(str(bart_folder), batch_size=64)
    batch = next(iter(module.train_dataloader()))
    mask_id = module.tokenizer.mask_token_id
    assert (batch["corrupted_ids"] == mask_id).any(1).all()
    texts = module.tokenizer.batch_decode(
        next(iter(module.val_dataloader()))["corrupted_ids"], skip_special_tokens=False
    )
    requests = [text for text in texts if "?" in text]
    assert requests
    assert all("Answer:<mask>." in text for text in requests)
