"""Recall against sorting all similarities."""

import pytest
import torch
from torch.nn.functional import normalize

from vlkd_pl.metrics.retrieval import recall_at_k


def test_against_sorting():
    generator = torch.Generator().manual_seed(0)
    image = normalize(torch.randn(20, 6, generator=generator), dim=-1)
    index = torch.arange(20).repeat_interleave(3)
    text = normalize(image[index] + 0.8 * torch.randn(60, 6, generator=generator), dim=-1)
    similarity = text @ image.T
    recall = recall_at_k(image, text, index, ks=(1, 5, 10))
    for k in (1, 5, 10):
        t2i = sum(int(index[row]) in similarity[row].topk(k).indices for row in range(60)) / 60
        i2t = (
            sum(any(index[row] == column for row in similarity[:, column].topk(k).indices) for column in range(20)) / 20
        )
        assert recall[f"text_to_image_r{k}"] == pytest.approx(t2i)
        assert recall[f"image_to_text_r{k}"] == pytest.approx(i2t)
    assert 0 < recall["text_to_image_r1"] < recall["text_to_image_r5"] < 1


def test_independent_of_the_chunk_size(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    image, text = torch.randn(9, 4, generator=generator), torch.randn(27, 4, generator=generator)
    index = torch.arange(9).repeat(3)  # the three texts of an image lie in different chunks
    whole = recall_at_k(image, text, index)
    assert 0 < whole["image_to_text_r1"] < whole["image_to_text_r10"] < 1
    monkeypatch.setattr("vlkd_pl.metrics.retrieval._CHUNK", 2)
    assert recall_at_k(image, text, index) == whole


def test_ties_count_against():
    """A collapsed encoder, with the same embedding for everything, scores 0."""
    same = torch.ones(5, 3)
    assert recall_at_k(same, same, torch.arange(5), ks=(1,)) == {"image_to_text_r1": 0.0, "text_to_image_r1": 0.0}


@pytest.mark.parametrize("diverged", ["image", "text", "both"])
def test_nan_scores_zero(diverged):
    """An encoder that diverged must not look perfect."""
    nan, fine = torch.full((5, 3), torch.nan), normalize(torch.randn(5, 3), dim=-1)
    image, text = fine if diverged == "text" else nan, fine if diverged == "image" else nan
    assert recall_at_k(image, text, torch.arange(5), ks=(1,)) == {"image_to_text_r1": 0.0, "text_to_image_r1": 0.0}
