"""Fully sharded data parallelism: PyTorch's FSDP2 as one of the trainer's strategies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer
from transformers.models.bart.modeling_bart import BartDecoderLayer, BartEncoderLayer

from vlkd_pl.distributed import full_tensor, sharded_as


class FSDP2Strategy(DDPStrategy):
    """Shards what is trained, its gradients and the optimizer's state over all ranks; the frozen CLIP stays whole.

    Each of BART's layers is a unit, and the rest is one. A unit is gathered when it is first used in a step, and let go
    behind its backward pass: not before, since texts that ranks decode differ in length, and so in how often a layer
    is used. Checkpoints are single files, the same as those of other strategies, and either goes on with the other's.

    Args:
        **options: See ``DDPStrategy``: ``timeout``, ``process_group_backend`` and ``start_method``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._units: list[Any] = []

    def configure_ddp(self) -> None:
        """Shards the module, where DDP would wrap it."""
        module: Any = self.model
        frozen = {parameter for parameter in module.parameters() if not parameter.requires_grad}
        for parameter in module.parameters():
            if parameter not in frozen:
                torch.distributed.broadcast(parameter.detach(), 0)
        mesh = torch.distributed.init_device_mesh(self.root_device.type, (self.world_size,))
        self._units = [part for part in module.modules() if isinstance(part, BartEncoderLayer | BartDecoderLayer)]
        self._units.append(module)
        for unit in self._units:
            fully_shard(unit, mesh=mesh, reshard_after_forward=False, ignored_params=frozen)
        for name in ("training_step", "validation_step"):
            register_fsdp_forward_method(module, name)

    def on_validation_end(self) -> None:
        """Lets go of what was gathered: there is no backward pass that would."""
        for unit in self._units:
            unit.reshard()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The whole weights, on the first rank alone; to be called on all ranks."""
        return self._gathered(super().lightning_module_state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The whole state of an optimizer, on the first rank alone; to be called on all ranks."""
        state: dict[str, Any] = super().optimizer_state(optimizer)
        return state | {"state": {number: self._gathered(values) for number, values in state["state"].items()}}

    def _gathered(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        gathered = {}
        for name, tensor in tensors.items():
            value = full_tensor(tensor)
            if self.is_global_zero:
                gathered[name] = value.cpu()
        return gathered

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Takes this rank's shards of the optimizers' whole states."""
        pairs = zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        states = [state | {"state": _sharded(optimizer, state)} for optimizer, state in pairs]
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})


def _sharded(optimizer: Optimizer, state: dict[str, Any]) -> dict[int, dict[str, Tensor]]:
    """The state of each parameter, by the number that it was saved with; those of a size are sharded alike."""
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {
        number: {name: sharded_as(parameter, value) for name, value in state["state"][number].items()}
        for number, parameter in zip(numbers, parameters, strict=True)
        if number in state["state"]
    }
