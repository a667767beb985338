"""Distillations in which some batches have a loss, or a gradient, that is not finite."""

from zlib import crc32

from vlkd_pl.modules.vlkd import VLKDModule


def is_poisoned(keys):
    return crc32(keys[0].encode()) % 4 == 0


class PoisonedModule(VLKDModule):
    """A loss that is NaN, and with it the gradient."""

    def compute_losses(self, batch):
        losses = super().compute_losses(batch)
        return {**losses, "ttdm": self.poisoned(losses["ttdm"])} if is_poisoned(batch["keys"]) else losses

    def poisoned(self, loss):
        return loss * float("nan")


class PoisonedGradientModule(PoisonedModule):
    """A finite loss whose gradient is NaN, as that of a square root at 0."""

    def poisoned(self, loss):
        return loss + (self.logit_scale - self.logit_scale.detach()).square().sum().sqrt()


class OverflowingNormModule(PoisonedModule):
    """A finite loss with a finite gradient, the square of whose norm is infinite."""

    def poisoned(self, loss):
        return loss + 1e25 * (self.logit_scale - self.logit_scale.detach()).sum()
