"""Parameter groups, optimizers and the learning-rate schedule of Tables 10 and 11 and of Appendix A."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vlkd_pl.errors import needs_extra

OptimizerName = Literal["adamw", "lamb"]

_NORMS = (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)


def parameter_groups(
    module: nn.Module, weight_decay: float, learning_rate: float, projection_learning_rate: float | None = None
) -> list[dict[str, Any]]:
    """Groups of trainable parameters for an optimizer.

    Args:
        module: Its parameters that require gradients are grouped, each once.
        weight_decay: Of every weight but biases, norms and the temperature ``logit_scale``.
        learning_rate: Of every parameter.
        projection_learning_rate: Of the parameters with ``projection`` in their name, instead.

    Returns:
        At most four groups, none empty.
    """
    norms = {id(value) for part in module.modules() if isinstance(part, _NORMS) for value in part.parameters(False)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        last = name.rsplit(".", 1)[-1]
        # the bias of nn.MultiheadAttention is called in_proj_bias
        undecayed = last.endswith("bias") or last == "logit_scale" or id(parameter) in norms
        rate = (
            projection_learning_rate if projection_learning_rate is not None and "projection" in name else learning_rate
        )
        groups.setdefault((rate, 0.0 if undecayed else weight_decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def make_optimizer(
    name: OptimizerName, groups: list[dict[str, Any]], learning_rate: float, betas: tuple[float, float], eps: float
) -> Optimizer:
    """AdamW, or LAMB (You et al., 2020).

    On GPUs AdamW is PyTorch's fused one, which goes through memory once. It is told not to unscale the gradients
    itself, as it can under fp16: the trainer does, since it clips and logs them.

    LAMB is timm's: an update is Adam's, with bias correction, plus weight decay, and is scaled by ‖weight‖ / ‖update‖.
    Parameters without weight decay, that is biases and norms, are not scaled, as in the authors' own training of BERT.

    Args:
        name: Which of the two.
        groups: See ``parameter_groups``.
        learning_rate: Of groups that have none of their own.
        betas: β_1 and β_2.
        eps: ε.

    Raises:
        MissingPackageError: LAMB is asked for without timm.
    """
    if name == "adamw":
        fused = all(parameter.is_cuda for group in groups for parameter in group["params"])
        adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=fused)
        adamw._step_supports_amp_scaling = False  # what GradScaler and Lightning ask
        return adamw
    with needs_extra("lamb"):
        from timm.optim import Lamb  # brings all of timm, which takes seconds

    # the trainer clips gradients
    return Lamb(groups, lr=learning_rate, betas=betas, eps=eps, max_grad_norm=None)


def linear_warmup_and_decay(optimizer: Optimizer, warmup_steps: int, total_steps: int) -> LambdaLR:
    """A schedule for every optimizer step: a linear rise to the full rate, then a linear fall to 0 (Section 4.2).

    Args:
        optimizer: Its groups' own rates are the full rates.
        warmup_steps: Steps of the rise; the last of them has the full rate.
        total_steps: Steps after which the rate is 0.
    """

    def share(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return LambdaLR(optimizer, share)
