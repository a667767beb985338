"""Decoding compared with a plain loop without a cache."""

import pytest
import torch
from torch.nn.functional import log_softmax

from vlkd_pl.models import ranking
from vlkd_pl.models.decoding import Decoding, answer, caption, reconstruct
from vlkd_pl.models.prompts import Prompt, question_prompt
from vlkd_pl.models.ranking import rank
from vlkd_pl.models.vlkd import VLKDModel

QUESTIONS = ["what is it?", "what color is the fish on the left?", "where is it?", "how many blue boats are there?"]
IMAGE_INDEX = [0, 2, 1, 1]


@pytest.fixture
def model(clip_folder, bart_folder):
    """A small model in evaluation mode."""
    torch.manual_seed(2)
    return VLKDModel.load(str(clip_folder), str(bart_folder), "patches").eval()


@pytest.fixture
def tokens(model):
    """Three different images."""
    shape = (3, 1 + model.clip.num_patches, model.clip.embedding_dim)
    return 10 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def given_ids(model, text):
    return [2, 0, *model.tokenizer(text, add_special_tokens=False)["input_ids"]]


def next_logits(model, prompt, image_tokens, ids):
    """The decoder's output at each position of ``ids``, from scratch."""
    encoded = model.tokenizer([prompt.text("<mask>")], return_tensors="pt")
    mask = encoded["attention_mask"]
    condition, mask = model.condition(model.encode_text(encoded["input_ids"], mask), mask, image_tokens)
    hidden = model.bart.model.decoder(
        input_ids=torch.tensor([ids]), encoder_hidden_states=condition, encoder_attention_mask=mask, use_cache=False
    ).last_hidden_state
    return model.vocabulary_logits(hidden)[0]


@torch.no_grad()
def greedy(model, prompt, image_tokens, max_new_tokens, ids):
    """The greedy continuation of ``ids`` and its log-probability, one token at a time."""
    num_forced, total = len(ids), 0.0
    for step in range(max_new_tokens):
        log_probabilities = log_softmax(next_logits(model, prompt, image_tokens, ids)[-1], -1)
        last = step == max_new_tokens - 1  # the end is forced there
        token = 2 if last else int(log_probabilities.argmax())
        total += float(log_probabilities[token])
        ids = [*ids, token]
        if token == 2:
            break
    return model.tokenizer.decode(ids[num_forced:], skip_special_tokens=True), total


@pytest.mark.parametrize("reading", ["forced", "free"])
def test_greedy_decoding_in_groups_is_the_loop(model, tokens, reading):
    prompts = [question_prompt(question) for question in QUESTIONS]
    decoding = Decoding(max_new_tokens=5, reading=reading)
    results = reconstruct(model, tokens, prompts, decoding, IMAGE_INDEX, scores=True)
    for prompt, index, (best,) in zip(prompts, IMAGE_INDEX, results, strict=True):
        before = given_ids(model, prompt.before)
        ids, length = (before, 5) if reading == "forced" else ([2, 0], 5 + len(before) - 2)
        text, log_probability = greedy(model, prompt, tokens[index : index + 1], length, ids)
        assert (best.text, best.off_prompt) == prompt.read(text, reading == "forced")
        assert best.score == pytest.approx(log_probability, rel=1e-4)
    assert len({best.text for (best,) in results}) > 1


