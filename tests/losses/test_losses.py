"""The losses compared with plain loops, hand-computed values and numerical gradients."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from vlkd_pl.losses import icti_loss, itcl_loss, label_smoothed_loss, scst_loss, token_kl_loss, ttdm_loss


def unit(*shape, seed=0):
    return normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def test_ttdm_by_hand():
    first, second = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    # squared distances 2 and 0: mean over the batch 1, and over the two dimensions one half of it
    assert ttdm_loss(first, second, "sum").item() == pytest.approx(1.0)
    assert ttdm_loss(first, second, "mean").item() == pytest.approx(0.5)
    assert ttdm_loss(first, second).item() == pytest.approx(0.5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ttdm_against_a_loop(reduction):
    first, second = unit(5, 7), unit(5, 7, seed=1)
    total = 0.0
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        distance = sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
        total += distance / 7 if reduction == "mean" else distance
    assert ttdm_loss(first, second, reduction).item() == pytest.approx(total / 5, rel=1e-12)


def itcl_loop(image, text, scale):
    """L_i2t and L_t2i of Section 3.2.2, term by term."""
    size = len(image)
    similar = [[sum(a * b for a, b in zip(v, e, strict=True)) * scale for e in text.tolist()] for v in image.tolist()]
    i2t = -sum(similar[k][k] - math.log(sum(math.exp(similar[k][j]) for j in range(size))) for k in range(size)) / size
    t2i = -sum(similar[k][k] - math.log(sum(math.exp(similar[j][k]) for j in range(size))) for k in range(size)) / size
    return (i2t + t2i) / 2


def test_itcl_against_a_loop():
    image, text = unit(6, 4), unit(6, 4, seed=1)
    loss = itcl_loss(image, text, torch.tensor(1 / 0.07, dtype=torch.float64))
    assert loss.item() == pytest.approx(itcl_loop(image, text, 1 / 0.07), rel=1e-12)


def test_itcl_by_hand():
    # two orthogonal pairs, each matched: logits 3 on the diagonal and 0 off it
    loss = itcl_loss(torch.eye(2), torch.eye(2), torch.tensor(3.0))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-3.0)), rel=1e-6)


def test_itcl_keeps_float32_under_autocast():
    image, text = unit(6, 4).float(), unit(6, 4, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        loss = itcl_loss(image, text, torch.tensor(100.0))
    assert loss.item() == pytest.approx(itcl_loop(image, text, 100.0), rel=1e-6)


def icti_loop(logits, labels):
    """Eq. (2), term by term, and the number of tokens."""
    total, count = 0.0, 0
    for rows, targets in zip(logits.tolist(), labels.tolist(), strict=True):
        for row, target in zip(rows, targets, strict=True):
            if target != -100:
                total -= row[target] - math.log(sum(math.exp(value) for value in row))
                count += 1
    return total, count


def test_icti_against_a_loop():
    logits = torch.randn(3, 5, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([[1, 2, 3, -100, -100], [4, 5, 6, 7, 8], [9, -100, -100, -100, -100]])
    total, count = icti_loop(logits, labels)
    assert icti_loss(logits, labels).item() == pytest.approx(total / 3, rel=1e-12)
    assert icti_loss(logits, labels, "sum").item() == pytest.approx(total / 3, rel=1e-12)
    assert icti_loss(logits, labels, "mean").item() == pytest.approx(total / count, rel=1e-12)


def test_icti_by_hand():
    # even odds over four words: each of three tokens costs ln 4
    loss = icti_loss(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 2]]))
    assert loss.item() == pytest.approx(3 * math.log(4), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_lower_precisions_go_up_to_float32(dtype):
    image, text = unit(6, 16).to(dtype), unit(6, 16, seed=1).to(dtype)
    logits = torch.randn(2, 4, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    labels = torch.randint(50, (2, 4), generator=torch.Generator().manual_seed(1))
    scale = torch.tensor(100.0)

    def losses(wide):
        first, second = image.to(wide), text.to(wide)
        return ttdm_loss(first, second), itcl_loss(first, second, scale), icti_loss(logits.to(wide), labels)

    wide = torch.promote_types(dtype, torch.float32)
    for loss, expected in zip(losses(dtype), losses(wide), strict=True):
        assert loss.dtype == wide
        assert torch.equal(loss, expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients(reduction):
    def leaf(*shape, seed):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()

    labels = torch.tensor([[1, -100, 0], [2, 3, -100]])
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: ttdm_loss(a, b, reduction), (leaf(3, 4, seed=0), leaf(3, 4, seed=1)))
    assert torch.autograd.gradcheck(itcl_loss, (leaf(3, 4, seed=0), leaf(3, 4, seed=1), scale))
    assert torch.autograd.gradcheck(lambda logits: icti_loss(logits, labels, reduction), (leaf(2, 3, 4, seed=2),))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_label_smoothing_against_a_loop(smoothing):
    logits = torch.randn(2, 3, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([[4, 0, -100], [6, -100, -100]])
    entry = smoothing / (7 - 1)
    losses = []
    for row, targets in zip(logits.tolist(), labels.tolist(), strict=True):
        for scores, target in zip(row, targets, strict=True):
            if target == -100:
                continue
            normalizer = math.log(sum(map(math.exp, scores)))
            log_probabilities = [score - normalizer for score in scores]
            likelihood = -log_probabilities[target]
            losses.append((1 - smoothing - entry) * likelihood + entry * -sum(log_probabilities))
    assert label_smoothed_loss(logits, labels, smoothing).item() == pytest.approx(sum(losses) / 3, rel=1e-12)


def test_label_smoothing_is_least_at_its_own_target():
    target = torch.tensor([0.9, 0.05, 0.05], dtype=torch.float64)
    logits = target.log().reshape(1, 1, 3).requires_grad_()
    loss = label_smoothed_loss(logits, torch.tensor([[0]]))
    assert loss.item() == pytest.approx(-(target * target.log()).sum().item())
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), atol=1e-15, rtol=0)


# Self-Critical Sequence Training


def test_scst_gradient_on_two_words_by_hand():
    """Two samples of a word and the end token, with the same two logits at each position."""
    weights = torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)
    labels, reward, baseline = torch.tensor([[0, 1], [1, -100]]), torch.tensor([2.0, 0.5]), torch.tensor([0.5, 2.0])
    loss = scst_loss(weights.expand(2, 2, 2), labels, reward, baseline)
    loss.backward()
    probability = math.exp(0.4) / (math.exp(0.4) + math.exp(-0.3))
    # the first is 1.5 better than its baseline, the second 1.5 worse
    # by the first logit, d ln p(0) = 1 - p and d ln p(1) = -p
    expected = -(1.5 * ((1 - probability) - probability) - 1.5 * -probability) / 2
    assert weights.grad.tolist() == pytest.approx([expected, -expected])
    log_probability = [math.log(probability), math.log(1 - probability)]
    assert loss.item() == pytest.approx(-(1.5 * sum(log_probability) - 1.5 * log_probability[1]) / 2)


def test_scst_follows_the_expected_reward():
    """The expectation over all texts of two words is the policy gradient, for any baseline."""
    weights = torch.tensor([[0.4, -0.3], [0.1, 0.9]], dtype=torch.float64, requires_grad=True)
    texts = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    reward = torch.tensor([1.0, 0.2, 0.7, 3.0], dtype=torch.float64)
    probability = weights.softmax(-1)[torch.arange(2), texts].prod(1)
    (expected,) = torch.autograd.grad(-(probability * reward).sum(), weights, retain_graph=True)
    for baseline in (0.0, 0.9):
        loss = sum(
            share * scst_loss(weights[None], text[None], value[None], torch.tensor([baseline]))
            for share, text, value in zip(probability.detach(), texts, reward, strict=True)
        )
        (gradient,) = torch.autograd.grad(loss, weights)
        torch.testing.assert_close(gradient, expected)


def test_no_gradient_flows_into_rewards():
    logits, reward, baseline = (torch.randn(*shape, requires_grad=True) for shape in ((3, 2, 4), (3,), (3,)))
    scst_loss(logits, torch.tensor([[0, 1], [2, 3], [1, -100]]), reward, baseline).backward()
    assert reward.grad is None
    assert baseline.grad is None
    assert logits.grad[2, 1].tolist() == [0.0] * 4  # padding
    assert logits.grad[2, 0].abs().sum() > 0


def test_kl_against_a_loop():
    now, then = (torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (0, 1))
    labels = torch.tensor([[-100, 1, 2], [-100, 3, -100]])
    total = 0.0
    for row, column in ((0, 1), (0, 2), (1, 1)):
        p, q = now[row, column].softmax(-1).tolist(), then[row, column].softmax(-1).tolist()
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert token_kl_loss(now, then, labels).item() == pytest.approx(total / 2)
    assert token_kl_loss(now, now, labels).item() == pytest.approx(0.0, abs=1e-12)
