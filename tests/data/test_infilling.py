"""Text infilling against its definition, over many draws."""

import math

import numpy as np
import pytest
from transformers import AutoTokenizer

from vlkd_pl.data.infilling import TextInfilling, corrupt, padded

MASK = 99
BEGIN, END = 0, 2


def text_of(length):
    """Token ids that equal their places."""
    return np.array([BEGIN, *range(1000, 1000 + length), END])


def spans(corrupted, length):
    """For each mask how many tokens it stands for; raises where a kept token is out of order."""
    places = [int(token) - 1000 for token in corrupted[1:-1] if token != MASK]
    assert places == sorted(set(places))
    runs, remaining = [], iter([*places, length])
    run, last = 0, -1
    for token in [*corrupted[1:-1], None]:
        if token == MASK:
            run += 1
            continue
        place = next(remaining)
        runs.append((run, place - last - 1))
        run, last = 0, place
    return runs  # (masks, tokens lost) between kept tokens


@pytest.mark.parametrize("share", [0.0, 0.15, 0.5, 1.0])
@pytest.mark.parametrize("length", [0, 1, 10, 40])
def test_exactly_the_budget_is_masked(share, length):
    for seed in range(50):
        corrupted = corrupt(text_of(length), np.random.default_rng(seed), share, 3.0, MASK)
        assert (corrupted[0], corrupted[-1]) == (BEGIN, END)
        groups = spans(corrupted, length)
        assert sum(lost for _, lost in groups) == math.ceil(share * length)
        # tokens never vanish without a mask
        assert all(masks > 0 for masks, lost in groups if lost > 0)


def test_the_text_itself_is_untouched():
    ids = text_of(20)
    before = ids.copy()
    corrupt(ids, np.random.default_rng(0), 0.5, 3.0, MASK)
    assert (ids == before).all()


def test_span_lengths_are_poisson():
    """One span, long before the budget ends it: its length follows the Poisson distribution, with inserts at 0."""
    counts, num_draws, num_found = np.zeros(8), 4000, 0
    for seed in range(num_draws):
        rng = np.random.default_rng(seed)
        corrupted = corrupt(text_of(400), rng, 0.02, 3.0, MASK)  # a budget of 8 tokens among 400: spans lie apart
        lost = [lost for masks, lost in spans(corrupted, 400) for _ in range(masks) if masks == 1]
        first = np.random.default_rng(seed).poisson(3.0)
        if first < 8:
            counts[first] += 1
            num_found += first in lost
    expected = np.array([math.exp(-3) * 3**k / math.factorial(k) for k in range(8)])
    assert np.abs(counts / num_draws - expected).max() < 0.025
    # now and then two spans are adjacent, and their lengths cannot be distinguished
    assert num_found > 0.95 * counts.sum()


def test_number_of_masks_and_inserts():
    """By the definition: draws until their sum reaches the budget, one mask each, those of length 0 too."""
    num_masks, num_inserts, expected_masks, expected_inserts = 0, 0, 0, 0
    for seed in range(3000):
        corrupted = corrupt(text_of(30), np.random.default_rng(seed), 0.3, 3.0, MASK)
        num_masks += int((corrupted == MASK).sum())
        num_inserts += sum(masks for masks, lost in spans(corrupted, 30) if lost == 0)
        rng, total = np.random.default_rng(10_000 + seed), 0
        while total < 9:
            length = rng.poisson(3.0)
            total += length
            expected_masks += 1
            expected_inserts += length == 0
    assert num_masks == pytest.approx(expected_masks, rel=0.03)
    # an insert that is adjacent to a span cannot be distinguished: a few are missing
    assert 0.6 * expected_inserts < num_inserts <= 1.1 * expected_inserts


def test_every_place_is_masked_alike():
    hits = np.zeros(20)
    for seed in range(6000):
        corrupted = corrupt(text_of(20), np.random.default_rng(seed), 0.15, 3.0, MASK)
        hits += ~np.isin(np.arange(1000, 1020), corrupted)
    # 3 of 20 tokens are masked; the first only where a span comes before all 17 kept tokens, about 1.4 spans in 18.4
    assert hits.sum() == 6000 * 3
    assert np.abs(hits[3:-3] / 6000 - 0.15).max() < 0.03
    assert hits[0] / 6000 == pytest.approx(1.4 / 18.4, rel=0.15)
    assert hits[-1] / 6000 == pytest.approx(1.4 / 18.4, rel=0.15)


@pytest.fixture(scope="module")
def tokenizer(bart_folder):
    return AutoTokenizer.from_pretrained(bart_folder)


def rngs(num):
    return [np.random.default_rng(seed) for seed in range(num)]


def test_a_batch_is_padded_to_its_longest(tokenizer):
    texts = ["a red fish", "a red fish left of a blue boat on the grass"]
    batch = TextInfilling(tokenizer, 0.15)(texts, rngs(2))
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    assert batch["labels"].shape == (2, max(lengths))
    for row, text in enumerate(texts):
        assert batch["labels"][row, : lengths[row]].tolist() == tokenizer(text)["input_ids"]
        assert (batch["labels"][row, lengths[row] :] == -100).all()
    assert ((batch["corrupted_ids"] != tokenizer.pad_token_id) == batch["corrupted_mask"].bool()).all()
    assert batch["corrupted_mask"].sum(1).max() == batch["corrupted_ids"].shape[1]


def test_shares_are_drawn_one_a_text(tokenizer):
    text = "a red fish left of a blue boat on the grass"
    batch = TextInfilling(tokenizer, [0.0, 1.0])([text] * 400, rngs(400))
    clean = (batch["corrupted_ids"] != tokenizer.mask_token_id).all(1).float().mean().item()
    assert clean == pytest.approx(0.5, abs=0.08)


def test_answers_alone_are_masked(tokenizer):
    texts = ["a red fish. what color is the fish? Answer: red.", "a red fish."]
    batch = TextInfilling(tokenizer, 0.0, answer_mask_share=1.0)(texts, rngs(2))
    corrupted = tokenizer.batch_decode(
        [ids[mask.bool()] for ids, mask in zip(batch["corrupted_ids"], batch["corrupted_mask"], strict=True)]
    )
    assert corrupted == ["<s>a red fish. what color is the fish? Answer:<mask>.</s>", "<s>a red fish.</s>"]
    labels = [ids[ids != -100] for ids in batch["labels"]]
    assert tokenizer.batch_decode(labels) == [f"<s>{text}</s>" for text in texts]


def test_long_texts_are_cut(tokenizer):
    batch = TextInfilling(tokenizer, 0.15, max_length=8)(["a red fish " * 10], rngs(1))
    assert batch["labels"].shape == (1, 8)
    assert batch["labels"][0, -1] == tokenizer.eos_token_id


def test_padding_by_hand():
    ids, mask = padded([np.array([5, 6, 7]), np.array([8])], 1)
    assert ids.tolist() == [[5, 6, 7], [8, 1, 1]]
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
