"""Training data of the small CLIP and the small BART: endless random scenes and texts."""

from __future__ import annotations

import random
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vlkd_pl.batch import InfillingBatch
from vlkd_pl.clip.tokenizer import CLIPTokenizer
from vlkd_pl.clip.transform import clip_transform
from vlkd_pl.data.infilling import ANSWER, TextInfilling, padded
from vlkd_pl.datamodules.base import BaseDataModule
from vlkd_pl.models.bart import load_bart_tokenizer
from vlkd_pl.sample.language import captions, random_caption, random_line
from vlkd_pl.sample.renderer import IMAGE_SIZE, render
from vlkd_pl.sample.scenes import Scene, Split, changed_scenes, near_scenes, random_scene


class ScenePairs(Dataset[dict[str, Tensor]]):
    """Batches of images with one caption each, in groups of scenes that differ in one property.

    A batch is a function of the split, the seed and its index, which has no upper limit.

    Args:
        tokenizer: The small CLIP's tokenizer.
        split: Split that the scenes are drawn from.
        batch_size: Number of pairs in a batch, all with different descriptions.
        group_size: Number of scenes in a group: one and its hard negatives.
        seed: Seed of the scenes and images.

    Example:
        >>> from vlkd_pl.clip.tokenizer import load_clip_tokenizer
        >>> from vlkd_pl.sample import CLIP_FOLDER
        >>> pairs = ScenePairs(load_clip_tokenizer(CLIP_FOLDER), "train", batch_size=4, group_size=2, seed=0)
        >>> pairs[7]["image"].shape
        torch.Size([4, 3, 64, 64])
    """

    def __init__(self, tokenizer: CLIPTokenizer, split: Split, batch_size: int, group_size: int, seed: int) -> None:
        self.tokenizer = tokenizer
        self.split = split
        self.batch_size = batch_size
        self.group_size = group_size
        self.seed = seed
        self.transform = clip_transform(IMAGE_SIZE)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = random.Random(f"pairs {self.split} {self.seed} {index}")
        scenes = grouped_scenes(rng, self.split, self.batch_size, self.group_size)
        return {
            "image": torch.stack([self.transform(render(scene, rng)) for scene in scenes]),
            "clip_text_ids": self.tokenizer([random_caption(rng, scene) for scene in scenes]),
        }


class HardNegatives(Dataset[dict[str, Any]]):
    """Batches of images, with the captions of their scenes and of all scenes that differ in one property.

    A batch is a function of the split, the seed and its index, which has no upper limit.

    Args:
        tokenizer: The small CLIP's tokenizer.
        split: Split that the scenes are drawn from; those that differ are of any split.
        batch_size: Number of images in a batch.
        seed: Seed of the scenes and images.

    Example:
        >>> from vlkd_pl.clip.tokenizer import load_clip_tokenizer
        >>> from vlkd_pl.sample import CLIP_FOLDER
        >>> negatives = HardNegatives(load_clip_tokenizer(CLIP_FOLDER), "val", batch_size=2, seed=0)
        >>> negatives[0]["num_captions"]  # of each image; the first of them is the image's
        [23, 41]
    """

    def __init__(self, tokenizer: CLIPTokenizer, split: Split, batch_size: int, seed: int) -> None:
        self.tokenizer = tokenizer
        self.split = split
        self.batch_size = batch_size
        self.seed = seed
        self.transform = clip_transform(IMAGE_SIZE)

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = random.Random(f"hard negatives {self.split} {self.seed} {index}")
        images, texts = [], []
        for _ in range(self.batch_size):
            scene = random_scene(rng, self.split)
            images.append(self.transform(render(scene, rng)))
            others = [other for scenes in changed_scenes(scene).values() for other in scenes]
            wording = rng.randrange(len(captions(scene)))
            texts.append([captions(other)[wording] for other in (scene, *others)])
        return {
            "image": torch.stack(images),
            "clip_text_ids": self.tokenizer([text for image_texts in texts for text in image_texts]),
            "num_captions": [len(image_texts) for image_texts in texts],
        }


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


