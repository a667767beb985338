"""CLIP's tokenizer."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlkd_pl.clip.openai import SimpleTokenizer, basic_clean
from vlkd_pl.clip.weights import MERGES_FILE, WEIGHTS_FILE, weights_path
from vlkd_pl.errors import ModelFileError
from vlkd_pl.weights.model_files import check_merges, read_merges
from vlkd_pl.weights.reader import weight_shapes

_CONTEXT_LENGTH = 77
_MOST_WORDS = 1 << 17
_MOST_CHARACTERS = 20_000
_LONG_WORD = 512


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
        return pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True)

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
    path = weights_path(clip)
    if path is None:
        return CLIPTokenizer()
    shapes = weight_shapes(path)
    merges_path = path.with_name(MERGES_FILE)
    merges = read_merges(merges_path) if path.name == WEIGHTS_FILE and merges_path.is_file() else None
    try:
        vocab_size, context_length = shapes["token_embedding.weight"][0], shapes["positional_embedding"][0]
    except (KeyError, IndexError) as error:
        raise ModelFileError(f"{path}: not a CLIP of OpenAI's class, it has no text encoder") from error
    check_merges(path, vocab_size, merges)
    return CLIPTokenizer(merges, context_length)
