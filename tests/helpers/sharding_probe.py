"""A callback that records how much of the model each rank holds."""

import json
from pathlib import Path

import pytorch_lightning as pl


class Probe(pl.Callback):
    """Write the number of elements of weights, gradients and moments of a rank to ``folder/RANK.json``."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        parameters = list(module.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        held = {
            "all": sum(parameter.numel() for parameter in trained),
            "trained": sum(size(parameter) for parameter in trained),
            "gradients": sum(size(parameter.grad) for parameter in trained),
            "moments": sum(size(state["exp_avg"]) for state in optimizer.state.values()),
            "frozen": sum(size(parameter) for parameter in parameters if not parameter.requires_grad),
            "all_frozen": sum(parameter.numel() for parameter in parameters if not parameter.requires_grad),
        }
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(held))


def size(tensor):
    """The elements of a tensor that this rank holds."""
    return (tensor.to_local() if hasattr(tensor, "to_local") else tensor).numel()
