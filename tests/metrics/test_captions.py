"""CIDEr against its definition, computed here term by term."""

import math
from collections import Counter

import pytest

from vlkd_pl.metrics.captions import cider, words

REFERENCES = {
    1: ["a red fish on the grass", "there is a red fish"],
    2: ["two blue boats at night", "a pair of boats, both blue, at night"],
    3: ["a tree"],
}


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


def test_against_the_definition():
    predictions = {1: "a red fish in the snow", 2: "two blue boats", 3: "a tree"}
    plain = {key: [words(text) for text in texts] for key, texts in REFERENCES.items()}
    score, per_picture = cider(REFERENCES, predictions)
    for key, prediction in predictions.items():
        assert per_picture[key] == pytest.approx(cider_d(plain[key], prediction, list(plain.values())), rel=1e-9)
    assert score == pytest.approx(sum(per_picture.values()) / 3)
    assert per_picture[2] > 0.5


def test_case_and_punctuation_do_not_count():
    plain = cider(REFERENCES, {1: "a red fish", 2: "blue boats at night", 3: "a tree"})
    assert cider(REFERENCES, {1: "A red fish.", 2: "Blue boats, at night!", 3: "a  tree"}) == plain
    assert words("Don't STOP, it's 3:00") == "don't stop it's 3 00"


def test_missing_and_unknown_pictures_are_named():
    with pytest.raises(ValueError, match=r"1 missing \(first: \[3\]\), 1 unknown \(first: \[7\]\)"):
        cider(REFERENCES, {1: "", 2: "", 7: ""})
