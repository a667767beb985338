"""Batches of prompts with masks, and the texts in place of the masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from vlkd_pl.models.prompts import Prompt
from vlkd_pl.models.vlkd import VLKDModel

Item = TypeVar("Item")


class Reconstruction(NamedTuple):
    """Text that a model writes in place of a prompt's masks.

    Attributes:
        text: The text, without special tokens.
        score: With ``rerank`` the cosine to the image in the joint space, in [-1, 1]; otherwise the log-probability in
            nats of the text and its end, given all before; 0.0 without scores.
        off_prompt: Whether the model deviated from the prompt; see ``Prompt.read``.
        num_tokens: Number of tokens that the score covers; 0 for a candidate that was ranked.
    """

    text: str
    score: float
    off_prompt: bool
    num_tokens: int = 0


def grouped_prompts(
    model: VLKDModel, prompts: Sequence[Prompt], max_new_tokens: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Group prompts by the number of tokens before their masks: rows, and the decoder's first ids (rows, P)."""
    prefixes = model.tokenizer([prompt.before for prompt in prompts], add_special_tokens=False)["input_ids"]
    groups: dict[int, list[int]] = {}
    for row, (prefix, prompt) in enumerate(zip(prefixes, prompts, strict=True)):
        room = text_room(model, prompt, max_new_tokens)
        if len(prefix) > room:
            raise ValueError(
                f"{len(prefix)} tokens before the masks are too many, {room} fit with {max_new_tokens} new ones: "
                f"shorten {prompt.before[:60]!r}…"
            )
        groups.setdefault(len(prefix), []).append(row)
    start = [model.bart.config.decoder_start_token_id, model.tokenizer.bos_token_id]
    for _, rows in sorted(groups.items()):
        yield rows, torch.tensor([[*start, *prefixes[row]] for row in rows], device=model.bart.device)


def condition_groups(
    model: VLKDModel,
    image_tokens: Tensor | None,
    prompts: Sequence[Prompt],
    rows: Sequence[int],
    image_index: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    """Compute C of Eq. (1) and its mask for some rows of the prompts."""
    texts = [prompts[row].text(model.tokenizer.mask_token) for row in rows]
    encoded = model.tokenizer(texts, padding=True, return_tensors="pt").to(model.bart.device)
    text_mask = encoded["attention_mask"]
    if image_tokens is not None:
        image_tokens = image_tokens[[row if image_index is None else image_index[row] for row in rows]]
    return model.condition(model.encode_text(encoded["input_ids"], text_mask), text_mask, image_tokens)


def log_probability(logits: Tensor, labels: Tensor, first: int) -> list[float]:
    """Sum the log-probabilities of labels (B, M), -100 at padding, from position ``first`` on; one for each row."""
    chosen = logits[:, first:].float().log_softmax(-1)
    labels = labels[:, first:]
    values = chosen.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    total: list[float] = (values * (labels != -100)).sum(1).tolist()
    return total


def text_room(model: VLKDModel, prompt: Prompt, max_new_tokens: int) -> int:
    """The maximum number of tokens before a prompt's masks that fits BART's positions."""
    num_special = 4  # begin token, end token, the text after the masks, and the decoder's start token
    return int(model.bart.config.max_position_embeddings) - max(max_new_tokens, prompt.num_masks) - num_special


def longest_text(model: VLKDModel, texts: Sequence[str]) -> int:
    """The number of tokens of the longest text."""
    return max(map(len, model.tokenizer(list(texts), add_special_tokens=False)["input_ids"]))


def chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Split a sequence into parts of ``size`` items; the last may be shorter."""
    return (items[first : first + size] for first in range(0, len(items), size))


def padded_ids(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Pad rows of token ids on the right with ``value``, to a tensor (B, L) int64."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])
