"""Training data of the small CLIP and the small BART: endless random scenes and texts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, IterableDataset

from vlkd_pl.batch import InfillingBatch
from vlkd_pl.clip.tokenizer import CLIPTokenizer
from vlkd_pl.clip.transform import clip_transform
from vlkd_pl.data.infilling import TextInfilling
from vlkd_pl.models.bart import load_bart_tokenizer
from vlkd_pl.sample.language import random_caption, random_line
from vlkd_pl.sample.renderer import IMAGE_SIZE, render
from vlkd_pl.sample.scenes import Scene, Split, near_scenes, random_scene


class ScenePairs(IterableDataset[dict[str, torch.Tensor]]):
    """Batches of images with one caption each, in groups of scenes that differ in one property.

    Args:
        tokenizer: The small CLIP's tokenizer.
        split: Split that the scenes are drawn from.
        num_batches: Number of batches; None for an endless stream.
        batch_size: Number of pairs in a batch, all with different descriptions.
        group_size: Number of scenes in a group: one and its hard negatives.
        seed: Seed of the scenes and images.
    """

    def __init__(
        self,
        tokenizer: CLIPTokenizer,
        split: Split,
        num_batches: int | None,
        batch_size: int,
        group_size: int,
        seed: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.split = split
        self.num_batches = num_batches
        self.batch_size = batch_size
        self.group_size = group_size
        self.seed = seed
        self.transform = clip_transform(IMAGE_SIZE)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        rng = random.Random(f"{self.split} {self.seed}")
        index = 0
        while self.num_batches is None or index < self.num_batches:
            scenes = grouped_scenes(rng, self.split, self.batch_size, self.group_size)
            yield {
                "image": torch.stack([self.transform(render(scene, rng)) for scene in scenes]),
                "clip_text_ids": self.tokenizer([random_caption(rng, scene) for scene in scenes]),
            }
            index += 1


def grouped_scenes(rng: random.Random, split: Split, num_scenes: int, group_size: int) -> list[Scene]:
    """Draw ``num_scenes`` scenes with different descriptions, each ``group_size`` of them a chain of small changes."""
    scenes: dict[str, Scene] = {}
    while len(scenes) < num_scenes:
        scene = random_scene(rng, split)
        goal = min(len(scenes) + group_size, num_scenes)
        group = [scene]
        for _ in range(100 * group_size):
            if scene.split == split and scene.description not in scenes:
                scenes[scene.description] = scene
                group.append(scene)
            if len(scenes) == goal:
                break
            scene = next(near_scenes(rng, rng.choice(group)))
    return list(scenes.values())


class SceneDataModule(pl.LightningDataModule):
    """Images and captions of the sample world, drawn while training, for ``CLIPPretrainingModule``.

    Args:
        merges: A gzip file of the small CLIP's byte-pair merges.
        context_length: Positions of the small CLIP's text encoder.
        batch_size: Pairs in a batch.
        group_size: Near-identical scenes in a group of the batch.
        num_val_batches: Batches of validation pairs.
        seed: Seed of everything that is drawn.
    """

    def __init__(
        self,
        merges: str,
        context_length: int = 24,
        batch_size: int = 128,
        group_size: int = 8,
        num_val_batches: int = 4,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.tokenizer = CLIPTokenizer(Path(merges).read_bytes(), context_length)
        self.batch_size = batch_size
        self.group_size = group_size
        self.num_val_batches = num_val_batches
        self.seed = seed

    def train_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """Endless training batches."""
        pairs = ScenePairs(self.tokenizer, "train", None, self.batch_size, self.group_size, self.seed)
        return DataLoader(pairs, batch_size=None)

    def val_dataloader(self) -> DataLoader[dict[str, torch.Tensor]]:
        """The same batches each time, of scenes that are not in the training data."""
        pairs = ScenePairs(self.tokenizer, "val", self.num_val_batches, self.batch_size, self.group_size, self.seed)
        return DataLoader(pairs, batch_size=None)


class CorruptedLines(IterableDataset[InfillingBatch]):
    """Batches of corrupted lines of the text corpus.

    Args:
        infilling: Function that corrupts, tokenizes and pads texts.
        num_batches: Number of batches; None for an endless stream.
        batch_size: Lines in a batch.
        seed: Seed of the lines and their corruption.
        question_share: Share of the lines that must hold a question, in addition to those that do by chance.
    """

    def __init__(
        self,
        infilling: TextInfilling,
        num_batches: int | None,
        batch_size: int,
        seed: int,
        question_share: float = 0.0,
    ) -> None:
        self.infilling = infilling
        self.num_batches = num_batches
        self.batch_size = batch_size
        self.seed = seed
        self.question_share = question_share

    def __iter__(self) -> Iterator[InfillingBatch]:
        rng = random.Random(self.seed)
        index = 0
        while self.num_batches is None or index < self.num_batches:
            lines = [self._line(rng) for _ in range(self.batch_size)]
            yield self.infilling(lines, [np.random.default_rng(rng.getrandbits(64)) for _ in lines])
            index += 1

    def _line(self, rng: random.Random) -> str:
        line = random_line(rng)
        if self.question_share and rng.random() < self.question_share:
            while "?" not in line:
                line = random_line(rng)
        return line


class TextDataModule(pl.LightningDataModule):
    """Text of the sample world, drawn while training, for ``BARTPretrainingModule``.

    Args:
        tokenizer: Folder of the small BART's tokenizer.
        batch_size: Lines in a batch.
        mask_share: Shares of masked tokens; each line draws one of them.
        answer_mask_share: Share of the lines with an answer in which the answer alone is masked.
        question_share: Share of the lines that must hold a question, in addition to those that do by chance.
        num_val_batches: Batches of validation lines, in which all answers are masked.
        seed: Seed of everything that is drawn.
    """

    def __init__(
        self,
        tokenizer: str,
        batch_size: int = 128,
        mask_share: tuple[float, ...] = (0.15, 0.5, 0.8),
        answer_mask_share: float = 0.5,
        question_share: float = 0.0,
        num_val_batches: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.tokenizer = load_bart_tokenizer(tokenizer)
        self.batch_size = batch_size
        self.mask_share = mask_share
        self.answer_mask_share = answer_mask_share
        self.question_share = question_share
        self.num_val_batches = num_val_batches
        self.seed = seed

    def train_dataloader(self) -> DataLoader[InfillingBatch]:
        """Endless training batches."""
        infilling = TextInfilling(self.tokenizer, self.mask_share, answer_mask_share=self.answer_mask_share)
        lines = CorruptedLines(infilling, None, self.batch_size, self.seed, self.question_share)
        return DataLoader(lines, batch_size=None)

    def val_dataloader(self) -> DataLoader[InfillingBatch]:
        """The same batches each time."""
        infilling = TextInfilling(self.tokenizer, self.mask_share, answer_mask_share=1.0)
        return DataLoader(
            CorruptedLines(infilling, self.num_val_batches, self.batch_size, self.seed + 1), batch_size=None
        )
