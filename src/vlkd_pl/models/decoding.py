"""Text from pictures: how prompts with masks are written out, and which of several candidates is taken."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutput

from vlkd_pl.models.prompts import Prompt, caption_prompt, question_prompt
from vlkd_pl.models.vlkd import VLKDModel

Item = TypeVar("Item")

_MAX_SCORED_SEQUENCES = 256


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
        rerank: Whether the candidate nearest the picture in the joint space is the best, as the distilled text encoder
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


class Reconstruction(NamedTuple):
    """What a model puts in place of a prompt's masks.

    Attributes:
        text: The words, without special tokens.
        score: With ``rerank`` the cosine to the picture in the joint space, in [-1, 1]; else the log-probability of
            the text and of what follows it, given all before; 0.0 where no scores were asked for.
        wandered: Whether the model left the prompt, see ``Prompt.read``.
        num_tokens: Tokens that the score is of, with those of what follows the text; 0 for a text that was given.
    """

    text: str
    score: float
    wandered: bool
    num_tokens: int = 0


@torch.no_grad()
def caption(
    model: VLKDModel,
    image_tokens: Tensor,
    num_masks: int = 6,
    decoding: Decoding = CAPTION_DECODING,
    scores: bool = False,
) -> list[list[Reconstruction]]:
    """Captions with the prompt "A picture of <mask>×m." (Section 4.3.1).

    Args:
        model: The distilled model.
        image_tokens: (B, 1 + N, d_1) of ``FrozenCLIP.encode_image``.
        num_masks: m.
        decoding: How.
        scores: Whether the scores of the texts are wanted.

    Returns:
        For each picture the candidates, the best first.
    """
    found = reconstruct(model, image_tokens, [caption_prompt(num_masks)] * len(image_tokens), decoding, scores=scores)
    if not decoding.rerank:
        return found
    return _nearest_first(model, image_tokens[:, 0], found, lambda index, text: text)


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
    """Answers with the prompt "{question} Answer: <mask>." (Section 4.3.2).

    Args:
        model: The distilled model.
        image_tokens: (N, 1 + P, d_1) of ``FrozenCLIP.encode_image``; None to answer from text alone.
        questions: B questions.
        decoding: How.
        num_masks: Masks in place of the answer.
        image_index: The row in ``image_tokens`` of each question's picture; by default the questions are in the order
            of the pictures, one each.
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
    return _nearest_first(model, image_tokens[index, 0], found, lambda i, text: f"{questions[i]} {text}")


