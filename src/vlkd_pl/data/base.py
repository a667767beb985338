"""Tokenizers and collation that all data modules share."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, cast
from zlib import crc32

import numpy as np
import torch
from huggingface_hub.utils import HFValidationError
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from safetensors import safe_open
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from vlkd_pl.batch import EvaluationBatch, ImageTextBatch
from vlkd_pl.data.infilling import TextInfilling, padded
from vlkd_pl.data.workers import end_with_main_process

_CONTEXT_LENGTH = 77
_MOST_WORDS = 1 << 17
_IMAGE_SIZES = {"RN50x4": 288, "RN50x16": 384, "RN50x64": 448, "ViT-L/14@336px": 336}
_DEFAULT_IMAGE_SIZE = 224
_OFFICIAL = ("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px")


class ImageText(TypedDict):
    """A picture with its text.

    Attributes:
        image: (3, H, W) uint8.
        text: One text.
        key: A name of its own; the same picture has another in each pass over the data.
    """

    image: Tensor
    text: str
    key: str


class ImageTexts(TypedDict):
    """A picture with all its texts.

    Attributes:
        image: (3, H, W) uint8.
        image_id: The picture's number in its annotation file.
        references: Its texts.
    """

    image: Tensor
    image_id: int
    references: list[str]


class CLIPTokenizer:
    """OpenAI's tokenizer, with texts padded to the longest of the batch and not to a constant.

    Args:
        merges: A gzip file of byte-pair merges; None for OpenAI's own.
        context_length: Most ids of a text; a longer one is cut, and still ends in the end token.
    """

    def __init__(self, merges: bytes | None = None, context_length: int = _CONTEXT_LENGTH) -> None:
        from clip.simple_tokenizer import SimpleTokenizer

        if merges is None:
            self.tokenizer = SimpleTokenizer()
        else:
            with tempfile.TemporaryDirectory() as folder:  # SimpleTokenizer reads its merges from a file alone
                path = Path(folder) / "merges.txt.gz"
                path.write_bytes(merges)
                self.tokenizer = SimpleTokenizer(str(path))
        self.context_length = context_length
        self._ids_of_word: dict[str, list[int]] = {}
        self.start_id = self.tokenizer.encoder["<|startoftext|>"]
        self.end_id = self.tokenizer.encoder["<|endoftext|>"]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids (B, L) int64, 0 at padding."""
        room = self.context_length - 2
        rows = [np.array([self.start_id, *self._encoded(text)[:room], self.end_id]) for text in texts]
        return padded(rows, 0)[0]

    def _encoded(self, text: str) -> list[int]:
        """OpenAI's ids of a text, those of plain words from memory: in printable ASCII there is nothing to repair."""
        if not (text.isascii() and text.isprintable()) or "&" in text:
            return cast(list[int], self.tokenizer.encode(text))
        ids: list[int] = []
        for word in text.lower().split():
            if word not in self._ids_of_word:
                if len(self._ids_of_word) == _MOST_WORDS:
                    self._ids_of_word.clear()
                self._ids_of_word[word] = self.tokenizer.encode(word)
            ids += self._ids_of_word[word]
        return ids


def load_clip_tokenizer(clip: str) -> CLIPTokenizer:
    """The tokenizer that goes with a CLIP.

    Args:
        clip: A name, a file, or a folder with ``clip.safetensors``, whose ``merges.txt.gz`` is used where it has one.
    """
    folder = Path(clip)
    if not (folder / "clip.safetensors").is_file():
        return CLIPTokenizer()
    merges = folder / "merges.txt.gz"
    context_length = _shape(folder, "positional_embedding")[0]
    return CLIPTokenizer(merges.read_bytes() if merges.is_file() else None, context_length)


