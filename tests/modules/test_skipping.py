"""Steps whose loss is not finite: left out, counted, and no more than a limit of them."""

import csv
import re

import pytest
import torch
from distilling import arguments, start_ranks

from vlkd_pl.cli import main
from vlkd_pl.commands.train import run

NUM_STEPS = 6


def poisoned(world, folder, **options):
    settings = {"model": "poisoned.PoisonedModule", "trainer.max_steps": NUM_STEPS, "trainer.limit_val_batches": 0}
    callback = '[{"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 1, "save_top_k": -1}}]'
    return arguments(world, folder, **{"trainer.callbacks": callback} | settings | options)


def skipped(folder):
    """The logged count after each step."""
    with (folder / "metrics.csv").open() as file:
        return [float(row["train/skipped_steps"]) for row in csv.DictReader(file) if row["train/skipped_steps"]]


def checkpoint(folder, step):
    return torch.load(folder / "checkpoints" / f"epoch=0-step={step}.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("poisoned")
    run(poisoned(world, folder))
    return folder


def test_a_skipped_step_leaves_weights_and_optimizer_untouched(trained):
    counts = [0.0, *skipped(trained)]
    steps = [step for step in range(2, NUM_STEPS + 1) if counts[step] > counts[step - 1]]
    assert steps
    assert len(steps) < NUM_STEPS - 1
    for step in range(2, NUM_STEPS + 1):
        before, after = checkpoint(trained, step - 1), checkpoint(trained, step)
        same = all(torch.equal(value, after["state_dict"][name]) for name, value in before["state_dict"].items())
        assert same == (step in steps)
        if same:
            states = [[state["state"] for state in part["optimizer_states"]] for part in (after, before)]
            torch.testing.assert_close(*states, rtol=0, atol=0)
        assert all(value.isfinite().all() for value in after["state_dict"].values())


def test_the_count_goes_on_when_resumed(world, trained, tmp_path):
    start = trained / "checkpoints" / "epoch=0-step=3.ckpt"
    run(poisoned(world, tmp_path, ckpt_path=start))
    assert skipped(tmp_path) == skipped(trained)[3:]
    torch.testing.assert_close(
        checkpoint(tmp_path, NUM_STEPS)["state_dict"], checkpoint(trained, NUM_STEPS)["state_dict"], rtol=0, atol=0
    )


def test_one_more_than_the_limit_stops_in_one_line(world, tmp_path, capsys):
    assert main(poisoned(world, tmp_path, **{"model.init_args.max_skipped_steps": 0})) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(r"NaN or infinite in 1 optimizer steps.*max_skipped_steps.*step \d+, samples 0/\d+, ", line)


def test_ranks_agree(world, tmp_path):
    """Where the batch of one rank alone is bad both leave the step out, or else one would wait for ever."""
    options = {"trainer.devices": 2, "trainer.strategy": "ddp", "trainer.max_steps": 4}
    start_ranks(poisoned(world, tmp_path, **options))
    ended = checkpoint(tmp_path, 4)
    assert 0 < ended["skipped_steps"]["count"] < 4
    assert all(value.isfinite().all() for value in ended["state_dict"].values())
