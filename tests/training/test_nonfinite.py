"""Steps whose loss or gradient is not finite: skipped, counted, and no more than a limit of them."""

import csv
import re

import pytest
import torch
from distilling import arguments, begin_ranks, joined
from poisoned import is_poisoned

from vlkd_pl.cli import main
from vlkd_pl.commands.train import run

NUM_STEPS = 6
KINDS = ["PoisonedModule", "PoisonedGradientModule", "OverflowingNormModule"]


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


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return f"poisoned.{request.param}"


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory, kind):
    folder = tmp_path_factory.mktemp("poisoned")
    run(poisoned(world, folder, model=kind))
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


def test_the_count_continues_when_resumed(world, trained, tmp_path, kind):
    start = trained / "checkpoints" / "epoch=0-step=3.ckpt"
    run(poisoned(world, tmp_path, model=kind, ckpt_path=start))
    assert skipped(tmp_path) == skipped(trained)[3:]
    torch.testing.assert_close(
        checkpoint(tmp_path, NUM_STEPS)["state_dict"], checkpoint(trained, NUM_STEPS)["state_dict"], rtol=0, atol=0
    )


def test_one_more_than_the_limit_stops_in_one_line(world, tmp_path, capsys, kind):
    options = {"model": kind, "model.init_args.optimization.max_skipped_steps": 0}
    assert main(poisoned(world, tmp_path, **options)) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    what = "loss" if kind.endswith("PoisonedModule") else "gradient"
    expected = rf"NaN or infinite in 1 optimizer steps.*max_skipped_steps.*the {what} of step \d+, samples 0/\d+, "
    assert re.search(expected, line)


def test_ranks_agree(world, tmp_path, kind):
    """Where the batch of one rank alone is bad both skip the step, or else one would wait without end."""
    options = {"trainer.max_steps": 4, "model": kind}
    assert joined(begin_ranks(poisoned(world, tmp_path, **options))) == [0, 0]
    ended = checkpoint(tmp_path, 4)
    assert 0 < ended["skipped_steps"]["count"] < 4
    assert all(value.isfinite().all() for value in ended["state_dict"].values())


def test_shards_agree(world, tmp_path):
    """The norm of a sharded gradient is that of all shards: here one rank alone holds the temperature."""
    options = {"trainer.max_steps": 4, "model": "poisoned.PoisonedGradientModule"}
    assert joined(begin_ranks(poisoned(world, tmp_path, **options), "fsdp")) == [0, 0]
    ended = checkpoint(tmp_path, 4)
    assert 0 < ended["skipped_steps"]["count"] < 4
    assert all(value.isfinite().all() for value in ended["state_dict"].values())


@pytest.mark.parametrize("clipping", [{"gradient_clip_val": "null"}, {"gradient_clip_algorithm": "value"}])
def test_any_clipping_and_lamb(world, tmp_path, clipping):
    """LAMB counts its steps in its parameter groups."""
    options = {"model": "poisoned.PoisonedGradientModule", "model.init_args.optimization.optimizer": "lamb"}
    run(poisoned(world, tmp_path, **options, **{f"trainer.{name}": value for name, value in clipping.items()}))
    counts = [0.0, *skipped(tmp_path)]
    assert 0 < counts[-1] < NUM_STEPS
    for step in range(1, NUM_STEPS + 1):
        ended = checkpoint(tmp_path, step)
        assert all(value.isfinite().all() for value in ended["state_dict"].values())
        assert {int(group["step"]) for group in ended["optimizer_states"][0]["param_groups"]} == {step - counts[step]}


def test_a_step_of_several_batches_counts_once(world, tmp_path):
    options = {"model": "poisoned.PoisonedGradientModule", "trainer.accumulate_grad_batches": 3}
    with pytest.warns(UserWarning, match="gradient is NaN or infinite: the optimizer step is skipped") as warned:
        run(poisoned(world, tmp_path, **options))
    named = [re.search(r"samples (.*)\)", str(item.message)) for item in warned]
    keys = [match.group(1).split(", ") for match in named if match]
    assert checkpoint(tmp_path, NUM_STEPS)["skipped_steps"]["count"] == len(keys) > 0
    for batches in keys:  # all that may be the cause
        assert len(batches) == 3 * 6
        assert any(is_poisoned(batches[first : first + 6]) for first in (0, 6, 12))
