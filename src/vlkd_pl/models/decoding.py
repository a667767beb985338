"""Decoding of captions and answers from images, and the only home of its defaults."""

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
    """Decoding strategy of captions and answers.

    Args:
        num_beams: Number of beams of the search, from 1; 1 is greedy search.
        max_new_tokens: Maximum number of tokens in place of the masks and after them.
        length_penalty: Exponent of the length that a beam's score is divided by; 0 compares whole probabilities.
        reading: ``forced`` decoding starts from the words before the masks. In ``free`` decoding the model writes the
            whole prompt, and the text in place of the masks is extracted from it.
        num_candidates: Maximum number of texts for each prompt, from 1; equal texts are merged.
        rerank: Whether to sort candidates by their cosine to the image in the joint space, instead of by probability.
        sample: Whether to sample the candidates instead of searching with beams.
        temperature: Temperature of the sampling, above 0.
        top_p: Nucleus sampling: draw from the likeliest tokens with this total probability, in (0, 1].

    Raises:
        ValueError: There are more candidates than beams.

    Example:
        >>> Decoding(num_beams=4, num_candidates=4, rerank=True).max_new_tokens
        32
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
"""The paper's decoding of captions (Table 11)."""

ANSWER_DECODING = Decoding(max_new_tokens=10)
"""The paper's decoding of answers (Table 11): greedy search."""


@torch.no_grad()
def caption(
    model: VLKDModel,
    image_tokens: Tensor,
    num_masks: int = 6,
    decoding: Decoding = CAPTION_DECODING,
    scores: bool = False,
) -> list[list[Reconstruction]]:
    """Caption images with the prompt "A picture of <mask>×m." (Section 4.3.1).

    Args:
        model: Distilled model.
        image_tokens: Tokens (B, 1 + N, d_1) of ``FrozenCLIP.encode_image``.
        num_masks: Number of masks m in the prompt, from 1.
        decoding: Decoding strategy.
        scores: Whether to compute the scores of the captions, by one more pass over the decoder.

    Returns:
        For each image its candidate captions, the best first.

    Example:
        >>> from vlkd_pl.sample import sample_model
        >>> model = sample_model()
        >>> image_tokens = model.clip.encode_image(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
        >>> captions = caption(model, image_tokens, decoding=Decoding(max_new_tokens=4))
        >>> [len(candidates) for candidates in captions]
        [1, 1]
    """
    prompts = [caption_prompt(num_masks)] * len(image_tokens)
    captions = reconstruct(model, image_tokens, prompts, decoding, scores=scores)
    if not decoding.rerank:
        return captions
    return nearest_first(model, image_tokens[:, 0], captions, lambda row, text: text)


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
    """Answer questions with the prompt "{question} Answer: <mask>." (Section 4.3.2).

    Args:
        model: Distilled model.
        image_tokens: Tokens (N, 1 + P, d_1) of ``FrozenCLIP.encode_image``; None to answer from text alone.
        questions: B questions.
        decoding: Decoding strategy.
        num_masks: Number of masks in place of the answer, from 1.
        image_index: Row of each question's image in ``image_tokens``; by default one question for each image, in order.
        passages: Text before each question, such as a caption (caption-then-answer); the end of a passage that is too
            long for BART is cut off.
        candidates: Answers to choose from, which are ranked by likelihood; by default any text may be the answer.
        scores: Whether to compute the scores of the answers, by one more pass over the decoder.

    Returns:
        For each question its candidate answers, the best first.

    Raises:
        ValueError: A question is too long for BART.

    Example:
        >>> from vlkd_pl.sample import sample_model
        >>> model, decoding = sample_model(), Decoding(num_beams=2, num_candidates=2)
        >>> ((best, second),) = answer(model, None, ["where is the fish?"], decoding, candidates=["pond", "yard"])
        >>> best.score >= second.score
        True
    """
    index = list(range(len(questions)) if image_index is None else image_index)
    prompts = [question_prompt(question, num_masks) for question in questions]
    if passages is not None:
        prompts = [
            question_prompt(question, num_masks, _shortened(model, passage, prompt, decoding.max_new_tokens))
            for question, passage, prompt in zip(questions, passages, prompts, strict=True)
        ]
    if candidates is not None:
        ranked = rank(model, image_tokens, prompts, candidates, index)
        return [best[: decoding.num_candidates] for best in ranked]
    answers = reconstruct(model, image_tokens, prompts, decoding, index, scores)
    if image_tokens is None or not decoding.rerank:
        return answers
    return nearest_first(model, image_tokens[index, 0], answers, lambda row, text: f"{questions[row]} {text}")


