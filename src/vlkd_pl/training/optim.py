"""Parameter groups, optimizers and the learning-rate schedule of Tables 10 and 11 and of Appendix A."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vlkd_pl.errors import needs_extra

OptimizerName = Literal["adamw", "lamb"]


@dataclass(frozen=True)
class Optimization:
    """Settings of the optimizer and of the learning-rate schedule; the defaults are the distillation's (Table 10).

    Example:
        >>> Optimization(learning_rate=6e-5, warmup_epochs=1).weight_decay
        0.01
    """

    learning_rate: float = 5e-5
    """Peak learning rate."""
    projection_learning_rate: float | None = None
    """Peak learning rate of the projections W_e, W_i and W'_e; null for ``learning_rate``."""
    image_projection_learning_rate: float | None = None
    """Peak learning rate of W_i; null for that of the other projections. CLIP's embeddings have norm 1, so that the
    entries of W_i must be √d_1 times as large as those of other weights, and Adam's steps are equally large in all."""
    betas: tuple[float, float] = (0.99, 0.999)
    """Decay rates β₁ and β₂ of the optimizer's moments, each in [0, 1)."""
    eps: float = 1e-6
    """Small number ε in the optimizer's denominator."""
    weight_decay: float = 0.01
    """Weight decay of all weights but biases, norms and the temperature."""
    warmup_steps: int = 12_000
    """Optimizer steps of linear warm-up."""
    warmup_epochs: float | None = None
    """Epochs of linear warm-up; null for ``warmup_steps``."""
    total_steps: int | None = None
    """Optimizer steps after which the learning rate is 0; null for those of the trainer."""
    optimizer: OptimizerName = "adamw"
    """``adamw``, or ``lamb``, which needs the extra ``lamb``."""
    max_skipped_steps: int = 100
    """Most optimizer steps of a run that are skipped for a loss or gradient that is NaN or infinite; one more ends it.
    Steps that float16's gradient scaler skips do not count."""


TABLE_10 = Optimization()
"""The optimization of the distillation (Table 10)."""

_FUSED_DEVICES = ("cuda", "cpu")  # PyTorch raises an error for a fused optimizer on some of the others
_NORMS = (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)


def configure_optimizer(module: pl.LightningModule, optimization: Optimization) -> OptimizerLRScheduler:
    """Build the optimizer of a module, with linear warm-up and linear decay to 0 (Tables 10 and 11, Appendix A).

    Args:
        module: Module that is attached to a trainer.
        optimization: Settings of optimizer and schedule.

    Returns:
        What Lightning's ``configure_optimizers`` returns.
    """
    o, trainer = optimization, module.trainer
    rates = {"projection": o.projection_learning_rate, "image_projection": o.image_projection_learning_rate}
    groups = parameter_groups(module, o.weight_decay, o.learning_rate, rates)
    optimizer = make_optimizer(o.optimizer, groups, o.learning_rate, o.betas, o.eps)
    num_steps = int(trainer.estimated_stepping_batches)
    warmup_steps = o.warmup_steps
    if o.warmup_epochs is not None:
        warmup_steps = round(o.warmup_epochs * num_steps / (trainer.max_epochs or 1))
    schedule = linear_warmup_and_decay(optimizer, warmup_steps, o.total_steps or num_steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def parameter_groups(
    module: nn.Module, weight_decay: float, learning_rate: float, rates: Mapping[str, float | None] | None = None
) -> list[dict[str, Any]]:
    """Group the trainable parameters of a module for an optimizer.

    Args:
        module: Module whose parameters that require gradients are grouped, each once.
        weight_decay: Weight decay of all weights but biases, norms and the temperature ``logit_scale``.
        learning_rate: Learning rate of all parameters.
        rates: Learning rates of the parameters that have a word in their name, by the word. The last that fits and is
            not None counts.

    Returns:
        Groups of equal rate and decay, none empty.
    """
    norms = {id(value) for part in module.modules() if isinstance(part, _NORMS) for value in part.parameters(False)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        last = name.rsplit(".", 1)[-1]
        # the bias of nn.MultiheadAttention is called in_proj_bias
        undecayed = last.endswith("bias") or last == "logit_scale" or id(parameter) in norms
        fitting = [rate for word, rate in (rates or {}).items() if rate is not None and word in name]
        rate = fitting[-1] if fitting else learning_rate
        groups.setdefault((rate, 0.0 if undecayed else weight_decay), []).append(parameter)
    return [{"params": params, "lr": rate, "weight_decay": decay} for (rate, decay), params in groups.items()]


def make_optimizer(
    name: OptimizerName, groups: list[dict[str, Any]], learning_rate: float, betas: tuple[float, float], eps: float
) -> Optimizer:
    """Build AdamW, or LAMB (You et al., 2020).

    On GPUs and CPUs AdamW is PyTorch's fused one, which reads and writes memory once. It must not unscale the gradients
    under fp16, since the trainer does so to clip and log them.

    LAMB is timm's: an update is Adam's, with bias correction, plus weight decay, and is scaled by ‖weight‖ / ‖update‖.
    Parameters without weight decay, that is biases and norms, are not scaled, as in the authors' own training of BERT.

    Args:
        name: ``adamw`` or ``lamb``.
        groups: Parameter groups as ``parameter_groups`` returns them.
        learning_rate: Learning rate of groups without ``lr``.
        betas: Decay rates β₁ and β₂ of the moments, each in [0, 1).
        eps: Small number ε in the denominator.

    Raises:
        MissingPackageError: The optimizer is LAMB, and timm is not installed.
    """
    if name == "adamw":
        fused = all(parameter.device.type in _FUSED_DEVICES for group in groups for parameter in group["params"])
        adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps, fused=fused)
        adamw._step_supports_amp_scaling = False  # read by GradScaler and Lightning
        return adamw
    with needs_extra("lamb"):
        from timm.optim import Lamb  # brings all of timm, which takes seconds

    # the trainer clips gradients
    return Lamb(groups, lr=learning_rate, betas=betas, eps=eps, max_grad_norm=None)


def linear_warmup_and_decay(optimizer: Optimizer, warmup_steps: int, total_steps: int) -> LambdaLR:
    """Build the schedule of each optimizer step: a linear rise to the full rate, then a linear fall to 0 (Section 4.2).

    Unlike ``transformers.get_linear_schedule_with_warmup``, whose first step has the rate 0, the first step trains.

    Args:
        optimizer: Optimizer whose groups have the full rates.
        warmup_steps: Steps of the rise, of which the last has the full rate.
        total_steps: Steps after which the rate is 0.
    """

    def share(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return max(0.0, (total_steps - step) / max(1, total_steps - warmup_steps))

    return LambdaLR(optimizer, share)
