"""ROUGE of short summaries, counted by hand, and sentences."""

import pytest

from vlkd_pl.metrics.summaries import split_sentences, summary_scores


def f1(precision, recall):
    return 100 * 2 * precision * recall / (precision + recall)


def test_counted_by_hand():
    scores = summary_scores(["the dogs barked at the cat"], ["a dog barks at night"])
    assert scores["ROUGE-1"] == pytest.approx(f1(3 / 5, 3 / 6))  # the stems dog, bark, at
    assert scores["ROUGE-2"] == pytest.approx(f1(2 / 4, 2 / 5))  # dog bark, bark at
    assert scores["ROUGE-L"] == pytest.approx(f1(3 / 5, 3 / 6))
    assert scores["ROUGE-Lsum"] == pytest.approx(f1(3 / 5, 3 / 6))


def test_only_lsum_ignores_the_order_of_sentences():
    scores = summary_scores(["A dog barked. Two cats slept."], ["Two cats slept. A dog barked."])
    assert scores["ROUGE-L"] == pytest.approx(50)
    assert scores["ROUGE-Lsum"] == pytest.approx(100)


def test_mean_over_pairs():
    scores = summary_scores(["a dog", "a cat", "a fish"], ["a dog", "", "two boats"])
    assert scores == pytest.approx(dict.fromkeys(scores, 100 / 3))


def test_unequal_numbers():
    with pytest.raises(ValueError, match="2 references and 1 predictions"):
        summary_scores(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="0 references"):
        summary_scores([], [])


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", []),
        ("no end", ["no end"]),
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("two lines. One more\nThe second\n", ["two lines. One more", "The second"]),
        ('He said: "Go!" They left.', ['He said: "Go!"', "They left."]),
        ("It ended... “Why?” Nobody knew.", ["It ended...", "“Why?”", "Nobody knew."]),
        ("It rose 3.5 points. 20 fell, approx. 4 stayed.", ["It rose 3.5 points.", "20 fell, approx. 4 stayed."]),
        ("Mr. Smith met J. K. Rowling in the U.S. He left.", ["Mr. Smith met J. K. Rowling in the U.S. He left."]),
        ("the end. of it. Élan won.", ["the end. of it.", "Élan won."]),
    ],
)
def test_split_sentences(text, sentences):
    assert split_sentences(text) == sentences
