"""Decoding of summaries of documents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from vlkd_pl.models.text import TextModel


@dataclass(frozen=True)
class SummaryDecoding:
    """Decoding strategy of summaries; the defaults are those of BART for XSum (``XSUM_DECODING``).

    Args:
        num_beams: Number of beams of the search, from 1; 1 is greedy search.
        max_length: Maximum number of tokens, including the start, begin and end tokens.
        min_length: Minimum number of tokens before the end token, including the start and begin tokens.
        length_penalty: Exponent of the length that a beam's score is divided by.
        no_repeat_ngram_size: Length in tokens of the n-grams that may not repeat; 0 allows all repetitions.
        early_stopping: Whether to end the search once as many summaries as beams are finished, as in fairseq.

    Example:
        >>> SummaryDecoding(num_beams=4).no_repeat_ngram_size
        3
    """

    num_beams: int = 6
    max_length: int = 62
    min_length: int = 11
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 3
    early_stopping: bool = True


XSUM_DECODING = SummaryDecoding()
"""BART's decoding for XSum (fairseq's examples/bart/summarize.py): beam=6, lenpen=1.0, max_len_b=60, min_len=10,
no_repeat_ngram_size=3, where fairseq counts neither the start token nor, in max_len_b, the end token."""


@torch.no_grad()
def summarize(model: TextModel, features: Tensor, mask: Tensor, decoding: SummaryDecoding) -> list[str]:
    """Summarize documents.

    All settings are passed to ``generate``, so that none of those stored with a BART apply: bart-large's have four
    beams.

    Args:
        model: Plain or distilled BART.
        features: Encoded documents (B, L, d_2) of ``TextModel.encode``.
        mask: Mask (B, L), 1 at real tokens.
        decoding: Decoding strategy.

    Returns:
        B summaries of one line each, without special tokens.

    Example:
        >>> from vlkd_pl.sample import BART_FOLDER
        >>> model = TextModel.load(BART_FOLDER)
        >>> encoded = model.tokenizer(["a red fish. it is in the snow."], return_tensors="pt")
        >>> features = model.encode(encoded["input_ids"], encoded["attention_mask"])
        >>> len(summarize(model, features, encoded["attention_mask"], SummaryDecoding(1, 12)))
        1
    """
    tokenizer = model.tokenizer
    ids = model.bart.generate(
        encoder_outputs=BaseModelOutput(last_hidden_state=features.clone()),  # beam search expands it in place
        attention_mask=mask,
        num_beams=decoding.num_beams,
        max_length=decoding.max_length,
        min_length=decoding.min_length,
        length_penalty=decoding.length_penalty,
        no_repeat_ngram_size=decoding.no_repeat_ngram_size,
        early_stopping=decoding.early_stopping and decoding.num_beams > 1,
        do_sample=False,
        decoder_start_token_id=model.bart.config.decoder_start_token_id,
        forced_bos_token_id=tokenizer.bos_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )
    return [" ".join(text.split()) for text in tokenizer.batch_decode(ids, skip_special_tokens=True)]
