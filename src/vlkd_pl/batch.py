"""The batch contract: the keys and shapes that data modules and modules share."""

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
"""Class names of each task in GLUE's files, in the order of their indices; STS-B has similarities instead."""


class StreamPosition(NamedTuple):
    """Position of a worker's stream after a batch, from which training resumes.

    Attributes:
        worker: Index of the worker, from 0.
        num_workers: Number of workers of the rank.
        epoch: Number of passes over the shards that the worker has completed.
        num_samples: Number of raw samples of the current pass that the worker has read, good or bad.
        counts: Values of the decoder's counters over all passes; see ``vlkd_pl.shards.decoder.COUNTED``.
    """

    worker: int
    num_workers: int
    epoch: int
    num_samples: int
    counts: Sequence[int] = ()


class InfillingBatch(TypedDict):
    """Corrupted texts and the clean texts to reconstruct.

    Attributes:
        corrupted_ids: BART's token ids (B, L) int64 of the texts with masks.
        corrupted_mask: Mask (B, L) int64, 1 at real tokens.
        labels: Token ids (B, M) int64 of the clean texts, -100 at padding.
    """

    corrupted_ids: Tensor
    corrupted_mask: Tensor
    labels: Tensor


class TextAsImageBatch(InfillingBatch):
    """Corrupted texts about passages, each with a passage that CLIP embeds in the place of an image.

    Attributes:
        clip_text_ids: CLIP's token ids (B, L) int64 of the passages, 0 at padding.
    """

    clip_text_ids: Tensor


class ImageTextBatch(InfillingBatch):
    """Images with one text each, either raw or as cached features of CLIP.

    Attributes:
        image: Images (B, 3, H, W) uint8, or floats with CLIP's normalisation.
        clip_text_ids: CLIP's token ids (B, L) int64, 0 at padding.
        image_tokens: Cached tokens (B, 1 + N, D) or (B, 1, D) of ``FrozenCLIP.encode_image``, float16 or int8.
        image_scales: Scales (B, 1 + N) float16 that int8 tokens are multiplied by.
        clip_text_embedding: Cached embeddings t_eos (B, D) float16.
        bart_text_ids: BART's token ids (B, M) int64 of the clean texts.
        bart_text_mask: Mask (B, M) int64, 1 at real tokens.
        keys: Keys of the B samples.
        text_infilling: Corrupted texts without images, for infilling from text alone.
        text_as_image: Corrupted texts about passages that take the place of images.
        stream_position: Position of the stream after this batch.
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
    text_as_image: NotRequired[TextAsImageBatch]
    stream_position: NotRequired[StreamPosition]


class ShardEnd(NamedTuple):
    """Summary of a shard that has been read to its end.

    Attributes:
        key_hashes: Hash of the key of each sample with a text, in order, including samples that were skipped.
        skipped: Number of skipped samples by reason.
    """

    key_hashes: list[int]
    skipped: dict[str, int]


class ShardBatch(TypedDict):
    """Images with one text each, in the order of one shard, for the feature cache.

    Attributes:
        image: Images (B, 3, H, W) uint8, or floats with CLIP's normalisation; B is 0 without a usable sample.
        clip_text_ids: CLIP's token ids (B, L) int64, 0 at padding.
        texts: Texts of the B samples.
        keys: Keys of the B samples.
        shard: Name of the shard in the cache.
        end: Summary of the shard in its last batch; None in the others.
    """

    image: Tensor
    clip_text_ids: Tensor
    texts: list[str]
    keys: list[str]
    shard: str
    end: ShardEnd | None


class EvaluationBatch(ImageTextBatch):
    """Images with all their texts; the keys of ``ImageTextBatch`` hold the first text of each.

    Attributes:
        image_id: Ids (B,) int64 of the images.
        references: All texts of each of the B images.
    """

    image_id: Tensor
    references: list[list[str]]


class ImageBatch(TypedDict):
    """Images with their samples, for evaluation and prediction.

    Attributes:
        image: Images (B, 3, H, W) uint8, or floats with CLIP's normalisation.
        samples: The B samples of the data module, all of one class.
        unreadable: One line for each file that was left out because it is not a readable image.
    """

    image: Tensor
    samples: list[Any]
    unreadable: list[str]


class QuestionBatch(TypedDict):
    """Questions about images with their answers.

    Attributes:
        image: Images (N, 3, H, W) uint8, or floats with CLIP's normalisation; an image with several questions is
            stored once.
        image_index: Row (B,) int64 of each question's image in ``image``.
        questions: B questions.
        labels: B answers.
        unreadable: One line for each question that was left out because its file is not a readable image.
    """

    image: Tensor
    image_index: Tensor
    questions: list[str]
    labels: list[str]
    unreadable: list[str]


class GLUEBatch(TypedDict):
    """Sentences, or pairs of sentences, of a task of GLUE.

    Attributes:
        samples: B samples with ``number``, ``texts``, ``label`` and ``part``.
        labels: Class indices (B,) int64, or similarities (B,) float32 for STS-B; (0,) in test sets without labels.
        unreadable: Empty list, since texts are always readable.
    """

    samples: list[Any]
    labels: Tensor
    unreadable: list[str]


class SummaryBatch(TypedDict):
    """Documents with their summaries.

    Attributes:
        document_ids: BART's token ids (B, L) int64 of the documents.
        document_mask: Mask (B, L) int64, 1 at real tokens.
        labels: Token ids (B, M) int64 of the summaries, -100 at padding.
        samples: The B documents, with number and summary.
        unreadable: Empty list, since unusable documents are left out when the files are read.
    """

    document_ids: Tensor
    document_mask: Tensor
    labels: Tensor
    samples: list[Any]
    unreadable: list[str]


class CaptioningBatch(ImageBatch):
    """Images with reference captions for training.

    Attributes:
        labels: Captions of each of the B images: one, or all.
    """

    labels: list[list[str]]


class ImageText(TypedDict):
    """Image with one text.

    Attributes:
        image: Image (3, H, W) uint8.
        text: Text of the image.
        key: Unique key of the sample; it differs in each pass over the data.
    """

    image: Tensor
    text: str
    key: str


class ImageTexts(TypedDict):
    """Image with all its texts.

    Attributes:
        image: Image (3, H, W) uint8.
        image_id: Id of the image in its annotation file.
        references: All texts of the image.
    """

    image: Tensor
    image_id: int
    references: list[str]