@torch.no_grad()
def reconstruct(
    model: VLKDModel,
    image_tokens: Tensor | None,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    image_index: Sequence[int] | None = None,
    scores: bool = False,
) -> list[list[Reconstruction]]:
    """Writes out prompts, given pictures.

    Prompts are decoded together with those that have as many tokens before their masks, so that none is padded.

    Args:
        model: The distilled model.
        image_tokens: (N, 1 + P, d_1) of ``FrozenCLIP.encode_image``; None for text alone.
        prompts: B prompts.
        decoding: How.
        image_index: The row in ``image_tokens`` of each prompt's picture; the order of the prompts by default.
        scores: Whether the log-probabilities are computed, by one more pass over the decoder.

    Returns:
        For each prompt the candidates, the best first, without those that wandered where some did not.

    Raises:
        ValueError: A prompt is too long for BART.
    """
    forced = decoding.reading == "forced"
    found: list[list[Reconstruction]] = [[] for _ in prompts]
    for rows, prefix in _grouped(model, prompts, decoding.max_new_tokens):
        condition, mask = _condition(model, image_tokens, prompts, rows, image_index)
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
            values = _log_probability(model.decode(repeated, repeated_mask, labels), labels, start.shape[1] - 1)
        texts = written_texts(model.tokenizer, ids[:, start.shape[1] :])
        lengths = (ids[:, start.shape[1] :] != model.tokenizer.pad_token_id).sum(1).tolist()
        for number, (text, value, length) in enumerate(zip(texts, values, lengths, strict=True)):
            row = rows[number // decoding.num_candidates]
            filled, wandered = prompts[row].read(text, forced)
            if filled not in [other.text for other in found[row]]:
                found[row].append(Reconstruction(filled, value, wandered, length))
    found = [[each for each in texts if not each.wandered] or texts for texts in found]
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


@torch.no_grad()
def rank(
    model: VLKDModel,
    image_tokens: Tensor | None,
    prompts: Sequence[Prompt],
    candidates: Sequence[str],
    image_index: Sequence[int] | None = None,
) -> list[list[Reconstruction]]:
    """Ranks given texts by their likelihood in place of the masks.

    The decoder reads what stands before the masks once, and each candidate after it from there.

    Args:
        model: The distilled model.
        image_tokens: (N, 1 + P, d_1) of ``FrozenCLIP.encode_image``; None for text alone.
        prompts: B prompts.
        candidates: C texts, the same for each prompt.
        image_index: The row in ``image_tokens`` of each prompt's picture; the order of the prompts by default.

    Returns:
        For each prompt all candidates with their log-probabilities, the likeliest first.

    Raises:
        ValueError: There is no candidate, or a prompt is too long for BART.
    """
    if not candidates:
        raise ValueError("there are no candidates to rank: give one text at least")
    ranked: list[list[Reconstruction]] = [[] for _ in prompts]
    for rows, prefix in _grouped(model, prompts, _longest(model, candidates)):
        for part in _chunks(candidates, _MAX_SCORED_SEQUENCES):
            num_rows = max(1, _MAX_SCORED_SEQUENCES // len(part))
            for group, start in zip(_chunks(rows, num_rows), prefix.split(num_rows), strict=True):
                texts = [f" {text}{prompts[row].after}" for row in group for text in part]
                ids = model.tokenizer(texts, add_special_tokens=False)["input_ids"]
                labels = _padded([[*row, model.tokenizer.eos_token_id] for row in ids], -100).to(prefix.device)
                condition = _condition(model, image_tokens, prompts, group, image_index)
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
    return _log_probability(model.vocabulary_logits(hidden), labels, 0)


def _repeated(cache: Any, repeats: int) -> Any:
    """The decoder's cache with each row ``repeats`` times."""
    if isinstance(cache, tuple):  # of transformers 4
        return tuple(tuple(part.repeat_interleave(repeats, 0) for part in layer) for layer in cache)
    cache.batch_repeat_interleave(repeats)
    return cache


def _grouped(model: VLKDModel, prompts: Sequence[Prompt], max_new_tokens: int) -> Iterator[tuple[list[int], Tensor]]:
    """Prompts with as many tokens before their masks: their numbers, and what the decoder is given of them (B, P)."""
    prefixes = model.tokenizer([prompt.before for prompt in prompts], add_special_tokens=False)["input_ids"]
    groups: dict[int, list[int]] = {}
    for row, (prefix, prompt) in enumerate(zip(prefixes, prompts, strict=True)):
        room = _room(model, prompt, max_new_tokens)
        if len(prefix) > room:
            raise ValueError(
                f"{len(prefix)} tokens before the masks are too many, {room} fit beside {max_new_tokens} new ones: "
                f"shorten {prompt.before[:60]!r}…"
            )
        groups.setdefault(len(prefix), []).append(row)
    start = [model.bart.config.decoder_start_token_id, model.tokenizer.bos_token_id]
    for _, rows in sorted(groups.items()):
        yield rows, torch.tensor([[*start, *prefixes[row]] for row in rows], device=model.bart.device)


def _condition(
    model: VLKDModel,
    image_tokens: Tensor | None,
    prompts: Sequence[Prompt],
    rows: Sequence[int],
    image_index: Sequence[int] | None,
) -> tuple[Tensor, Tensor]:
    """C of Eq. (1) for some of the prompts, and its mask."""
    texts = [prompts[row].text(model.tokenizer.mask_token) for row in rows]
    encoded = model.tokenizer(texts, padding=True, return_tensors="pt").to(model.bart.device)
    text_mask = encoded["attention_mask"]
    if image_tokens is not None:
        image_tokens = image_tokens[[row if image_index is None else image_index[row] for row in rows]]
    return model.condition(model.encode_text(encoded["input_ids"], text_mask), text_mask, image_tokens)


def _log_probability(logits: Tensor, labels: Tensor, first: int) -> list[float]:
    """The log-probability of each row of labels (B, M), -100 at padding, from position ``first`` on."""
    chosen = logits[:, first:].float().log_softmax(-1)
    labels = labels[:, first:]
    values = chosen.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    total: list[float] = (values * (labels != -100)).sum(1).tolist()
    return total


def _room(model: VLKDModel, prompt: Prompt, max_new_tokens: int) -> int:
    """The most tokens that may stand before a prompt's masks, for BART's encoder and its decoder to have positions."""
    num_special = 4  # the begin token, the end token, what follows the masks, and the decoder's start token
    return int(model.bart.config.max_position_embeddings) - max(max_new_tokens, prompt.num_masks) - num_special


def _longest(model: VLKDModel, texts: Sequence[str]) -> int:
    """Tokens of the longest of some texts."""
    return max(map(len, model.tokenizer(list(texts), add_special_tokens=False)["input_ids"]))


def _shortened(model: VLKDModel, passage: str, prompt: Prompt, max_new_tokens: int) -> str:
    """As much of a passage's beginning as fits before a prompt."""
    room = max(0, _room(model, prompt, max_new_tokens) - _longest(model, [f" {prompt.before}"]))
    while (length := _longest(model, [passage])) > room:  # a cut in a word may make more tokens of what is left of it
        passage = passage[: len(passage) * room // length]
    return passage


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    return (items[first : first + size] for first in range(0, len(items), size))


def _padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (longest - len(row))] for row in rows])


def _nearest_first(
    model: VLKDModel,
    image_embedding: Tensor,
    found: Sequence[Sequence[Reconstruction]],
    told: Callable[[int, str], str],
) -> list[list[Reconstruction]]:
    """Self-reranking: each picture's candidates by their cosine to it in the joint space.

    Args:
        model: Its own distilled text encoder judges.
        image_embedding: (B, d_1), l2-normalised.
        found: The candidates.
        told: What of a candidate is compared with the picture, from its picture's number and its text.
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
