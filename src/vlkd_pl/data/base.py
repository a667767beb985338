"""Tokenizers and collation that all data modules share."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict
from zlib import crc32

import numpy as np
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from vlkd_pl.bart import load_bart_tokenizer
from vlkd_pl.batch import EvaluationBatch, ImageTextBatch
from vlkd_pl.data.infilling import TextInfilling, padded
from vlkd_pl.data.workers import end_with_main_process
from vlkd_pl.errors import ModelFileError
from vlkd_pl.model_files import check_merges, read_merges
from vlkd_pl.openai_clip import SimpleTokenizer, basic_clean
from vlkd_pl.weights import weight_shapes

__all__ = [
    "CLIPTokenizer",
    "Collator",
    "ImageText",
    "ImageTexts",
    "clip_image_size",
    "load_bart_tokenizer",
    "load_clip_tokenizer",
    "one_thread",
]

_CONTEXT_LENGTH = 77
_MOST_WORDS = 1 << 17
_MOST_CHARACTERS = 20_000
_LONG_WORD = 512
_WEIGHTS_FILE = "clip.safetensors"
_MERGES_FILE = "merges.txt.gz"
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
        # gzip.open, by which it reads its merges, takes a file as well as a path
        self.tokenizer = SimpleTokenizer() if merges is None else SimpleTokenizer(io.BytesIO(merges))
        self.context_length = context_length
        self._ids_of_word: dict[str, list[int]] = {}
        self.start_id = self.tokenizer.encoder["<|startoftext|>"]
        self.end_id = self.tokenizer.encoder["<|endoftext|>"]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Token ids (B, L) int64, 0 at padding."""
        rows = [np.array([self.start_id, *self._encoded(text), self.end_id]) for text in texts]
        return padded(rows, 0)[0]

    def _encoded(self, text: str) -> list[int]:
        """The first of OpenAI's ids of a text, as many as there is room for; those of known words from memory."""
        room = self.context_length - 2
        if not (text.isascii() and text.isprintable()) or "&" in text:  # else there is nothing to repair
            return self._encoded_word(basic_clean(text[:_MOST_CHARACTERS]).lower(), room)
        ids: list[int] = []
        for word in text.lower().split():
            if word not in self._ids_of_word:
                if len(self._ids_of_word) == _MOST_WORDS:
                    self._ids_of_word.clear()
                self._ids_of_word[word] = self._encoded_word(word, room)
            ids += self._ids_of_word[word]
            if len(ids) >= room:
                break
        return ids[:room]

    def _encoded_word(self, word: str, room: int) -> list[int]:
        """The first ids of a word or text, as many as there is room for.

        Byte-pair encoding takes time in the square of a word's length. Of a long one the first part is enough where it
        gives twice the ids: where it is cut changes the ids at that place alone.
        """
        tokenizer, length = self.tokenizer, _LONG_WORD
        while True:
            ids = []
            for piece in tokenizer.pat.findall(word[:length]):
                symbols = "".join(tokenizer.byte_encoder[byte] for byte in piece.encode())
                ids += [tokenizer.encoder[symbol] for symbol in tokenizer.bpe(symbols).split(" ")]
            if length >= len(word) or len(ids) >= 2 * room:
                return ids[:room]
            length *= 2


def load_clip_tokenizer(clip: str) -> CLIPTokenizer:
    """The tokenizer that goes with a CLIP.

    Args:
        clip: A name, a file, or a folder with ``clip.safetensors``, whose ``merges.txt.gz`` is used where it has one.

    Raises:
        ModelFileError: The CLIP is corrupt, or the merges do not make its vocabulary.
    """
    path = _weights_path(clip)
    if path is None:
        return CLIPTokenizer()
    shapes = weight_shapes(path)
    merges_path = path.with_name(_MERGES_FILE)
    merges = read_merges(merges_path) if path.name == _WEIGHTS_FILE and merges_path.is_file() else None
    try:
        vocab_size, context_length = shapes["token_embedding.weight"][0], shapes["positional_embedding"][0]
    except (KeyError, IndexError) as error:
        raise ModelFileError(f"{path}: not a CLIP of OpenAI's class, it has no text encoder") from error
    check_merges(path, vocab_size, merges)
    return CLIPTokenizer(merges, context_length)


def clip_image_size(clip: str) -> int:
    """The picture size in pixels that a CLIP takes.

    Args:
        clip: A name, a file called as OpenAI calls it, or a folder with ``clip.safetensors``.

    Raises:
        MisconfigurationException: It is another file: its size is not known from its name.
    """
    path = _weights_path(clip)
    if path is not None and path.name == _WEIGHTS_FILE:
        shapes = weight_shapes(path)
        try:
            is_vit = "visual.proj" in shapes
            positions = shapes["visual.positional_embedding" if is_vit else "visual.attnpool.positional_embedding"][0]
            return round((positions - 1) ** 0.5) * (shapes["visual.conv1.weight"][-1] if is_vit else 32)
        except (KeyError, IndexError) as error:
            raise ModelFileError(f"{path}: not a CLIP of OpenAI's class, it has no image encoder") from error
    for name in _OFFICIAL:
        if clip == name or Path(clip).name == f"{name.replace('/', '-').replace('@', '-')}.pt":
            return _IMAGE_SIZES.get(name, _DEFAULT_IMAGE_SIZE)
    raise MisconfigurationException(
        f"the picture size of the CLIP {clip} cannot be told from its name: give --data.image_size"
    )


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


def _weights_path(clip: str) -> Path | None:
    """The file of a CLIP's weights, None where it is a name or missing."""
    path = Path(clip)
    if path.is_dir() or (path / _WEIGHTS_FILE).exists():
        path = path / _WEIGHTS_FILE
    return path if clip not in _OFFICIAL and path.exists() else None


def one_thread(worker: int) -> None:
    """For a worker of a ``DataLoader``: more threads would take the cores from the other workers."""
    torch.set_num_threads(1)
    end_with_main_process()
