"""Text infilling of BART (Lewis et al., 2020), the corruption of ICTI (Section 3.2.3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from vlkd_pl.batch import InfillingBatch

Ids = NDArray[np.int64]

ANSWER = " Answer: "
"""The words between a question and its answer, in texts whose answer alone may be masked."""


def corrupt(ids: Ids, rng: np.random.Generator, mask_share: float, mean_span_length: float, mask_id: int) -> Ids:
    """Replace spans of tokens by one mask each.

    Span lengths are Poisson draws until they add up to the budget, the last one truncated to fit, as in fairseq's
    denoising dataset; a span of length 0 inserts a mask. Spans do not overlap, so that exactly the budget is masked.

    Args:
        ids: Token ids (L,) of a text, with its begin and end tokens, which are kept.
        rng: Random generator of the lengths and places.
        mask_share: Share of the tokens between begin and end that is masked, in [0, 1]; the budget is rounded up.
        mean_span_length: Mean λ of the Poisson distribution of the span lengths, above 0.
        mask_id: Token id of the mask.

    Returns:
        The corrupted token ids, a new array.

    >>> ids = np.array([0, 11, 12, 13, 14, 15, 16, 2])
    >>> corrupt(ids, np.random.default_rng(2), mask_share=0.5, mean_span_length=3.0, mask_id=99)
    array([ 0, 99, 14, 15, 16,  2])
    """
    num_tokens = len(ids) - 2
    budget = math.ceil(mask_share * num_tokens)
    lengths, total = [], 0
    while total < budget:
        length = min(int(rng.poisson(mean_span_length)), budget - total)
        lengths.append(length)
        total += length
    spans = [length for length in lengths if length > 0]
    # places of the spans among the tokens that are kept: all orders of spans and tokens are equally likely
    num_kept = num_tokens - budget
    is_span = np.zeros(num_kept + len(spans), dtype=bool)
    is_span[rng.permutation(len(is_span))[: len(spans)]] = True
    corrupted, next_token, next_span = [int(ids[0])], 1, 0
    for masked in is_span:
        if masked:
            corrupted.append(mask_id)
            next_token += spans[next_span]
            next_span += 1
        else:
            corrupted.append(int(ids[next_token]))
            next_token += 1
    for _ in range(len(lengths) - len(spans)):
        corrupted.insert(int(rng.integers(1, len(corrupted) + 1)), mask_id)
    corrupted.append(int(ids[-1]))
    return np.array(corrupted, dtype=np.int64)


@dataclass(frozen=True)
class Masking:
    """How captions are corrupted; the defaults are the paper's."""

    mask_share: float | list[float] = 0.15
    """Share of the tokens that is masked, in [0, 1], or a list of shares of which each text draws one."""
    mean_span_length: float = 3.0
    """Mean λ of the Poisson distribution of the lengths of masked spans, above 0."""
    max_text_length: int = 64
    """Largest number of BART's tokens of a text; longer texts are truncated."""


class TextInfilling:
    """Tokenizes and corrupts texts.

    Args:
        tokenizer: Tokenizer of the BART.
        mask_share: Share of the tokens that is masked, in [0, 1], or a list of shares of which each text draws one.
        mean_span_length: Mean λ of the Poisson distribution of the span lengths, above 0.
        answer_mask_share: Of the texts that end in " Answer: x.", the share in which x alone is masked, by one mask.
        max_length: Largest number of tokens of a text; longer texts are truncated.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        mask_share: float | Sequence[float] = 0.15,
        mean_span_length: float = 3.0,
        answer_mask_share: float = 0.0,
        max_length: int = 64,
    ) -> None:
        self.tokenizer = tokenizer
        self.mask_shares = [mask_share] if isinstance(mask_share, float | int) else list(mask_share)
        self.mean_span_length = mean_span_length
        self.answer_mask_share = answer_mask_share
        self.max_length = max_length

    def __call__(self, texts: Sequence[str], rngs: Sequence[np.random.Generator]) -> InfillingBatch:
        """Corrupt texts, each with a random generator, and pad them to the longest.

        Args:
            texts: List of B texts.
            rngs: Random generators of the B texts.
        """
        clean = self.token_ids(texts)
        corrupted = [self._corrupted(text, ids, rng) for text, ids, rng in zip(texts, clean, rngs, strict=True)]
        corrupted_ids, corrupted_mask = padded(corrupted, self.tokenizer.pad_token_id)
        labels, _ = padded(clean, -100)
        return {"corrupted_ids": corrupted_ids, "corrupted_mask": corrupted_mask, "labels": labels}

    def token_ids(self, texts: Sequence[str]) -> list[Ids]:
        """Return the token ids of each text, with its begin and end tokens."""
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.max_length)["input_ids"]
        return [np.array(ids, dtype=np.int64) for ids in encoded]

    def _corrupted(self, text: str, ids: Ids, rng: np.random.Generator) -> Ids:
        end = text.find(ANSWER)
        if end >= 0 and rng.random() < self.answer_mask_share:
            return self.token_ids([f"{text[:end]}{ANSWER}{self.tokenizer.mask_token}."])[0]
        share = self.mask_shares[int(rng.integers(len(self.mask_shares)))]
        return corrupt(ids, rng, share, self.mean_span_length, self.tokenizer.mask_token_id)


def padded(sequences: Sequence[Ids], value: int) -> tuple[Tensor, Tensor]:
    """Pad sequences of token ids to the longest.

    Args:
        sequences: List of B arrays of token ids.
        value: Value at padding.

    Returns:
        Token ids (B, L) int64, and their mask (B, L) int64 with 1 at tokens and 0 at padding.

    >>> padded([np.array([5, 6, 7]), np.array([8])], value=-100)[0]
    tensor([[   5,    6,    7],
            [   8, -100, -100]])
    """
    rows = [torch.from_numpy(ids) for ids in sequences]
    ids = pad_sequence(rows, batch_first=True, padding_value=value)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()
