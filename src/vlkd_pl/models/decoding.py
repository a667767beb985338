"""Text from images: how prompts with masks are written out, and which of several candidates is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from vlkd_pl.models.prompts import Prompt, caption_prompt, question_prompt
from vlkd_pl.models.ranking import nearest_first, rank
from vlkd_pl.models.reconstruction import (
    Reconstruction,
    condition_groups,
    grouped_prompts,
    log_probability,
    longest_text,
    text_room,
)
from vlkd_pl.models.vlkd import VLKDModel


@dataclass(frozen=True)
class Decoding:
    """How reconstructions are decoded.

    Args:
        num_beams: Beams of the search; 1 is greedy.
        max_new_tokens: Most tokens in place of the masks, with what follows them.
        length_penalty: Exponent of the length that a beam's score is divided by.
        reading: ``forced`` gives the decoder the words before the masks; with ``free`` it writes the whole prompt
            itself, and what stands in place of the masks is found in what it wrote.
        num_candidates: Texts for each prompt, the best first; equal ones are merged.
        rerank: Whether the candidate nearest the image in the joint space is the best, as the distilled text encoder
            judges it, or the one that the search found best.
        sample: Whether candidates are sampled or the beams of one search.
        temperature: Of the sampling.
        top_p: The sampling draws from the likeliest tokens that have this probability together.

    Raises:
        ValueError: The search has fewer beams than candidates are asked for.
    """

    num_beams: int = 1
    max_new_tokens: int = 32
    length_penalty: float = 1.0
    reading: Literal["forced", "free"] = "forced"
    num_candidates: int = 1
    rerank: bool = False
    sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not self.sample and self.num_candidates > self.num_beams:
            raise ValueError(
                f"{self.num_candidates} candidates need as many beams, not {self.num_beams}: raise num_beams, or sample"
            )


CAPTION_DECODING = Decoding(num_beams=6)
"""As the paper decodes captions (Table 11)."""

ANSWER_DECODING = Decoding(max_new_tokens=10)
"""As the paper decodes answers (Table 11): greedily."""


@torch.no_grad()
def caption(
    model: VLKDModel,
    image_tokens: Tensor,
    num_masks: int = 6,
    decoding: Decoding = CAPTION_DECODING,
    scores: bool = False,
) -> list[list[Reconstruction]]:
    """Caption with the prompt "A picture of <mask>×m." (Section 4.3.1).

    Args:
        model: The distilled model.
        image_tokens: (B, 1 + N, d_1) of ``FrozenCLIP.encode_image``.
        num_masks: m.
        decoding: How.
        scores: Whether the scores of the texts are wanted.

    Returns:
        For each image the candidates, the best first.
    """
    found = reconstruct(model, image_tokens, [caption_prompt(num_masks)] * len(image_tokens), decoding, scores=scores)
    if not decoding.rerank:
        return found
    return nearest_first(model, image_tokens[:, 0], found, lambda index, text: text)


@torch.no_grad()
def answer(
    model: VLKDModel,
    image_tokens: Tensor | None,
    questions: Sequence[str],
    decoding: Decoding = ANSWER_DECODING,
    *,
    num_masks: int = 1,
    image_index: Sequence[int] | None = None,
    passages: Sequence[str] | None = None,
    candidates: Sequence[str] | None = None,
    scores: bool = False,
) -> list[list[Reconstruction]]:
    """Answer with the prompt "{question} Answer: <mask>." (Section 4.3.2).

    Args:
        model: The distilled model.
        image_tokens: (N, 1 + P, d_1) of ``FrozenCLIP.encode_image``; None to answer from text alone.
        questions: B questions.
        decoding: How.
        num_masks: Masks in place of the answer.
        image_index: The row in ``image_tokens`` of each question's image; by default the questions are in the order
            of the images, one each.
        passages: Text to stand before each question: with the model's own captions, *caption, then answer*. One that is
            too long for BART loses its end.
        candidates: The answers to choose from, ranked by their likelihood; by default any text is an answer.
        scores: Whether the scores of the texts are wanted.

    Returns:
        For each question the candidate answers, the best first.

    Raises:
        ValueError: A question is too long for BART.
    """
    index = list(range(len(questions)) if image_index is None else image_index)
    prompts = [question_prompt(question, num_masks) for question in questions]
    if passages is not None:
        fitting = (
            _shortened(model, passage, prompt, decoding.max_new_tokens)
            for passage, prompt in zip(passages, prompts, strict=True)
        )
        prompts = [
            question_prompt(*each) for each in zip(questions, [num_masks] * len(questions), fitting, strict=True)
        ]
    if candidates is not None:
        ranked = rank(model, image_tokens, prompts, candidates, index)
        return [best[: decoding.num_candidates] for best in ranked]
    found = reconstruct(model, image_tokens, prompts, decoding, index, scores)
    if image_tokens is None or not decoding.rerank:
        return found
    return nearest_first(model, image_tokens[index, 0], found, lambda i, text: f"{questions[i]} {text}")


@torch.no_grad()
def reconstruct(
    model: VLKDModel,
    image_tokens: Tensor | None,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    image_index: Sequence[int] | None = None,
    scores: bool = False,
) -> list[list[Reconstruction]]:
    """Write out prompts, given images.

    Prompts are decoded together with those that have as many tokens before their masks, so that none is padded.

    Args:
        model: The distilled model.
        image_tokens: (N, 1 + P, d_1) of ``FrozenCLIP.encode_image``; None for text alone.
        prompts: B prompts.
        decoding: How.
        image_index: The row in ``image_tokens`` of each prompt's image; the order of the prompts by default.
        scores: Whether the log-probabilities are computed, by one more pass over the decoder.

    Returns:
        For each prompt the candidates, the best first, without those that off_prompt where some did not.

    Raises:
        ValueError: A prompt is too long for BART.
    """
    forced = decoding.reading == "forced"
    found: list[list[Reconstruction]] = [[] for _ in prompts]
    for rows, prefix in grouped_prompts(model, prompts, decoding.max_new_tokens):
        condition, mask = condition_groups(model, image_tokens, prompts, rows, image_index)
        start = prefix if forced else prefix[:, :2]
        ids = model.bart.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=condition),  # beam search expands it in place
            attention_mask=mask,
            decoder_input_ids=start,
            num_beams=1 if decoding.sample else decoding.num_beams,
            max_new_tokens=decoding.max_new_tokens + prefix.shape[1] - start.shape[1],
            length_penalty=decoding.length_penalty,
            num_return_sequences=decoding.num_candidates,
            do_sample=decoding.sample,
            **({"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0} if decoding.sample else {}),
        )
        values = [0.0] * len(ids)
        if scores:
            labels = ids[:, 1:].masked_fill(ids[:, 1:] == model.tokenizer.pad_token_id, -100)
            repeated, repeated_mask = (each.repeat_interleave(decoding.num_candidates, 0) for each in (condition, mask))
            values = log_probability(model.decode(repeated, repeated_mask, labels), labels, start.shape[1] - 1)
        texts = written_texts(model.tokenizer, ids[:, start.shape[1] :])
        lengths = (ids[:, start.shape[1] :] != model.tokenizer.pad_token_id).sum(1).tolist()
        for number, (text, value, length) in enumerate(zip(texts, values, lengths, strict=True)):
            row = rows[number // decoding.num_candidates]
            filled, off_prompt = prompts[row].read(text, forced)
            if filled not in [other.text for other in found[row]]:
                found[row].append(Reconstruction(filled, value, off_prompt, length))
    found = [[each for each in texts if not each.off_prompt] or texts for texts in found]
    if scores and decoding.sample:  # the search returns its beams in order
        found = [sorted(texts, key=lambda candidate: -candidate.score) for texts in found]
    return found


def written_texts(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> list[str]:
    """Texts of token ids as they were written, without special tokens.

    Args:
        tokenizer: BART's.
        ids: Token ids (B, L).
    """
    # some tokenizers' settings would take away the space before an apostrophe or a full stop
    texts: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return texts


def _shortened(model: VLKDModel, passage: str, prompt: Prompt, max_new_tokens: int) -> str:
    """As much of a passage's beginning as fits before a prompt."""
    room = max(0, text_room(model, prompt, max_new_tokens) - longest_text(model, [f" {prompt.before}"]))
    while (length := longest_text(model, [passage])) > room:  # a word cut in two may take more tokens
        passage = passage[: len(passage) * room // length]
    return passage
