"""Ranks given texts by their probability, and candidates by their nearness to an image."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vlkd_pl.models.prompts import Prompt
from vlkd_pl.models.reconstruction import (
    Reconstruction,
    chunks,
    condition_groups,
    grouped_prompts,
    log_probability,
    longest_text,
    padded_ids,
)
from vlkd_pl.models.vlkd import VLKDModel

_MAX_SCORED_SEQUENCES = 256


@torch.no_grad()
def rank(
    model: VLKDModel,
    image_tokens: Tensor | None,
    prompts: Sequence[Prompt],
    candidates: Sequence[str],
    image_index: Sequence[int] | None = None,
) -> list[list[Reconstruction]]:
    """Rank given texts by their likelihood in place of the masks.

    The decoder reads what stands before the masks once, and each candidate after it from there.

    Args:
        model: The distilled model.
        image_tokens: (N, 1 + P, d_1) of ``FrozenCLIP.encode_image``; None for text alone.
        prompts: B prompts.
        candidates: C texts, the same for each prompt.
        image_index: The row in ``image_tokens`` of each prompt's image; the order of the prompts by default.

    Returns:
        For each prompt all candidates with their log-probabilities, the likeliest first.

    Raises:
        ValueError: There is no candidate, or a prompt is too long for BART.
    """
    if not candidates:
        raise ValueError("there are no candidates to rank: give one text at least")
    ranked: list[list[Reconstruction]] = [[] for _ in prompts]
    for rows, prefix in grouped_prompts(model, prompts, longest_text(model, candidates)):
        for part in chunks(candidates, _MAX_SCORED_SEQUENCES):
            num_rows = max(1, _MAX_SCORED_SEQUENCES // len(part))
            for group, start in zip(chunks(rows, num_rows), prefix.split(num_rows), strict=True):
                texts = [f" {text}{prompts[row].after}" for row in group for text in part]
                ids = model.tokenizer(texts, add_special_tokens=False)["input_ids"]
                labels = padded_ids([[*row, model.tokenizer.eos_token_id] for row in ids], -100).to(prefix.device)
                condition = condition_groups(model, image_tokens, prompts, group, image_index)
                values = _continuation_log_probability(model, *condition, start, labels)
                for number, value in enumerate(values):
                    text = part[number % len(part)]
                    ranked[group[number // len(part)]].append(Reconstruction(text, value, False))
    return [sorted(texts, key=lambda candidate: -candidate.score) for texts in ranked]


def _continuation_log_probability(
    model: VLKDModel, condition: Tensor, mask: Tensor, start: Tensor, labels: Tensor
) -> list[float]:
    """The log-probabilities of several continuations of each start; the decoder reads the start once.

    Args:
        model: The model.
        condition: C (B, S, d_2).
        mask: (B, S), 1 at real positions.
        start: What the decoder is given (B, P).
        labels: C continuations of each start (B · C, M), -100 at padding.
    """
    decoder, repeats = model.bart.model.decoder, len(labels) // len(start)
    # transformers 5 renames the argument, and the output of the same name
    cache = "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"
    seen = {"encoder_hidden_states": condition, "encoder_attention_mask": mask}
    read = decoder(input_ids=start, use_cache=True, **seen)
    told = decoder(
        input_ids=labels[:, :-1].clamp(min=0),  # what stands at padding is seen by padding alone
        use_cache=True,
        **{name: tensor.repeat_interleave(repeats, 0) for name, tensor in seen.items()},
        **{cache: _repeated(read[cache], repeats)},
    )
    hidden = torch.cat([read.last_hidden_state[:, -1:].repeat_interleave(repeats, 0), told.last_hidden_state], 1)
    return log_probability(model.vocabulary_logits(hidden), labels, 0)


def _repeated(cache: Any, repeats: int) -> Any:
    """The decoder's cache with each row ``repeats`` times."""
    if isinstance(cache, tuple):  # of transformers 4
        return tuple(tuple(part.repeat_interleave(repeats, 0) for part in layer) for layer in cache)
    cache.batch_repeat_interleave(repeats)
    return cache


def nearest_first(
    model: VLKDModel,
    image_embedding: Tensor,
    found: Sequence[Sequence[Reconstruction]],
    told: Callable[[int, str], str],
) -> list[list[Reconstruction]]:
    """Self-reranking: each image's candidates by their cosine to it in the joint space.

    Args:
        model: Its own distilled text encoder judges.
        image_embedding: (B, d_1), l2-normalised.
        found: The candidates.
        told: What of a candidate is compared with the image, from its image's number and its text.
    """
    texts = [told(index, candidate.text) for index, candidates in enumerate(found) for candidate in candidates]
    owners = [index for index, candidates in enumerate(found) for _ in candidates]
    cosine = (model.embed_texts(texts) * image_embedding[owners].float()).sum(-1).tolist()
    scored = iter(cosine)
    return [
        sorted(
            (candidate._replace(score=next(scored)) for candidate in candidates), key=lambda candidate: -candidate.score
        )
        for candidates in found
    ]
