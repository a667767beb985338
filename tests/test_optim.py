"""Parameter groups and the schedule against their closed forms."""

import pytest
import torch
from torch import nn

from vlkd_pl.optim import linear_warmup_and_decay, parameter_groups


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


def test_projections_have_their_own_rate():
    found = rates(Model(), projection_learning_rate=0.5)
    assert found.pop("text_projection.weight") == (0.5, 0.01)
    assert {rate for rate, _ in found.values()} == {0.1}


@pytest.mark.parametrize(("warmup", "total"), [(4, 10), (0, 5), (3, 3)])
def test_schedule(warmup, total):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = linear_warmup_and_decay(optimizer, warmup, total)
    for step in range(total + 3):
        expected = (step + 1) / warmup if step < warmup else max(0, total - step) / max(1, total - warmup)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(2.0 * expected)
        optimizer.step()
        schedule.step()
