"""Fully sharded data parallelism: PyTorch's FSDP2 as one of the trainer's strategies."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer
from transformers.models.bart.modeling_bart import BartDecoderLayer, BartEncoderLayer

from vlkd_pl.distributed import full_tensor, sharded_as


class FSDP2Strategy(DDPStrategy):
    """Strategy that shards trained weights, gradients and optimizer states over all ranks, but not the frozen CLIP.

    Each of BART's layers is a unit, and the remaining weights are another. A unit is gathered when it is first used in
    a step and resharded after its backward pass; not earlier, since ranks decode texts of different lengths and use a
    layer different numbers of times. Checkpoints are single files, which other strategies can resume from and write.

    Args:
        timeout: Longest that a rank waits for the others in a collective operation.
        process_group_backend: ``nccl`` or ``gloo``; by default the one for the device.
        start_method: How Lightning starts the ranks of a machine where no launcher has; see ``DDPStrategy``.

    Example:
        >>> strategy = FSDP2Strategy()  # for Trainer(strategy=strategy, devices=8)
    """

    def __init__(
        self,
        timeout: timedelta = timedelta(minutes=30),
        process_group_backend: str | None = None,
        start_method: Literal["popen", "spawn", "fork", "forkserver"] = "popen",
    ) -> None:
        super().__init__(timeout=timeout, process_group_backend=process_group_backend, start_method=start_method)
        self._units: list[Any] = []

    def configure_ddp(self) -> None:
        """Shard the module, instead of wrapping it as DDP does.

        Raises:
            MisconfigurationException: The ranks' backend sums gradients where FSDP2 asks for their mean.
        """
        self._check_mean()
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

    def _check_mean(self) -> None:
        ones = torch.ones(self.world_size, device=self.root_device)
        mean = torch.empty(1, device=self.root_device)
        torch.distributed.reduce_scatter_tensor(mean, ones, op=torch.distributed.ReduceOp.AVG)
        if mean.item() != 1:  # gloo of PyTorch 2.7
            raise MisconfigurationException(
                f"trainer.strategy: FSDP2 needs the mean over ranks, but {torch.distributed.get_backend()} of PyTorch "
                f"{torch.__version__} computes {mean.item():g} times the mean: use a newer PyTorch or overlays/ddp.yaml"
            )

    def on_validation_end(self) -> None:
        """Reshard the gathered weights, since evaluation has no backward pass that would."""
        for unit in self._units:
            unit.reshard()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Gather the full weights on rank 0; a collective operation."""
        return self._gathered(super().lightning_module_state_dict())

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Gather the full state of an optimizer on rank 0; a collective operation."""
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
        """Load this rank's shards of the optimizers' full states."""
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
