"""The chunked cross-entropy compared with PyTorch's on all logits at once."""

import pytest
import torch
from torch.nn import functional
from torch.nn.functional import cross_entropy, linear

from vlkd_pl.losses import chunked_icti_loss, icti_loss
from vlkd_pl.losses.vocabulary import chunked_cross_entropy

NUM_TOKENS, DIM, VOCAB_SIZE = 11, 6, 50


def inputs(dtype=torch.float64, num_tokens=NUM_TOKENS, vocab_size=VOCAB_SIZE):
    """Hidden states, weight and bias of a head, and labels."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in ((num_tokens, DIM), (vocab_size, DIM), (vocab_size,))
    )
    labels = torch.randint(vocab_size, (num_tokens,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), bias, labels


def whole(hidden, weight, bias, labels, _):
    return cross_entropy(linear(hidden, weight, bias).float(), labels, reduction="sum")


def with_gradients(function, values, scale=1.0):
    """Value and gradients, computed with the loss scaled by ``scale``."""
    hidden, weight = values[:2]
    loss = function(*values)
    gradients = torch.autograd.grad(loss * scale, (hidden, weight))
    return loss.detach(), *(gradient.float() / scale for gradient in gradients)


@pytest.mark.parametrize("chunk_size", [1, 4, 11, 100])
def test_it_is_torchs_with_its_gradients(chunk_size):
    values = *inputs(), chunk_size
    hidden, weight, bias, labels = values[:4]
    loss = chunked_cross_entropy(*values)
    expected = cross_entropy(linear(hidden, weight, bias), labels, reduction="sum")
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    # whatever comes after: the loss is one of several that are weighted
    results = torch.autograd.grad(3 * loss.square(), (hidden, weight))
    expected_gradients = torch.autograd.grad(3 * expected.square(), (hidden, weight))
    torch.testing.assert_close(results, expected_gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.skipif(not hasattr(functional, "linear_cross_entropy"), reason="PyTorch has it from 2.14 on")
def test_it_is_torchs_linear_cross_entropy():
    """Outside of autocast, which PyTorch's leaves out of its matrix products."""
    hidden, weight, bias, labels = inputs()
    options = torch.nn.LinearCrossEntropyOptions()
    loss = chunked_cross_entropy(hidden, weight, bias, labels, 4)
    expected = functional.linear_cross_entropy(
        hidden, weight, labels, linear_bias=bias, reduction="sum", options=options
    )
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    results, gradients = (torch.autograd.grad(value, (hidden, weight)) for value in (loss, expected))
    torch.testing.assert_close(results, gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_padding_counts_for_nothing(reduction):
    hidden, weight, bias, labels = inputs(num_tokens=12)
    labels = labels.reshape(3, 4).masked_fill(torch.tensor([[0, 0, 0, 1], [0, 1, 1, 1], [0, 0, 0, 0]]).bool(), -100)
    features = hidden.reshape(3, 4, DIM)
    loss = chunked_icti_loss(features, weight, bias, labels, 5, reduction)
    expected = icti_loss(linear(features, weight, bias), labels, reduction)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    results, expected_gradients = (torch.autograd.grad(value, (hidden, weight)) for value in (loss, expected))
    torch.testing.assert_close(results, expected_gradients, rtol=1e-10, atol=1e-12)


def test_no_token_is_a_loss_of_zero():
    hidden, weight, bias, labels = inputs(num_tokens=0)
    loss = chunked_cross_entropy(hidden, weight, bias, labels, 4)
    assert loss.item() == 0
    assert torch.autograd.grad(loss, weight)[0].abs().sum() == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_rounds_no_more_than_without_chunks(dtype):
    """Rare tokens have probabilities below float16's range; the loss is scaled up, as a gradient scaler does."""
    hidden, weight, bias, labels = inputs(torch.float32, 64, 4096)
    rare = torch.ones(4096, dtype=torch.bool).index_fill(0, labels, False) & (torch.arange(4096) < 2048)
    values = hidden, weight, bias - 10.0 * rare, labels, 16
    exact = with_gradients(whole, values)
    with torch.autocast("cpu", dtype):
        results, usual = (with_gradients(function, values, 128) for function in (chunked_cross_entropy, whole))
    assert results[0].dtype == torch.float32
    for mine, theirs, right in zip(results, usual, exact, strict=True):
        assert 0 < (mine - right).norm() <= 1.2 * (theirs - right).norm()
    assert (results[2] - exact[2])[rare].norm() <= 1.2 * (usual[2] - exact[2])[rare].norm()


def test_large_hidden_states_do_not_overflow_in_float16():
    """Equal improbable tokens, whose summed gradient exceeds float16's range."""
    hidden, weight, bias, _ = inputs(torch.float32, 64)
    labels = torch.zeros(64, dtype=torch.int64)
    values = 2000 * hidden.detach().abs(), 1e-4 * weight.detach(), bias, labels, 64
    values = values[0].requires_grad_(), values[1].requires_grad_(), *values[2:]
    exact = with_gradients(whole, values)
    assert exact[2].abs().max() > torch.finfo(torch.float16).max
    with torch.autocast("cpu", torch.float16):
        results = with_gradients(chunked_cross_entropy, values)
    for mine, right in zip(results, exact, strict=True):
        assert (mine - right).norm() <= 1e-2 * right.norm()


def test_a_second_backward_pass_is_an_error():
    hidden, weight, bias, labels = inputs()
    loss = 2 * chunked_cross_entropy(hidden, weight, bias, labels, 4)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_without_gradients_none_are_computed():
    hidden, weight, bias, labels = inputs()
    with torch.no_grad():
        loss = chunked_cross_entropy(hidden, weight, bias, labels, 4)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, cross_entropy(linear(hidden, weight, bias), labels, reduction="sum").detach())


def test_the_logits_of_one_chunk_are_the_largest_that_is_made():
    sizes = []

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, arguments=(), options=None):
            result = operator(*arguments, **(options or {}))
            sizes.extend(value.numel() for value in torch.utils._pytree.tree_leaves(result) if torch.is_tensor(value))
            return result

    hidden, weight, bias, labels = inputs()
    with Sizes():
        chunked_cross_entropy(hidden, weight, bias, labels, 2).backward()
    assert max(sizes) == VOCAB_SIZE * DIM  # the weight's gradient; two tokens' logits are a third of it
