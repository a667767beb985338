"""Predictions whose keys differ from those of the ground truths."""

import pytest

from vlkd_pl.metrics.pairing import check_pairing


def test_the_order_of_the_keys_is_free():
    check_pairing([1, 2, 3], [3, 1, 2], "image")


def test_mismatches_are_counted_and_the_first_listed():
    with pytest.raises(ValueError, match=r"^4 of 5 images have no prediction \(first: 9, 2, 8\)$"):
        check_pairing([9, 2, 8, 1, 3], [3], "image")
    with pytest.raises(ValueError, match=r"^1 of 2 predictions are for an unknown question \(first: '1'\)$"):
        check_pairing([1], [1, "1"], "question")


def test_nothing_to_score():
    with pytest.raises(ValueError, match="there are no images to score"):
        check_pairing([], [], "image")
