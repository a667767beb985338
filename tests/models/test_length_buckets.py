"""Length buckets."""

import pytest
import torch

from vlkd_pl.clip.frozen import FrozenCLIP
from vlkd_pl.models.length_buckets import embed_in_length_groups, in_length_groups

LENGTHS = [3, 7, 1, 5, 5, 2, 4]


def masks_of(lengths, longest):
    return torch.arange(longest) < torch.tensor(lengths)[:, None]


def padded():
    """Two inputs of different lengths and their masks."""
    first, second = masks_of([length + 2 for length in LENGTHS], 10), masks_of(LENGTHS, 8)
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(*mask.shape, 3, generator=generator) * mask[..., None] for mask in (first, second)]
    return values, (first, second)


@pytest.mark.parametrize("num_groups", [1, 2, 3, 7, 50])
def test_each_row_comes_back_in_its_place(num_groups):
    (first, second), masks = padded()
    first.requires_grad_()
    shapes = []

    def function(first, second):
        shapes.append((len(second), first.shape[1], second.shape[1]))
        return second + first.sum(1, keepdim=True)

    result = in_length_groups(function, (first, second), masks, num_groups)
    expected = (second + first.sum(1, keepdim=True)) * masks[1][..., None]
    torch.testing.assert_close(result * masks[1][..., None], expected)
    (result * masks[1][..., None]).square().sum().backward()
    gradient, first.grad = first.grad, None
    expected.square().sum().backward()
    torch.testing.assert_close(gradient * masks[0][..., None], first.grad * masks[0][..., None])
    assert len(shapes) == min(num_groups, len(LENGTHS))
    assert max(rows for rows, *_ in shapes) - min(rows for rows, *_ in shapes) <= 1


def test_groups_are_cut_to_their_longest():
    values, masks = padded()
    shapes = []

    def function(first, second):
        shapes.append((len(second), first.shape[1], second.shape[1]))
        return second

    in_length_groups(function, values, masks, 3)
    assert shapes == [(3, 5, 3), (2, 7, 5), (2, 9, 7)]


def test_rows_are_grouped_by_the_lengths_of_all_inputs():
    """Long conditions share a group, and rows with short ones, such as texts without an image, carry no padding."""
    masks = masks_of([9, 2, 9, 2], 9), masks_of([3, 4, 2, 5], 5)
    shapes = []

    def function(condition, labels):
        shapes.append((condition.shape[1], labels.shape[1]))
        return labels

    values = [mask[..., None].float() for mask in masks]
    in_length_groups(function, values, masks, 2)
    assert shapes == [(2, 5), (9, 3)]


def test_equal_lengths_make_as_many_groups():
    """Ranks whose texts happen to have one length must call a sharded model as often as the others."""
    mask = masks_of([4] * 6, 4)
    calls = []
    in_length_groups(lambda ids: calls.append(len(ids)) or ids[..., None], (torch.ones(6, 4),), (mask,), 3)
    assert calls == [2, 2, 2]


def test_clip_texts_are_embedded_without_what_follows_their_end(clip_folder):
    """The end token has the highest id; a token of id 0 before it is a part of the text."""
    clip, end = FrozenCLIP.load(str(clip_folder)), 654
    ids = torch.tensor([[3, 0, end, 0, 0, 0], [3, 5, 4, 0, 0, end], [3, end, 0, 0, 0, 0]])
    lengths = []

    def encode_text(ids):
        lengths.append(ids.shape[1])
        return clip.encode_text(ids)

    torch.testing.assert_close(embed_in_length_groups(encode_text, ids, 3), clip.encode_text(ids))
    assert lengths == [2, 3, 6]
