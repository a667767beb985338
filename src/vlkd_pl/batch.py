"""The batch contract: the keys that data modules write and modules read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypedDict

from torch import Tensor
from typing_extensions import NotRequired

GLUETask = Literal["cola", "sst2", "rte", "mrpc", "qqp", "mnli", "qnli", "stsb"]

GLUE_LABELS: dict[GLUETask, tuple[str, ...]] = {
    "cola": ("0", "1"),
    "sst2": ("0", "1"),
    "rte": ("entailment", "not_entailment"),
    "mrpc": ("0", "1"),
    "qqp": ("0", "1"),
    "mnli": ("entailment", "neutral", "contradiction"),
    "qnli": ("entailment", "not_entailment"),
    "stsb": (),
}
"""The names of each task's classes in GLUE's files, in the order of their numbers; STS-B has similarities instead."""


class StreamPosition(NamedTuple):
    """How far a worker's stream had come when it made a batch.

    Attributes:
        worker: Number of the worker.
        num_workers: Workers of the rank.
        epoch: Passes over the shards that the worker has ended.
        num_samples: Raw samples of the present pass that it has used, good or bad.
        counts: What its decoder had counted, of all passes; see ``vlkd_pl.shards.decoder.COUNTED``.
    """

    worker: int
    num_workers: int
    epoch: int
    num_samples: int
    counts: Sequence[int] = ()


class InfillingBatch(TypedDict):
    """Corrupted texts, and the texts to be told from them.

    Attributes:
        corrupted_ids: BART's token ids (B, L) int64 with masks.
        corrupted_mask: (B, L) int64, 1 at real tokens.
        labels: Token ids (B, M) int64 of the clean texts, -100 at padding.
    """

    corrupted_ids: Tensor
    corrupted_mask: Tensor
    labels: Tensor


class ImageTextBatch(InfillingBatch):
    """Images with one text each, or in their place what CLIP made of both.

    Attributes:
        image: (B, 3, H, W) uint8, or floats that are normalised as CLIP takes them.
        clip_text_ids: CLIP's token ids (B, L) int64, 0 at padding.
        image_tokens: Cached features (B, 1 + N, D) of ``FrozenCLIP.encode_image``, or the first position alone, in
            float16, or in int8 with scales.
        image_scales: (B, 1 + N) float16, what each token in int8 is to be multiplied by.
        clip_text_embedding: Cached t_eos (B, D) float16.
        bart_text_ids: BART's token ids (B, M) int64 of the clean texts.
        bart_text_mask: (B, M) int64, 1 at real tokens.
        keys: Names of the B samples.
        text_infilling: Further texts, without images.
        stream_position: Where the stream stood after this batch.
    """

    image: NotRequired[Tensor]
    clip_text_ids: NotRequired[Tensor]
    image_tokens: NotRequired[Tensor]
    image_scales: NotRequired[Tensor]
    clip_text_embedding: NotRequired[Tensor]
    bart_text_ids: Tensor
    bart_text_mask: Tensor
    keys: NotRequired[list[str]]
    text_infilling: NotRequired[InfillingBatch]
    stream_position: NotRequired[StreamPosition]


class ShardEnd(NamedTuple):
    """What is known of a shard when all of it has been read.

    Attributes:
        key_hashes: Of the keys of all its samples with a text, in order, also of those that were skipped.
        skipped: How many samples were skipped for each reason.
    """

    key_hashes: list[int]
    skipped: dict[str, int]


class ShardBatch(TypedDict):
    """Images with one text each, of one shard and in its order, for CLIP to encode.

    Attributes:
        image: (B, 3, H, W) uint8, or normalised floats; B is 0 in a shard without a usable sample.
        clip_text_ids: CLIP's token ids (B, L) int64, 0 at padding.
        texts: B texts.
        keys: B keys.
        shard: The shard's name in the cache.
        end: In the shard's last batch.
    """

    image: Tensor
    clip_text_ids: Tensor
    texts: list[str]
    keys: list[str]
    shard: str
    end: ShardEnd | None


class EvaluationBatch(ImageTextBatch):
    """Images with all their texts; the other keys tell of each image's first text.

    Attributes:
        image_id: (B,) int64.
        references: All texts of each image.
    """

    image_id: Tensor
    references: list[list[str]]


class ImageBatch(TypedDict):
    """Images with what is known of them, for the modules that only evaluate and predict.

    Attributes:
        image: (B, 3, H, W) uint8, or floats that are normalised as CLIP takes them.
        samples: What the data module knows of each image, B of one kind.
        unreadable: A line on each file left out because it is no image.
    """

    image: Tensor
    samples: list[Any]
    unreadable: list[str]


class QuestionBatch(TypedDict):
    """Questions about images with the answers to be told.

    Attributes:
        image: (N, 3, H, W) uint8, or normalised floats; an image of several questions is there once.
        image_index: (B,) int64, the row in ``image`` of each question's image.
        questions: B questions.
        labels: B answers.
        unreadable: A line on each question left out because its file is no image.
    """

    image: Tensor
    image_index: Tensor
    questions: list[str]
    labels: list[str]
    unreadable: list[str]


class GLUEBatch(TypedDict):
    """Sentences, or pairs of sentences, of a task of GLUE.

    Attributes:
        samples: B of a kind with ``number``, ``texts``, ``label`` and ``part``.
        labels: (B,) class numbers, or similarities for STS-B; (0,) where they are secret.
        unreadable: Empty.
    """

    samples: list[Any]
    labels: Tensor
    unreadable: list[str]


class SummaryBatch(TypedDict):
    """Documents with the summaries to be told.

    Attributes:
        document_ids: BART's token ids (B, L) int64.
        document_mask: (B, L) int64, 1 at real tokens.
        labels: Token ids (B, M) int64 of the summaries, -100 at padding.
        samples: Number and summary of each document, B ``Document``.
        unreadable: Nothing: documents that cannot be used are left out before.
    """

    document_ids: Tensor
    document_mask: Tensor
    labels: Tensor
    samples: list[Any]
    unreadable: list[str]


class CaptioningBatch(ImageBatch):
    """Images with the captions to learn from.

    Attributes:
        labels: B images' captions: one of each, or all.
    """

    labels: list[list[str]]


class ImageText(TypedDict):
    """An image with its text.

    Attributes:
        image: (3, H, W) uint8.
        text: One text.
        key: A name of its own; the same image has another in each pass over the data.
    """

    image: Tensor
    text: str
    key: str


class ImageTexts(TypedDict):
    """An image with all its texts.

    Attributes:
        image: (3, H, W) uint8.
        image_id: The image's number in its annotation file.
        references: Its texts.
    """

    image: Tensor
    image_id: int
    references: list[str]
