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
    """OpenAI's tokenizer, which pads texts to the longest of the batch instead of a constant length.

    Args:
        merges: Content of a gzip file of byte-pair merges; None for OpenAI's vocabulary.
        context_length: Maximum number of ids of a text; a longer text is truncated and keeps its end token.

    Example:
        >>> tokenizer = CLIPTokenizer()
        >>> tokenizer(["a red fish", "a fish"])
        tensor([[49406,   320,   736,  2759, 49407],
                [49406,   320,  2759, 49407,     0]])
    """

    def __init__(self, merges: bytes | None = None, context_length: int = _CONTEXT_LENGTH) -> None:
        # SimpleTokenizer reads its merges with gzip.open, which accepts a file as well as a path
        self.tokenizer = SimpleTokenizer() if merges is None else SimpleTokenizer(io.BytesIO(merges))
        self.context_length = context_length
        self._ids_of_word: dict[str, list[int]] = {}
        self.start_id = self.tokenizer.encoder["<|startoftext|>"]
        self.end_id = self.tokenizer.encoder["<|endoftext|>"]

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Tokenize B texts to ids (B, L) int64, 0 at padding."""
        rows = [np.array([self.start_id, *self._encoded(text), self.end_id]) for text in texts]
        return pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True)

    def _encoded(self, text: str) -> list[int]:
        """The first ids of a text, up to the context length; those of frequent words are cached."""
        room = self.context_length - 2
        if not (text.isascii() and text.isprintable()) or "&" in text:  # other texts need no repair
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
        """The first ``room`` ids of a word or text.

        Byte-pair encoding takes time quadratic in a word's length. The first part of a long word suffices once it
        gives twice the ids, since the place of the cut only changes the ids next to it.
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
    """Load the tokenizer of a CLIP.

    Args:
        clip: One of ``CLIP_NAMES``, a weights file, or a folder with ``clip.safetensors`` and possibly
            ``merges.txt.gz``.

    Raises:
        ModelFileError: The CLIP is corrupt, or the merges do not fit its vocabulary.

    Example:
        >>> from vlkd_pl.sample import CLIP_FOLDER
        >>> load_clip_tokenizer(CLIP_FOLDER)(["a red fish"]).shape
        torch.Size([1, 5])
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
