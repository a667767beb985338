"""Decoding of summaries: the settings reach the search."""

import pytest
import torch

from vlkd_pl.models.summarize import XSUM_DECODING, SummaryDecoding, summarize
from vlkd_pl.models.text import TextModel

TEXTS = ["a red fish. it is on the grass.", "two blue boats at night. boats are made of planks.", "a tree."]


@pytest.fixture(scope="module")
def model(bart_folder):
    model = TextModel.load(str(bart_folder)).eval()
    # settings stored with a BART, as bart-large has them, must not come in
    for name, value in {"num_beams": 4, "no_repeat_ngram_size": 2, "max_length": 9, "length_penalty": 3.0}.items():
        setattr(model.bart.generation_config, name, value)
    return model


def inputs(model, texts=TEXTS):
    encoded = model.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model.encode(encoded["input_ids"], encoded["attention_mask"]), encoded["attention_mask"]


def generated(model, monkeypatch, decoding):
    """The token ids that the search returns, without padding, and its settings."""
    seen = {}
    generate = type(model.bart).generate

    def spy(self, **options):
        seen["options"] = options
        seen["ids"] = generate(self, **options)
        return seen["ids"]

    monkeypatch.setattr(type(model.bart), "generate", spy)
    texts = summarize(model, *inputs(model), decoding)
    pad_id = model.tokenizer.pad_token_id
    return texts, [[token for token in row if token != pad_id] for row in seen["ids"].tolist()], seen["options"]


def trigrams(ids):
    return list(zip(ids, ids[1:], ids[2:], strict=False))


def test_lengths_and_trigrams(model, monkeypatch):
    texts, rows, options = generated(model, monkeypatch, XSUM_DECODING)
    assert (options["num_beams"], options["max_length"], options["min_length"]) == (6, 62, 11)
    assert (options["length_penalty"], options["no_repeat_ngram_size"], options["early_stopping"]) == (1.0, 3, True)
    for row in rows:
        assert row[:2] == [2, 0]  # the decoder's start, and BART's begin token
        assert row[-1] == 2
        assert 11 < len(row) <= 62
        assert len(set(trigrams(row))) == len(trigrams(row))
    assert all("<" not in text and "\n" not in text for text in texts)


def test_without_the_settings_random_weights_repeat_themselves(model, monkeypatch):
    _, rows, _ = generated(model, monkeypatch, SummaryDecoding(num_beams=1, no_repeat_ngram_size=0, max_length=62))
    assert any(len(set(trigrams(row))) < len(trigrams(row)) for row in rows)
    assert all(len(row) <= 62 for row in rows)


@pytest.mark.parametrize("min_length", [3, 25])
def test_min_length_counts_the_start_and_begin_tokens(model, monkeypatch, min_length):
    with torch.no_grad():  # the end token is always the likeliest
        before = model.bart.final_logits_bias.clone()
        model.bart.final_logits_bias[0, model.tokenizer.eos_token_id] = 1e4
    try:
        _, rows, _ = generated(model, monkeypatch, SummaryDecoding(min_length=min_length))
    finally:
        model.bart.final_logits_bias.copy_(before)
    assert {len(row) for row in rows} == {min_length + 1}


def test_greedy_by_hand(model):
    features, mask = inputs(model, TEXTS[:1])
    ids = [2, 0]
    while len(ids) < 11:
        labels = torch.tensor([[*ids[1:], -100]])
        with torch.no_grad():
            ids.append(int(model.decode(features, mask, labels)[0, len(ids) - 1].argmax()))
    expected = model.tokenizer.decode(ids, skip_special_tokens=True)
    decoding = SummaryDecoding(num_beams=1, max_length=12, min_length=0, no_repeat_ngram_size=0)
    assert summarize(model, features, mask, decoding) == [" ".join(expected.split())]


def test_a_batch_gives_what_its_documents_give_alone(model):
    together = summarize(model, *inputs(model), XSUM_DECODING)
    assert together == [summarize(model, *inputs(model, [text]), XSUM_DECODING)[0] for text in TEXTS]


def test_features_are_left_as_they_were(model):
    features, mask = inputs(model)
    before = features.clone()
    summarize(model, features, mask, XSUM_DECODING)
    assert features.shape == before.shape
    torch.testing.assert_close(features, before)
