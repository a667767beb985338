"""Training in float16 with gradient scaling, as on a V100, here on the CPU."""

import csv
import json
import math
import re

import pytest
import torch
from distilling import arguments

from vlkd_pl.cli import main
from vlkd_pl.commands.train import run

NUM_STEPS = 8


def scaled(world, folder, init_scale=2.0**24, **options):
    """A distillation with so large a scale at the start that gradients overflow."""
    scaler = {"init_scale": init_scale, "backoff_factor": 2.0**-5, "growth_interval": 2, "device": "cpu"}
    precision = {"precision": "16-mixed", "device": "cpu"}
    precision |= {"scaler": {"class_path": "torch.amp.GradScaler", "init_args": scaler}}
    plugin = {"class_path": "pytorch_lightning.plugins.MixedPrecision", "init_args": precision}
    settings = {
        "trainer.plugins": json.dumps([plugin]),
        "trainer.max_steps": NUM_STEPS,
        "trainer.limit_val_batches": 0,
        "trainer.accumulate_grad_batches": 2,
        "trainer.callbacks": json.dumps(
            [{"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 1, "save_top_k": -1}}]
        ),
    }
    return arguments(world, folder, **settings | options)


def checkpoint(folder, step):
    return torch.load(folder / "checkpoints" / f"epoch=0-step={step}.ckpt", weights_only=True)


def logged(folder, name):
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def scaler_states(folder):
    states = [checkpoint(folder, step)["MixedPrecision"] for step in range(1, NUM_STEPS + 1)]
    return [(state["scale"], state["_growth_tracker"]) for state in states]


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scaled")
    run(scaled(world, folder))
    return folder


def test_an_overflow_lowers_the_scale_and_is_not_counted(trained):
    scales = [2.0**24, *(scale for scale, _ in scaler_states(trained))]
    norms = logged(trained, "train/grad_norm")
    overflows = [step for step in range(1, NUM_STEPS + 1) if scales[step] < scales[step - 1]]
    assert overflows[0] == 1
    assert len(overflows) < NUM_STEPS // 2
    assert any(scales[step] > scales[step - 1] for step in range(1, NUM_STEPS + 1))
    for step in range(1, NUM_STEPS + 1):
        assert math.isfinite(norms[step - 1]) == (step not in overflows)
    for step in range(2, NUM_STEPS + 1):
        before, after = checkpoint(trained, step - 1)["state_dict"], checkpoint(trained, step)["state_dict"]
        assert all(torch.equal(before[name], after[name]) for name in before) == (step in overflows)
        assert all(value.isfinite().all() for value in after.values())
    assert checkpoint(trained, NUM_STEPS)["skipped_steps"]["count"] == 0
    counts = [float(sum(overflow <= step for overflow in overflows)) for step in range(1, NUM_STEPS + 1)]
    assert logged(trained, "train/overflowed_steps") == counts
    assert logged(trained, "train/gradient_scale") == scales[:-1]
    assert checkpoint(trained, NUM_STEPS)["skipped_steps"]["num_overflows"] == len(overflows)


@pytest.mark.parametrize("step", [1, 4])
def test_a_resumed_run_has_the_scale_and_is_the_uncut_one(world, trained, tmp_path, step):
    run(scaled(world, tmp_path, ckpt_path=trained / "checkpoints" / f"epoch=0-step={step}.ckpt"))
    resumed, uncut = checkpoint(tmp_path, NUM_STEPS), checkpoint(trained, NUM_STEPS)
    for part in (
        "MixedPrecision",
        "skipped_steps",
        "state_dict",
        "optimizer_states",
        "lr_schedulers",
        "CC3MDataModule",
    ):
        torch.testing.assert_close(resumed[part], uncut[part], rtol=0, atol=0)


def test_gradients_are_unscaled_before_they_are_clipped(world, tmp_path):
    norms = []
    for scale in (1.0, 2.0**6):
        run(scaled(world, tmp_path / str(scale), scale, trainer__max_steps=1))
        norms += logged(tmp_path / str(scale), "train/grad_norm")
    assert norms[0] == pytest.approx(norms[1], rel=0.02)
    assert norms[0] > 5.0  # what gradients are clipped to


def test_a_loss_that_is_nan_is_counted_and_leaves_the_scale(world, tmp_path):
    run(scaled(world, tmp_path, 2.0**6, model="poisoned.PoisonedModule", trainer__accumulate_grad_batches=1))
    counts, states = [0.0, *logged(tmp_path, "train/skipped_steps")], [(2.0**6, 0), *scaler_states(tmp_path)]
    skipped = [step for step in range(1, NUM_STEPS + 1) if counts[step] > counts[step - 1]]
    assert 0 < len(skipped) < NUM_STEPS
    for step in range(1, NUM_STEPS + 1):
        assert (states[step] == states[step - 1]) == (step in skipped)
    assert all(value.isfinite().all() for value in checkpoint(tmp_path, NUM_STEPS)["state_dict"].values())


def test_a_scale_that_keeps_falling_stops_in_one_line(world, tmp_path, capsys):
    """NaN is NaN at any scale; what the scaler skips does not count as steps that are skipped for good."""
    options = {"model": "poisoned.PoisonedGradientModule", "model.init_args.optimization.max_skipped_steps": 0}
    assert main(scaled(world, tmp_path, 2.0, **options, trainer__accumulate_grad_batches=1)) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(r"scale of float16's gradients fell to 0\.\d+ at step \d+: .* in 1 optimizer steps; lower", line)