class SceneDataModule(BaseDataModule):
    """Images and captions of the sample world, drawn while training, for ``CLIPPretrainingModule``.

    Training resumes after the batches of a checkpoint.

    Args:
        merges: A gzip file of the small CLIP's byte-pair merges.
        context_length: Positions of the small CLIP's text encoder.
        batch_size: Pairs in a batch.
        group_size: Near-identical scenes in a group of the batch.
        num_val_batches: Batches of validation pairs.
        num_hard_negatives: Number of images in each split of validation with hard negatives.
        num_workers: Number of processes that draw batches; 0 draws in the main process.
        seed: Seed of everything that is drawn.
    """

    def __init__(
        self,
        merges: str,
        context_length: int = 24,
        batch_size: int = 128,
        group_size: int = 8,
        num_val_batches: int = 4,
        num_hard_negatives: int = 150,
        num_workers: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(num_workers, seed)
        self.tokenizer = CLIPTokenizer(Path(merges).read_bytes(), context_length)
        self.batch_size = batch_size
        self.group_size = group_size
        self.num_val_batches = num_val_batches
        self.num_hard_negatives = num_hard_negatives

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        """Endless training batches, from the first that the model has not been trained on."""
        pairs = ScenePairs(self.tokenizer, "train", self.batch_size, self.group_size, self.seed)
        return self.loader(pairs, None, order=count(self.num_trained_batches))

    def val_dataloader(self) -> list[DataLoader[dict[str, Any]]]:
        """The same batches each time, of scenes that are not in the training data.

        The first loader is of pairs, the others of hard negatives: of the split ``val`` and of ``unseen``.
        """
        pairs = ScenePairs(self.tokenizer, "val", self.batch_size, self.group_size, self.seed)
        splits: tuple[Split, ...] = ("val", "unseen")
        negatives = [HardNegatives(self.tokenizer, split, 1, self.seed) for split in splits]
        return [
            self.loader(pairs, None, order=range(self.num_val_batches)),
            *(self.loader(images, None, order=range(self.num_hard_negatives)) for images in negatives),
        ]


class CorpusBatch(InfillingBatch):
    """Corrupted lines of the text corpus, and where their answers are.

    Attributes:
        answer_mask: Mask (B, M) int64 of ``labels``, 1 at the tokens after " Answer:": answer, full stop and end token.
        question_kinds: Kinds of the questions that the B lines ask after a passage; empty for other lines.
        passage_ids: BART's token ids (B, P) int64 of the passages that are encoded apart from their questions, which
            alone are corrupted; padding in other rows.
        passage_mask: Mask (B, P) int64, 1 at real tokens.
    """

    answer_mask: Tensor
    question_kinds: list[str]
    passage_ids: Tensor
    passage_mask: Tensor


class CorruptedLines(Dataset[CorpusBatch]):
    """Batches of corrupted lines of the text corpus.

    A batch is a function of the part, the seed and its index, which has no upper limit.

    Args:
        infilling: Function that corrupts, tokenizes and pads texts.
        part: ``train`` or ``val``, which have different lines.
        batch_size: Number of lines in a batch.
        seed: Seed of the lines and their corruption.
        question_share: Share of the lines that must be a passage with its question, in addition to those that are by
            chance; in [0, 1].
        separate_share: Share of the passages with a question that are encoded apart from it; in [0, 1].

    Example:
        >>> from vlkd_pl.models.bart import load_bart_tokenizer
        >>> from vlkd_pl.sample import BART_FOLDER
        >>> lines = CorruptedLines(TextInfilling(load_bart_tokenizer(BART_FOLDER)), "train", batch_size=4, seed=0)
        >>> lines[7]["question_kinds"]
        ['color', '', 'color', '']
    """

    def __init__(
        self,
        infilling: TextInfilling,
        part: Literal["train", "val"],
        batch_size: int,
        seed: int,
        question_share: float = 0.0,
        separate_share: float = 0.0,
    ) -> None:
        self.infilling = infilling
        self.part = part
        self.batch_size = batch_size
        self.seed = seed
        self.question_share = question_share
        self.separate_share = separate_share

    def __getitem__(self, index: int) -> CorpusBatch:
        rng = random.Random(f"lines {self.part} {self.seed} {index}")
        lines = [random_line(rng, self.question_share) for _ in range(self.batch_size)]
        passages = [line.passage if rng.random() < self.separate_share else "" for line in lines]
        texts = [line.text.removeprefix(passage).lstrip() for line, passage in zip(lines, passages, strict=True)]
        ids = [
            ids if passage else ids[:0]
            for ids, passage in zip(self.infilling.token_ids(passages), passages, strict=True)
        ]
        passage_ids, passage_mask = padded(ids, self.infilling.tokenizer.pad_token_id)
        batch = self.infilling(texts, [np.random.default_rng(rng.getrandbits(64)) for _ in lines])
        return {
            **batch,
            "answer_mask": self._answer_mask(texts, batch["labels"]),
            "question_kinds": [line.question_kind for line in lines],
            "passage_ids": passage_ids,
            "passage_mask": passage_mask,
        }

    def _answer_mask(self, texts: list[str], labels: Tensor) -> Tensor:
        # the tokenizer splits texts at spaces first: the tokens up to " Answer:" are the same without the answer
        questions = self.infilling.token_ids([text.partition(ANSWER)[0] + ANSWER.rstrip() for text in texts])
        starts = torch.tensor(
            [len(ids) - 1 if ANSWER in text else len(labels[0]) for ids, text in zip(questions, texts, strict=True)]
        )
        return ((torch.arange(len(labels[0])) >= starts[:, None]) & (labels != -100)).long()


class TextDataModule(BaseDataModule):
    """Text of the sample world, drawn while training, for ``BARTPretrainingModule``.

    Training resumes after the batches of a checkpoint.

    Args:
        tokenizer: Folder of the small BART's tokenizer.
        batch_size: Lines in a batch.
        mask_share: Shares of masked tokens; each line draws one of them.
        answer_mask_share: Share of the lines with an answer in which the answer alone is masked.
        question_share: Share of the lines that must be a passage with its question, in addition to those that are by
            chance; in [0, 1].
        separate_share: Share of the passages with a question that the encoder reads apart from it, so that the decoder
            combines both, as it combines an image and a question (Fusion-in-Decoder, Izacard and Grave, 2021); in
            [0, 1].
        num_val_batches: Batches of validation lines, in which all answers are masked, of each of the two forms.
        num_workers: Number of processes that draw batches; 0 draws in the main process.
        seed: Seed of everything that is drawn.
    """

    def __init__(
        self,
        tokenizer: str,
        batch_size: int = 64,
        mask_share: tuple[float, ...] = (0.15, 0.5, 0.8),
        answer_mask_share: float = 0.5,
        question_share: float = 0.0,
        separate_share: float = 0.0,
        num_val_batches: int = 16,
        num_workers: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(num_workers, seed)
        self.tokenizer = load_bart_tokenizer(tokenizer)
        self.batch_size = batch_size
        self.mask_share = mask_share
        self.answer_mask_share = answer_mask_share
        self.question_share = question_share
        self.separate_share = separate_share
        self.num_val_batches = num_val_batches

    def train_dataloader(self) -> DataLoader[CorpusBatch]:
        """Endless training batches, from the first that the model has not been trained on."""
        infilling = TextInfilling(self.tokenizer, self.mask_share, answer_mask_share=self.answer_mask_share)
        lines = CorruptedLines(infilling, "train", self.batch_size, self.seed, self.question_share, self.separate_share)
        return self.loader(lines, None, order=count(self.num_trained_batches))

    def val_dataloader(self) -> list[DataLoader[CorpusBatch]]:
        """The same batches each time: of whole lines, and of passages that are encoded apart from their questions."""
        infilling = TextInfilling(self.tokenizer, self.mask_share, answer_mask_share=1.0)
        return [
            self.loader(
                CorruptedLines(infilling, "val", self.batch_size, self.seed, separate_share=separate_share),
                None,
                order=range(self.num_val_batches),
            )
            for separate_share in (0.0, 1.0)
        ]
