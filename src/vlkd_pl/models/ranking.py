"""Ranking of candidate texts by their probability, or by their similarity to an image."""

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
    """Rank candidate texts by their likelihood in place of the masks.

    The decoder reads the words before the masks once, and each candidate from their cache on.

    Args:
        model: Distilled model.
        image_tokens: Tokens (N, 1 + P, d_1) of ``FrozenCLIP.encode_image``; None for text alone.
        prompts: B prompts.
        candidates: C candidate texts, the same for each prompt.
        image_index: Row of each prompt's image in ``image_tokens``; by default prompts are in the order of images.

    Returns:
        For each prompt, all candidates with their log-probabilities in nats, the likeliest first.

    Raises:
        ValueError: There is no candidate, or a prompt is too long for BART.

    Example:
        >>> from vlkd_pl.models.prompts import question_prompt
        >>> from vlkd_pl.sample import sample_model
        >>> prompts = [question_prompt("what color is the fish?")]
        >>> (ranked,) = rank(sample_model(), None, prompts, ["red", "blue"])
        >>> sorted(candidate.text for candidate in ranked)
        ['blue', 'red']
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
    """The log-probabilities of C continuations of each start, which the decoder reads once.

    Args:
        model: Distilled model.
        condition: Condition (B, S, d_2) of Eq. (1).
        mask: Mask (B, S) of the condition, 1 at real positions.
        start: Token ids (B, P) that the decoder is forced to begin with.
        labels: Token ids (B · C, M) of the continuations, -100 at padding.
    """
    decoder, repeats = model.bart.model.decoder, len(labels) // len(start)
    # transformers 5 renames the argument, and the output of the same name
    cache = "cache" if "cache" in inspect.signature(decoder.forward).parameters else "past_key_values"
    attended = {"encoder_hidden_states": condition, "encoder_attention_mask": mask}
    start_output = decoder(input_ids=start, use_cache=True, **attended)
    output = decoder(
        input_ids=labels[:, :-1].clamp(min=0),  # only padding attends to padding
        use_cache=True,
        **{name: tensor.repeat_interleave(repeats, 0) for name, tensor in attended.items()},
        **{cache: _repeated(start_output[cache], repeats)},
    )
    last = start_output.last_hidden_state[:, -1:].repeat_interleave(repeats, 0)
    hidden = torch.cat([last, output.last_hidden_state], 1)
    return log_probability(model.vocabulary_logits(hidden), labels, 0)


def _repeated(cache: Any, repeats: int) -> Any:
    """Repeat each row of the decoder's cache ``repeats`` times."""
    if isinstance(cache, tuple):  # of transformers 4
        return tuple(tuple(part.repeat_interleave(repeats, 0) for part in layer) for layer in cache)
    cache.batch_repeat_interleave(repeats)
    return cache


def nearest_first(
    model: VLKDModel,
    image_embedding: Tensor,
    reconstructions: Sequence[Sequence[Reconstruction]],
    to_text: Callable[[int, str], str],
) -> list[list[Reconstruction]]:
    """Sort each image's candidates by their cosine to the image in the joint space (self-reranking).

    Args:
        model: Distilled model, whose text encoder embeds the candidates.
        image_embedding: Embeddings (B, d_1), l2-normalised.
        reconstructions: Candidates of each of the B images.
        to_text: Function from the image's index and a candidate's text to the text that is compared with the image.

    Returns:
        The candidates of each image with the cosine as their score, the nearest first.
    """
    texts = [to_text(row, candidate.text) for row, candidates in enumerate(reconstructions) for candidate in candidates]
    owners = [row for row, candidates in enumerate(reconstructions) for _ in candidates]
    cosine = (model.embed_texts(texts) * image_embedding[owners].float()).sum(-1).tolist()
    scored = iter(cosine)
    return [
        sorted(
            (candidate._replace(score=next(scored)) for candidate in candidates), key=lambda candidate: -candidate.score
        )
        for candidates in reconstructions
    ]
