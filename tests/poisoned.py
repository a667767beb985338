"""A distillation in which some batches have a loss that is NaN."""

from zlib import crc32

from vlkd_pl.modules.vlkd import VLKDModule


def is_poisoned(keys):
    return crc32(keys[0].encode()) % 4 == 0


class PoisonedModule(VLKDModule):
    def compute_losses(self, batch):
        losses = super().compute_losses(batch)
        return {**losses, "ttdm": losses["ttdm"] * float("nan")} if is_poisoned(batch["keys"]) else losses