@torch.no_grad()
def reconstruct(
    model: VLKDModel,
    image_tokens: Tensor | None,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    image_index: Sequence[int] | None = None,
    scores: bool = False,
) -> list[list[Reconstruction]]:
    """Generate the texts in place of the prompts' masks.

    Prompts with equally many tokens before their masks are decoded together, so that none is padded.

    Args:
        model: Distilled model.
        image_tokens: Tokens (N, 1 + P, d_1) of ``FrozenCLIP.encode_image``; None for text alone.
        prompts: B prompts.
        decoding: Decoding strategy.
        image_index: Row of each prompt's image in ``image_tokens``; by default prompts are in the order of images.
        scores: Whether to compute the log-probabilities, by one more pass over the decoder.

    Returns:
        For each prompt its candidates, the best first; off-prompt ones only if there are no others.

    Raises:
        ValueError: A prompt is too long for BART.

    Example:
        >>> from vlkd_pl.sample import sample_model
        >>> ((reconstruction,),) = reconstruct(sample_model(), None, [caption_prompt(2)], Decoding(max_new_tokens=4))
        >>> reconstruction.num_tokens <= 4
        True
    """
    forced = decoding.reading == "forced"
    results: list[list[Reconstruction]] = [[] for _ in prompts]
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
            repeated = condition.repeat_interleave(decoding.num_candidates, 0)
            repeated_mask = mask.repeat_interleave(decoding.num_candidates, 0)
            values = log_probability(model.decode(repeated, repeated_mask, labels), labels, start.shape[1] - 1)
        texts = written_texts(model.tokenizer, ids[:, start.shape[1] :])
        lengths = (ids[:, start.shape[1] :] != model.tokenizer.pad_token_id).sum(1).tolist()
        for number, (text, value, length) in enumerate(zip(texts, values, lengths, strict=True)):
            row = rows[number // decoding.num_candidates]
            filled, off_prompt = prompts[row].read(text, forced)
            if filled not in [other.text for other in results[row]]:
                results[row].append(Reconstruction(filled, value, off_prompt, length))
    results = [[text for text in candidates if not text.off_prompt] or candidates for candidates in results]
    if scores and decoding.sample:  # the search returns its beams in order
        results = [sorted(candidates, key=lambda candidate: -candidate.score) for candidates in results]
    return results


def written_texts(tokenizer: PreTrainedTokenizerBase, ids: Tensor) -> list[str]:
    """Decode token ids to texts without special tokens, keeping the spaces before punctuation.

    Args:
        tokenizer: Tokenizer of the BART.
        ids: Token ids (B, L).
    """
    # the settings of some tokenizers would remove the space before an apostrophe or a full stop
    texts: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return texts


def _shortened(model: VLKDModel, passage: str, prompt: Prompt, max_new_tokens: int) -> str:
    """Truncate a passage to the beginning that fits before a prompt."""
    room = max(0, text_room(model, prompt, max_new_tokens) - longest_text(model, [f" {prompt.before}"]))
    while (length := longest_text(model, [passage])) > room:  # a word cut in two may take more tokens
        passage = passage[: len(passage) * room // length]
    return passage
