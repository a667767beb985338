"""The vocabularies of the small CLIP and the small BART."""

from __future__ import annotations

import gzip
import random
import sys
from collections.abc import Iterator
from pathlib import Path

from vlkd_pl.sample.language import random_line, vocabulary_words

CONTEXT_LENGTH = 24
"""Number of positions of the small CLIP's text encoder; the longest caption has 23 tokens."""

_BART_SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def clip_merges() -> bytes:
    """The small CLIP's byte-pair merges: those of OpenAI's vocabulary that the words of the sample world need.

    Each word of a caption is one or more tokens as OpenAI's tokenizer splits it; other words fall into smaller pieces.

    Returns:
        Content of a gzip file in the layout of OpenAI's ``bpe_simple_vocab_16e6.txt.gz``.
    """
    from vlkd_pl.clip.openai import SimpleTokenizer, get_pairs

    ranks = SimpleTokenizer().bpe_ranks
    used = set()
    for word in vocabulary_words():
        pieces = (*word[:-1], f"{word[-1]}</w>")
        while len(pieces) > 1:
            first, second = pair = min(get_pairs(pieces), key=lambda pair: ranks.get(pair, float("inf")))
            if pair not in ranks:
                break
            used.add(pair)
            merged: list[str] = []
            for piece in pieces:
                if merged and merged[-1] == first and piece == second:
                    merged[-1] = first + second
                else:
                    merged.append(piece)
            pieces = tuple(merged)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in sorted(used, key=ranks.__getitem__))]
    return gzip.compress("\n".join(lines).encode(), mtime=0)


def train_bart_tokenizer(folder: Path, num_lines: int = 20_000) -> int:
    """Train a byte-level BPE on the text corpus and write it as a BART tokenizer.

    Args:
        folder: Folder that ``vocab.json``, ``merges.txt`` and their settings are written to.
        num_lines: Number of lines of the corpus to train on.

    Returns:
        Size of the vocabulary.
    """
    from tokenizers import ByteLevelBPETokenizer
    from transformers import AddedToken, BartTokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        _lines(num_lines),
        vocab_size=1000,
        min_frequency=20,
        special_tokens=list(_BART_SPECIAL_TOKENS),
        show_progress=False,
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_model(str(folder))
    mask_token = AddedToken("<mask>", lstrip=True, special=True)  # as in BART's own files: it takes the space before it
    BartTokenizer.from_pretrained(folder, mask_token=mask_token, model_max_length=64).save_pretrained(folder)
    return tokenizer.get_vocab_size()


def _lines(num_lines: int) -> Iterator[str]:
    rng = random.Random(0)
    for _ in range(num_lines):
        yield random_line(rng).text


def main() -> None:
    """Write both vocabularies: ``python -m vlkd_pl.sample.tokenizers FOLDER``."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "merges.txt.gz").write_bytes(clip_merges())
    print(f"{folder}: BART's vocabulary holds {train_bart_tokenizer(folder / 'bart')} tokens")


if __name__ == "__main__":
    main()
