"""Scores of captions against their definitions and pycocoevalcap's."""

import math
from collections import Counter

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge

from vlkd_pl.metrics.captions import caption_scores, cider, cider_note
from vlkd_pl.metrics.ptb import tokenize

REFERENCES = {
    1: ["a red fish on the grass", "there is a red fish"],
    2: ["two blue boats at night", "a pair of boats, both blue, at night"],
    3: ["a tree"],
}
PREDICTIONS = {1: "a red fish in the snow", 2: "two blue boats", 3: "a tree"}


def ngrams(text, n):
    parts = text.split()
    return Counter(tuple(parts[i : i + n]) for i in range(len(parts) - n + 1))


def cider_d(references, prediction, all_references):
    """CIDEr-D of one caption (Vedantam et al., 2015): clipped tf-idf cosine, length penalty with σ = 6, times 10."""
    num = len(all_references)
    score = 0.0
    for n in range(1, 5):
        frequency = Counter(gram for texts in all_references for gram in {g for t in texts for g in ngrams(t, n)})

        def vector(text, n=n, frequency=frequency):
            return {
                gram: count * (math.log(num) - math.log(max(1, frequency[gram])))
                for gram, count in ngrams(text, n).items()
            }

        guess = vector(prediction)
        for reference in references:
            truth = vector(reference)
            dot = sum(min(value, truth.get(gram, 0.0)) * truth.get(gram, 0.0) for gram, value in guess.items())
            norm = math.sqrt(sum(v * v for v in guess.values())) * math.sqrt(sum(v * v for v in truth.values()))
            # pycocoevalcap counts bigrams for the length
            delta = max(0, len(prediction.split()) - 1) - max(0, len(reference.split()) - 1)
            score += (dot / norm if norm else 0.0) * math.exp(-(delta**2) / 72) / len(references)
    return 10 * score / 4


def rouge_l(precision, recall):
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)


def test_cider_against_the_definition():
    plain = {key: [tokenize(text) for text in texts] for key, texts in REFERENCES.items()}
    score, per_image = cider(REFERENCES, PREDICTIONS)
    for key, prediction in PREDICTIONS.items():
        assert per_image[key] == pytest.approx(cider_d(plain[key], prediction, list(plain.values())), rel=1e-9)
    assert score == pytest.approx(sum(per_image.values()) / 3)
    assert per_image[2] > 0.5


def test_bleu_rouge_and_cider_need_no_java(monkeypatch):
    monkeypatch.setenv("PATH", "")
    scored = caption_scores(REFERENCES, PREDICTIONS, ["BLEU", "ROUGE-L", "CIDEr"])
    assert scored.not_computed == {}
    assert list(scored.scores) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"]
    assert all(scores.keys() == scored.scores.keys() for scores in scored.per_image.values())
    # of the 6, 3 and 2 words 4 ("a red fish ... the"), 3 and 2 match; 11 words, and the closest references have 13
    assert scored.scores["BLEU-1"] == pytest.approx(9 / 11 * math.exp(1 - 13 / 11))
    # 4 of 6 words are in the order of the 6 of a reference, and 3 of 3 in that of 5
    assert scored.per_image[1]["ROUGE-L"] == pytest.approx(rouge_l(4 / 6, 4 / 6))
    assert scored.per_image[2]["ROUGE-L"] == pytest.approx(rouge_l(3 / 3, 3 / 5))
    assert scored.scores["CIDEr"] == cider(REFERENCES, PREDICTIONS)[0]


def test_equal_to_pycocoevalcap():
    references = REFERENCES | {4: ["a fish", "a fish a fish"], 5: ["boats"]}
    predictions = PREDICTIONS | {4: "", 5: "a a a a a fish"}
    scored = caption_scores(references, predictions, ["BLEU", "ROUGE-L", "CIDEr"])
    truths = {key: [tokenize(text) for text in texts] for key, texts in references.items()}
    guesses = {key: [tokenize(text)] for key, text in predictions.items()}
    overall, per_image = Bleu().compute_score(truths, guesses, verbose=0)
    expected = {f"BLEU-{order}": pair for order, pair in enumerate(zip(overall, per_image, strict=True), start=1)}
    expected["ROUGE-L"] = Rouge().compute_score(truths, guesses)
    expected["CIDEr"] = Cider().compute_score(truths, guesses)
    for name, (mean, scores) in expected.items():
        assert scored.scores[name] == pytest.approx(mean, abs=1e-12)
        assert [row[name] for row in scored.per_image.values()] == pytest.approx(list(scores), abs=1e-12)


def test_case_and_punctuation_do_not_count():
    plain = cider(REFERENCES, {1: "a red fish", 2: "blue boats at night", 3: "a tree"})
    assert cider(REFERENCES, {1: "A red fish.", 2: "Blue boats, at night!", 3: "a  tree"}) == plain


def test_nothing_is_printed(capfd):
    caption_scores(REFERENCES, PREDICTIONS, ["BLEU", "ROUGE-L", "CIDEr"], progress=True)
    assert capfd.readouterr() == ("", "")


def test_missing_and_unknown_images_are_listed():
    with pytest.raises(ValueError, match=r"1 of 3 images have no prediction \(first: 3\); 1 of 3 .* \(first: 7\)"):
        cider(REFERENCES, {1: "", 2: "", 7: ""})


def test_images_without_references_are_listed():
    with pytest.raises(ValueError, match=r"1 of 2 images have no reference caption \(first: 5\)"):
        caption_scores({1: ["a tree"], 5: []}, {1: "a tree", 5: "a fish"}, ["BLEU"])
    with pytest.raises(ValueError, match="no reference caption holds a word"):
        cider({1: ["..."]}, {1: "a tree"})


def test_unknown_metrics_are_an_error():
    with pytest.raises(ValueError, match="unknown caption metric 'Bleu': choose from BLEU, METEOR"):
        caption_scores(REFERENCES, PREDICTIONS, ["CIDEr", "Bleu"])


@pytest.mark.parametrize(
    ("references", "note"),
    [
        ({1: ["a fish", "a boat"]}, "there is one image alone"),
        ({1: ["a fish"], 2: ["A fish."]}, "the references of all 2 images hold the same n-grams"),
        ({1: ["a fish", "one"], 2: ["one", "a fish"], 3: ["one", "a fish", "one"]}, "of all 3 images"),
    ],
)
def test_cider_note_explains_zero(references, note):
    assert note in cider_note(references)
    assert "\n" not in cider_note(references)
    assert cider(references, {key: texts[0] for key, texts in references.items()})[0] == 0


@pytest.mark.parametrize(
    "references", [REFERENCES, {1: ["a fish"], 2: ["fish a"]}, {1: ["a fish"], 2: ["a fish"], 3: ["a fish", "one"]}]
)
def test_no_cider_note_where_images_differ(references):
    assert cider_note(references) == ""
    assert cider(references, {key: texts[-1] for key, texts in references.items()})[0] > 0
