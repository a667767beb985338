"""Parameter groups, optimizers and the schedule against their closed forms."""

import math

import pytest
import torch
from torch import nn

from vlkd_pl.training.optim import linear_warmup_and_decay, make_optimizer, parameter_groups


class Model(nn.Module):
    """One of each kind of parameter."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)
        self.norm = nn.LayerNorm(4)
        self.embedding = nn.Embedding(3, 4)
        self.text_projection = nn.Linear(4, 4, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(1.0))
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.tied = self.embedding


def rates(model, **options):
    groups = parameter_groups(model, weight_decay=0.01, learning_rate=0.1, **options)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(p)]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_no_decay_on_biases_norms_and_temperature():
    assert rates(Model()) == {
        "attention.in_proj_weight": (0.1, 0.01),
        "attention.in_proj_bias": (0.1, 0.0),
        "attention.out_proj.weight": (0.1, 0.01),
        "attention.out_proj.bias": (0.1, 0.0),
        "norm.weight": (0.1, 0.0),
        "norm.bias": (0.1, 0.0),
        "embedding.weight": (0.1, 0.01),
        "text_projection.weight": (0.1, 0.01),
        "logit_scale": (0.1, 0.0),
    }


@pytest.mark.parametrize(
    ("options", "of_text", "of_image"),
    [((None, None), 0.1, 0.1), ((0.5, None), 0.5, 0.5), ((None, 0.7), 0.1, 0.7), ((0.5, 0.7), 0.5, 0.7)],
)
def test_projections_have_their_own_rate(options, of_text, of_image):
    model = nn.ModuleDict({"text_projection": nn.Linear(1, 1), "image_projection": nn.Linear(1, 1), "other": Model()})
    results = rates(model, rates=dict(zip(("projection", "image_projection"), options, strict=True)))
    assert (results.pop("text_projection.weight"), results.pop("image_projection.weight")) == (
        (of_text, 0.01),
        (of_image, 0.01),
    )
    assert {rate for name, (rate, _) in results.items() if "projection" not in name} == {0.1}


@pytest.mark.parametrize(("warmup", "total"), [(4, 10), (0, 5), (3, 3)])
def test_schedule(warmup, total):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = linear_warmup_and_decay(optimizer, warmup, total)
    for step in range(total + 3):
        expected = (step + 1) / warmup if step < warmup else max(0, total - step) / max(1, total - warmup)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2.0 * expected)
        optimizer.step()
        schedule.step()


def test_adamw_is_torchs():
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": 0.1, "weight_decay": 0.2}]
    optimizer = make_optimizer("adamw", groups, 0.3, (0.8, 0.9), 1e-4)
    assert type(optimizer) is torch.optim.AdamW
    assert {**optimizer.param_groups[0], "params": 0}.items() >= {"lr": 0.1, "weight_decay": 0.2, "eps": 1e-4}.items()
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


def test_fused_adamw_steps_as_the_plain_one():
    torch.manual_seed(0)
    fused, plain = Model(), Model()
    plain.load_state_dict(fused.state_dict())
    optimizers = [
        make_optimizer("adamw", parameter_groups(fused, 0.2, 0.1), 0.1, (0.8, 0.9), 1e-4),
        torch.optim.AdamW(parameter_groups(plain, 0.2, 0.1), betas=(0.8, 0.9), eps=1e-4, foreach=False),
    ]
    assert optimizers[0].defaults["fused"]
    for _ in range(3):
        for parameter, other in zip(fused.parameters(), plain.parameters(), strict=True):
            if parameter.requires_grad:
                parameter.grad = torch.randn_like(parameter)
                other.grad = parameter.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(fused.state_dict(), plain.state_dict())


def test_adamw_steps_on_devices_without_a_fused_one():
    weight = nn.Parameter(torch.zeros(1, device="meta"))
    assert not make_optimizer("adamw", [{"params": [weight]}], 0.1, (0.9, 0.99), 1e-6).defaults["fused"]


def test_lambs_first_step_by_hand():
    weight, bias = nn.Parameter(torch.tensor([3.0, 4.0])), nn.Parameter(torch.tensor([2.0]))
    groups = [{"params": [weight], "weight_decay": 0.5}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = make_optimizer("lamb", groups, 0.1, (0.9, 0.999), 0.0)
    weight.grad, bias.grad = torch.tensor([7.0, -7.0]), torch.tensor([-9.0])
    optimizer.step()
    # Adam's first update is the sign of the gradient, (1, -1); with decay it is (1, -1) + 0.5 (3, 4) = (2.5, 1); the
    # weight is 5 long, so that the ratio is 5 / sqrt(2.5² + 1²)
    ratio = 5 / math.sqrt(7.25)
    assert weight.tolist() == pytest.approx([3 - 0.1 * ratio * 2.5, 4 - 0.1 * ratio * 1], abs=1e-6)
    assert bias.tolist() == pytest.approx([2 + 0.1])  # without decay there is no ratio


def test_lambs_second_step_and_no_clipping_of_its_own():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    optimizer = make_optimizer("lamb", [{"params": [weight], "weight_decay": 0.5}], 0.1, (0.9, 0.999), 1e-6)
    expected, mean, square = torch.tensor([3.0, 4.0]).double(), torch.zeros(2).double(), torch.zeros(2).double()
    for step, gradient in enumerate(([20.0, -3.0], [1.0, 5.0]), start=1):
        weight.grad = torch.tensor(gradient)
        optimizer.step()
        value = torch.tensor(gradient).double()
        mean, square = 0.9 * mean + 0.1 * value, 0.999 * square + 0.001 * value**2
        update = mean / (1 - 0.9**step) / ((square / (1 - 0.999**step)).sqrt() + 1e-6) + 0.5 * expected
        expected = expected - 0.1 * expected.norm() / update.norm() * update
        assert weight.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