def test_the_words_before_the_mask_are_read_once_and_the_rest_one_by_one(model, tokens, monkeypatch):
    lengths, forward = [], model.bart.model.decoder.forward

    def spy(*args, **kwargs):
        lengths.append(tuple(kwargs["input_ids"].shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model.bart.model.decoder, "forward", spy)
    caption(model, tokens, 2, Decoding(num_beams=2, max_new_tokens=4))
    prefix = len(given_ids(model, "A picture of"))
    assert {rows for rows, _ in lengths} == {6}
    assert [columns for _, columns in lengths][:1] == [prefix]
    assert {columns for _, columns in lengths[1:]} == {1}
    assert len(lengths) <= 4


@pytest.mark.parametrize("num_beams", [1, 3])
def test_captions_do_not_depend_on_the_batch(model, tokens, num_beams):
    decoding = Decoding(num_beams=num_beams, max_new_tokens=6)
    together = caption(model, tokens, 2, decoding, scores=True)
    for index, (best,) in enumerate(together):
        ((alone,),) = caption(model, tokens[index : index + 1], 2, decoding, scores=True)
        assert alone.text == best.text
        assert alone.score == pytest.approx(best.score, rel=1e-4)
    assert len({round(best.score, 3) for (best,) in together}) == 3


def test_beams_come_best_first_without_repeats(model, tokens):
    for candidates in caption(model, tokens, 2, Decoding(4, max_new_tokens=3, num_candidates=4), scores=True):
        texts = [candidate.text for candidate in candidates]
        assert len(set(texts)) == len(texts) > 1


def test_sampling(model, tokens):
    decoding = Decoding(max_new_tokens=4, num_candidates=8, sample=True)
    torch.manual_seed(5)
    first = caption(model, tokens, 2, decoding, scores=True)
    assert caption(model, tokens, 2, decoding, scores=True) != first
    torch.manual_seed(5)
    assert caption(model, tokens, 2, decoding, scores=True) == first
    for texts in first:
        values = [text.score for text in texts]
        assert values == sorted(values, reverse=True)
    certain = Decoding(max_new_tokens=4, num_candidates=3, sample=True, top_p=1e-6)
    best = caption(model, tokens, 2, Decoding(max_new_tokens=4))
    assert caption(model, tokens, 2, certain) == best


def test_more_candidates_than_beams_are_refused():
    with pytest.raises(ValueError, match="4 candidates need as many beams, not 2"):
        Decoding(num_beams=2, num_candidates=4)


@pytest.mark.parametrize("most", [2, 256])
@torch.no_grad()
def test_candidates_are_ranked_by_likelihood(model, tokens, monkeypatch, most):
    monkeypatch.setattr(ranking, "_MAX_SCORED_SEQUENCES", most)
    candidates = ["red", "two blue boats on the grass", "yes"]
    prompts = [question_prompt(question) for question in QUESTIONS]
    ranked = rank(model, tokens, prompts, candidates, IMAGE_INDEX)
    for prompt, index, results in zip(prompts, IMAGE_INDEX, ranked, strict=True):
        expected = {}
        for text in candidates:
            before = given_ids(model, prompt.before)
            ids = [*before, *model.tokenizer(f" {text}.", add_special_tokens=False)["input_ids"], 2]
            chances = log_softmax(next_logits(model, prompt, tokens[index : index + 1], ids[:-1]), -1)
            expected[text] = sum(float(chances[i - 1, ids[i]]) for i in range(len(before), len(ids)))
        assert [item.text for item in results] == sorted(expected, key=expected.get, reverse=True)
        for item in results:
            assert item.score == pytest.approx(expected[item.text], rel=1e-4)
    with pytest.raises(ValueError, match="no candidates"):
        rank(model, tokens, prompts, [], IMAGE_INDEX)


def test_candidates_restrict_the_answers(model, tokens):
    results = answer(model, tokens, QUESTIONS, image_index=IMAGE_INDEX, candidates=["red", "no"])
    assert all(len(texts) == 1 and texts[0].text in ("red", "no") for texts in results)


def test_reranking_takes_the_candidate_nearest_the_image(model, tokens):
    options = {"num_beams": 5, "max_new_tokens": 3, "num_candidates": 5}
    plain = caption(model, tokens, 2, Decoding(**options))
    reranked = caption(model, tokens, 2, Decoding(**options, rerank=True))
    for row, (before, after) in enumerate(zip(plain, reranked, strict=True)):
        embedding = model.embed_texts([item.text for item in before])
        cosines = embedding @ tokens[row, 0]
        assert {item.text for item in before} == {item.text for item in after}
        assert after[0].text == before[int(cosines.argmax())].text
        assert [item.score for item in after] == pytest.approx(sorted(cosines.tolist(), reverse=True), rel=1e-4)
    requests = answer(model, tokens, QUESTIONS[:3], Decoding(**options, rerank=True))
    result = [f"{QUESTIONS[0]} {item.text}" for item in requests[0]]
    cosines = (model.embed_texts(result) @ tokens[0, 0]).tolist()
    assert cosines == sorted(cosines, reverse=True)


def test_a_passage_changes_the_answer_to_text_alone(model):
    plain = answer(model, None, QUESTIONS[:1], scores=True)[0][0]
    result = answer(model, None, QUESTIONS[:1], passages=["two blue boats at night."], scores=True)[0][0]
    assert plain != result


def test_whatever_is_written_is_read(model, tokens):
    """A model with random weights goes off-prompt without an error."""
    prompts = [Prompt("A picture of", 6), question_prompt("what?"), question_prompt("?" * 40)]
    for reading in ("forced", "free"):
        results = reconstruct(model, tokens, prompts, Decoding(3, 20, reading=reading, num_candidates=3))
        assert all(results)
        if reading == "free":
            assert all(candidate.off_prompt for candidates in results for candidate in candidates)


def test_a_question_that_is_too_long_is_refused_and_a_passage_shortened(model, tokens):
    with pytest.raises(
        ValueError, match=r"tokens before the masks are too many, .* fit with 10 new ones: shorten 'why"
    ):
        answer(model, tokens[:1], ["why " * 70])
    positions = model.bart.config.max_position_embeddings
    result = answer(model, tokens[:1], ["what?"], passages=["a red fish. " * positions], scores=True)
    assert result == answer(model, tokens[:1], ["what?"], passages=["a red fish. " * (2 * positions)], scores=True)
    assert result != answer(model, tokens[:1], ["what?"], passages=["a red fish."], scores=True)
