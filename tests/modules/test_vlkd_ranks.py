"""Two real processes against one on the joint batches, with accumulation."""

import pytest
import torch
import torch.distributed
from ranks import run_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vlkd_pl.modules.vlkd import Execution, VLKDModule

WORLD_SIZE = 2
NUM_ACCUMULATED = 2


class Losses(nn.Module):
    """The sum of the losses as a forward pass, which is what DDP wraps; without dropout."""

    def __init__(self, clip, bart, options=None):
        super().__init__()
        torch.manual_seed(0)
        self.module = VLKDModule(clip, bart, "all", **(options or {})).eval()

    def forward(self, batch):
        losses = self.module.compute_losses(batch)
        return torch.stack([self.module.loss_weights[name] * loss for name, loss in losses.items()]).sum(), losses


def batches(num_pairs=6):
    """Batches with texts of other lengths in each pair, so that ranks pad to other lengths."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(NUM_ACCUMULATED):
        lengths = torch.randint(3, 9, (num_pairs,), generator=generator)
        mask = torch.arange(8) < lengths[:, None]
        ids = torch.randint(5, 200, mask.shape, generator=generator).masked_fill(~mask, 1)
        clip_text_ids = torch.randint(5, 200, mask.shape, generator=generator).masked_fill(~mask, 0)
        clip_text_ids[range(num_pairs), lengths - 1] = 654
        yield {
            "image": torch.randn(num_pairs, 3, 64, 64, generator=generator),
            "clip_text_ids": clip_text_ids,
            "bart_text_ids": ids,
            "bart_text_mask": mask.long(),
            "corrupted_ids": ids.flip(0),
            "corrupted_mask": mask.long().flip(0),
            "labels": ids.masked_fill(~mask, -100),
        }


def cut(batch):
    """Without the columns that are padding alone, as the collator makes batches."""
    longest = {
        name: int(batch[mask].sum(1).max())
        for name, mask in (("bart", "bart_text_mask"), ("corrupted", "corrupted_mask"))
    }
    columns = {"labels": longest["bart"], "clip_text_ids": longest["bart"]}
    columns |= {f"{name}_mask" if name == "corrupted" else "bart_text_mask": size for name, size in longest.items()}
    columns |= {"bart_text_ids": longest["bart"], "corrupted_ids": longest["corrupted"]}
    return {name: value[:, : columns[name]] if name in columns else value for name, value in batch.items()}


def gradients(module):
    return {name: value.grad.clone() for name, value in module.named_parameters() if value.grad is not None}


def on_rank(rank, clip, bart, folder, options):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=WORLD_SIZE)
    parallel = DistributedDataParallel(Losses(clip, bart, options))
    results = []
    for number, batch in enumerate(batches()):
        part = cut({name: value.chunk(WORLD_SIZE)[rank] for name, value in batch.items()})
        parallel.require_backward_grad_sync = number == NUM_ACCUMULATED - 1  # as Lightning accumulates
        total, losses = parallel(part)
        (total / NUM_ACCUMULATED).backward()
        results.append({name: loss.detach() for name, loss in losses.items()})
    torch.save({"losses": results, "gradients": gradients(parallel.module)}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    "options",
    [{}, {"execution": Execution(num_length_groups=2, vocabulary_chunk_size=5)}, {"icti_reduction": "mean"}],
)
def test_two_ranks_have_the_losses_and_gradients_of_the_joint_batches(world, tmp_path, options):
    run_ranks(on_rank, world.clip, world.bart, str(tmp_path), options, num=WORLD_SIZE)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD_SIZE)]
    module = Losses(world.clip, world.bart, {key: value for key, value in options.items() if key == "icti_reduction"})
    for number, batch in enumerate(batches()):
        total, losses = module(batch)
        (total / NUM_ACCUMULATED).backward()
        for name, loss in losses.items():
            mean = sum(result["losses"][number][name] for result in ranks) / WORLD_SIZE
            assert mean.item() == pytest.approx(loss.item(), rel=1e-5), name
    for result in ranks:
        atol = 5e-5 if "execution" in options else 1e-6  # groups sum in another order, also what all but cancels out
        torch.testing.assert_close(result["gradients"], gradients(module), rtol=1e-4, atol=atol)
        for name, expected in gradients(module).items():
            assert (result["gradients"][name] - expected).norm() <= 1e-4 * expected.norm() + 1e-5, name