def clip_image_size(clip: str) -> int:
    """The picture size in pixels that a CLIP takes.

    Args:
        clip: A name, a file called as OpenAI calls it, or a folder with ``clip.safetensors``.

    Raises:
        MisconfigurationException: It is another file: its size is not known from its name.
    """
    folder = Path(clip)
    if (folder / "clip.safetensors").is_file():
        positions = _shape(folder, "visual.attnpool.positional_embedding", "visual.positional_embedding")[0]
        with safe_open(folder / "clip.safetensors", "np") as weights:
            is_vit = "visual.proj" in weights.keys()  # noqa: SIM118 - not a dict
        patch_size = _shape(folder, "visual.conv1.weight")[-1] if is_vit else 32
        return round((positions - 1) ** 0.5) * patch_size
    for name in _OFFICIAL:
        if clip == name or folder.name == f"{name.replace('/', '-').replace('@', '-')}.pt":
            return _IMAGE_SIZES.get(name, _DEFAULT_IMAGE_SIZE)
    raise MisconfigurationException(
        f"the picture size of the CLIP {clip} cannot be told from its name: give --data.image_size"
    )


def load_bart_tokenizer(bart: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a BART.

    Args:
        bart: Hugging Face name, or a local folder: a BART's, or a model's that ``vlkd-pl fit`` wrote.

    Raises:
        FileNotFoundError: There is none.
    """
    if (Path(bart) / "bart").is_dir():
        bart = str(Path(bart) / "bart")
    try:
        return AutoTokenizer.from_pretrained(bart)
    except (OSError, HFValidationError) as error:
        raise FileNotFoundError(f"there is no tokenizer of BART at {bart}: give a folder that holds one") from error


class Collator:
    """Makes batches of pictures with texts.

    The corruption of a text is drawn from the seed and the sample's key alone, so that it does not depend on the number
    of workers.

    Args:
        clip_tokenizer: CLIP's tokenizer.
        infilling: Corrupts the texts, and holds BART's tokenizer.
        seed: Decides the corruption.
    """

    def __init__(self, clip_tokenizer: CLIPTokenizer, infilling: TextInfilling, seed: int) -> None:
        self.clip_tokenizer = clip_tokenizer
        self.infilling = infilling
        self.seed = seed

    def __call__(self, samples: Sequence[ImageText]) -> ImageTextBatch:
        """A batch of one text for each picture."""
        texts = [sample["text"] for sample in samples]
        batch = self.texts(texts, [sample["key"] for sample in samples])
        batch["image"] = torch.stack([sample["image"] for sample in samples])
        batch["clip_text_ids"] = self.clip_tokenizer(texts)
        return batch

    def texts(self, texts: Sequence[str], keys: Sequence[str]) -> ImageTextBatch:
        """A batch of what BART needs alone.

        Args:
            texts: B texts.
            keys: B keys of the samples, that decide the corruption.
        """
        rngs = [np.random.default_rng((self.seed, crc32(key.encode(errors="surrogateescape")))) for key in keys]
        infilling = self.infilling(texts, rngs)
        labels = infilling["labels"]  # the clean texts' ids, which need not be made again
        return {
            "bart_text_ids": labels.masked_fill(labels == -100, self.infilling.tokenizer.pad_token_id),
            "bart_text_mask": (labels != -100).long(),
            "corrupted_ids": infilling["corrupted_ids"],
            "corrupted_mask": infilling["corrupted_mask"],
            "labels": labels,
            "keys": list(keys),
        }

    def evaluation(self, samples: Sequence[ImageTexts]) -> EvaluationBatch:
        """A batch of pictures with all their texts, corrupted in the same way each time."""
        firsts: list[ImageText] = [
            {"image": sample["image"], "text": sample["references"][0], "key": str(sample["image_id"])}
            for sample in samples
        ]
        return {
            **self(firsts),
            "image_id": torch.tensor([sample["image_id"] for sample in samples]),
            "references": [sample["references"] for sample in samples],
        }


def _shape(folder: Path, *names: str) -> list[int]:
    """The shape of the first of these weights that a CLIP's folder has, without reading the weights."""
    with safe_open(folder / "clip.safetensors", "np") as weights:
        present = set(weights.keys())
        shape: list[int] = weights.get_slice(next(name for name in names if name in present)).get_shape()
    return shape


def one_thread(worker: int) -> None:
    """For a worker of a ``DataLoader``: more threads would take the cores from the other workers."""
    torch.set_num_threads(1)
    end_with_main_process()
