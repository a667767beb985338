"""Summaries of documents: how they are decoded."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from vlkd_pl.models.text import TextModel


@dataclass(frozen=True)
class SummaryDecoding:
    """How summaries are decoded; the defaults are BART's for XSum, see ``XSUM_DECODING``.

    Args:
        num_beams: Beams of the search; 1 is greedy.
        max_length: Most tokens, with the start, begin and end tokens.
        min_length: Tokens before the end token at least, with the start and begin tokens.
        length_penalty: Exponent of the length that a beam's score is divided by.
        no_repeat_ngram_size: No sequence of as many tokens comes twice; 0 allows all.
        early_stopping: Whether the search ends with as many finished summaries as beams, as in fairseq.
    """

    num_beams: int = 6
    max_length: int = 62
    min_length: int = 11
    length_penalty: float = 1.0
    no_repeat_ngram_size: int = 3
    early_stopping: bool = True


XSUM_DECODING = SummaryDecoding()
"""BART's own for XSum (fairseq's examples/bart/summarize.py): beam=6, lenpen=1.0, max_len_b=60, min_len=10,
no_repeat_ngram_size=3, where fairseq counts neither the start token nor, in max_len_b, the end token."""


@torch.no_grad()
def summarize(model: TextModel, features: Tensor, mask: Tensor, decoding: SummaryDecoding) -> list[str]:
    """Write a summary of each document.

    All settings go to ``generate`` itself, so that none stored with the BART comes in unseen: bart-large's own have
    four beams.

    Args:
        model: Plain or distilled.
        features: What ``TextModel.encode`` gives of the documents (B, L, d_2).
        mask: (B, L), 1 at real tokens.
        decoding: How.

    Returns:
        B texts in one line each, without special tokens.
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
