"""A module whose temperature is pushed to its bound and back."""

from vlkd_pl.modules.vlkd import VLKDModule

NUM_UP = 4


class PushedTemperature(VLKDModule):
    """Module whose gradient pushes ln(1/τ) up in the first steps and then down, for any batch."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.seen = []

    def compute_losses(self, batch):
        self.seen.append(self.logit_scale.item())
        unused = sum(super().compute_losses(batch).values()) * 0
        return {"push": (-1 if len(self.seen) <= NUM_UP else 1) * self.logit_scale.sum() + unused}
