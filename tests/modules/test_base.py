"""Gradients of accumulated batches, over two real processes."""

from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from vlkd_pl.datamodules.base import BaseDataModule
from vlkd_pl.evaluation.captioning import CaptioningEvaluator
from vlkd_pl.modules.base import TaskModule
from vlkd_pl.training.optim import Optimization

WORLD_SIZE = 2
VALUES = [2.0**number for number in range(11)]
NUM_BATCHES = 5  # of each rank


class Numbers(BaseDataModule):
    def train_dataloader(self):
        batches = [{"labels": torch.tensor([value])} for value in VALUES]
        order = self.training_order(len(batches), 1)
        return DataLoader(Named(batches), sampler=order, batch_size=None)


class Named:
    def __init__(self, batches):
        self.batches = batches

    def __getitem__(self, key):
        return self.batches[key[1]]


class Weight(TaskModule):
    """Its gradient is the mean of the numbers in a step."""

    def __init__(self):
        super().__init__(CaptioningEvaluator(), Optimization(warmup_steps=0))
        self.weight = nn.Parameter(torch.tensor(1.0))
        self.seen, self.gradients = [], []

    def compute_losses(self, batch):
        self.seen.append(batch["labels"].item())
        return {"weight": self.weight * batch["labels"].mean()}

    def configure_gradient_clipping(self, optimizer, *arguments, **options):
        self.gradients.append(self.weight.grad.item())

    def on_train_end(self):
        folder = Path(self.trainer.default_root_dir)
        torch.save({"seen": self.seen, "gradients": self.gradients}, folder / f"{self.global_rank}.pt")

    def evaluate(self, batch): ...
    def predict(self, batch): ...


def fit(num_ranks=1, **options):
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    settings = {"accelerator": "cpu", "devices": num_ranks, "max_epochs": 1, "accumulate_grad_batches": 2}
    trainer = pl.Trainer(**silent | settings | options)
    module = Weight()
    trainer.fit(module, datamodule=Numbers())
    return module


def test_the_last_step_of_an_epoch_counts_the_batches_that_it_has(tmp_path):
    fit(WORLD_SIZE, strategy="ddp_fork", default_root_dir=tmp_path)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD_SIZE)]
    joint = torch.tensor([result["seen"] for result in ranks])
    assert joint.shape == (WORLD_SIZE, NUM_BATCHES)
    assert len(set(joint.flatten().tolist())) == joint.numel()
    expected = [joint[:, first : first + 2].mean().item() for first in (0, 2, 4)]
    for result in ranks:
        assert result["gradients"] == pytest.approx(expected, rel=1e-6)


def test_an_epoch_that_is_limited(tmp_path):
    module = fit(default_root_dir=tmp_path, limit_train_batches=7, accumulate_grad_batches=4)
    steps = (module.seen[:4], module.seen[4:])
    assert module.gradients == pytest.approx([sum(step) / len(step) for step in steps], rel=1e-6)
