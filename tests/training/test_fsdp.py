"""Two ranks over gloo that share the weights: their run is that of two ranks that each have them all."""

import json
import shutil

import pytest
import torch
from distilling import arguments, begin_ranks, joined
from evaluations import captioning_arguments, column
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from ranks import run_ranks

from vlkd_pl.cli import main
from vlkd_pl.training.fsdp import FSDP2Strategy

NUM_STEPS = 4


def write_mean(rank, folder):
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    mean = torch.empty(1)
    torch.distributed.reduce_scatter_tensor(mean, torch.ones(2), op=torch.distributed.ReduceOp.AVG)
    torch.save(mean, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", autouse=True)
def _gloo_averages(tmp_path_factory):
    """The gloo of PyTorch 2.7 sums in place of averaging, and the strategy refuses it."""
    folder = tmp_path_factory.mktemp("mean")
    run_ranks(write_mean, str(folder))
    if torch.load(folder / "0.pt", weights_only=True) != 1:
        pytest.skip("gloo of this PyTorch sums gradients where FSDP2 averages them")


def trained(world, folder, overlay, num_steps=NUM_STEPS, **options):
    """A run with accumulated steps, and with a validation in the middle of one; returns its last checkpoint."""
    callbacks = [
        {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(folder), "every_n_train_steps": num_steps}},
        {
            "class_path": "ModelCheckpoint",
            "init_args": {"dirpath": str(folder), "monitor": "val/cider", "mode": "max", "filename": "best"},
        },
        {"class_path": "vlkd_pl.ExportModel"},
        {"class_path": "sharding_probe.Probe", "init_args": {"folder": str(folder)}},
    ]
    settings = {
        "trainer.max_steps": num_steps,
        "trainer.accumulate_grad_batches": 2,
        "trainer.val_check_interval": 5,
        "trainer.callbacks": json.dumps(callbacks),
        "data.init_args.evaluation.num_samples": 4,
    }
    assert joined(begin_ranks(arguments(world, folder, **(settings | options)), overlay)) == [0, 0]
    return torch.load(folder / f"epoch=0-step={num_steps}.ckpt", weights_only=True)


@pytest.fixture(scope="module")
def sharded(world, tmp_path_factory):
    """The folder and the last checkpoint of a run by FSDP."""
    folder = tmp_path_factory.mktemp("fsdp")
    return folder, trained(world, folder, "fsdp")


@pytest.fixture(scope="module")
def replicated(world, tmp_path_factory):
    """The folder and the last checkpoint of a run by DDP."""
    folder = tmp_path_factory.mktemp("ddp")
    return folder, trained(world, folder, "ddp")


def assert_same(actual, expected):
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "CC3MDataModule"):
        torch.testing.assert_close(actual[part], expected[part], rtol=0, atol=0)
    for state, same in zip(actual["random_states"], expected["random_states"], strict=True):
        assert torch.equal(state["cpu"], same["cpu"])
        assert (state["python"], state["numpy"]) == (same["python"], same["numpy"])


def assert_close(actual, expected):
    """But for the biases of keys: attention does not depend on them, and Adam makes steps of mere rounding."""
    names = [name for name in expected["state_dict"] if not name.endswith("k_proj.bias")]
    torch.testing.assert_close(
        {name: actual["state_dict"][name] for name in names},
        {name: expected["state_dict"][name] for name in names},
        rtol=1e-4,
        atol=2e-6,
    )


def test_the_run_is_that_of_ddp(sharded, replicated):
    assert_close(sharded[1], replicated[1])
    assert (sharded[0] / "model" / "model.safetensors").is_file()


def test_each_rank_holds_its_share(sharded):
    ranks = [json.loads((sharded[0] / f"{rank}.json").read_text()) for rank in range(2)]
    for part in ("trained", "gradients", "moments"):
        assert sum(held[part] for held in ranks) == ranks[0]["all"]
        assert all(held[part] < 0.51 * held["all"] for held in ranks)
    assert all(held["frozen"] == held["all_frozen"] for held in ranks)


@pytest.mark.parametrize("name", ["epoch=0-step=2", "best"])
def test_a_cut_run_resumes_as_the_uncut_one(world, tmp_path, sharded, name):
    """``best`` is written by the validation behind the fifth batch, in the middle of the third step."""
    cut = trained(world, tmp_path, "fsdp", 2) if name != "best" else torch.load(sharded[0] / "best.ckpt")
    assert bool(cut.get("pending_gradients")) == (name == "best")
    folder = sharded[0] if name == "best" else tmp_path
    assert_same(trained(world, tmp_path, "fsdp", ckpt_path=folder / f"{name}.ckpt"), sharded[1])


@pytest.mark.parametrize("overlay", ["ddp", "fsdp"])
def test_either_resumes_with_a_checkpoint_of_the_other(world, tmp_path, sharded, replicated, overlay):
    other = replicated if overlay == "fsdp" else sharded
    assert_close(trained(world, tmp_path, overlay, ckpt_path=other[0] / "best.ckpt"), other[1])


def test_ranks_may_decode_texts_of_different_lengths(world, model_folder, tmp_path):
    """SCST samples captions in its training step, and validation decodes them: with other lengths on each rank."""
    options = {"data__init_args__train_batch_size": 2}
    scst = captioning_arguments("scst_coco", world, model_folder, tmp_path, **options)
    assert joined(begin_ranks(scst, "fsdp")) == [0, 0]
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert column(tmp_path, "val/cider")


def test_half_precision_with_gradient_scaling(world, tmp_path, sharded):
    # at the default scale of 65,536 the gradients of losses summed over tokens overflow, and steps are skipped
    scaler = {"class_path": "torch.amp.GradScaler", "init_args": {"device": "cpu", "init_scale": 256.0}}
    half = {
        "class_path": "MixedPrecision",
        "init_args": {"precision": "16-mixed", "device": "cpu", "scaler": scaler},
    }
    ended = trained(world, tmp_path, "fsdp", **{"trainer.plugins": json.dumps([half]), "trainer.precision": "null"})
    assert ended["MixedPrecision"]["scale"] > 1
    assert column(tmp_path, "train/loss") == pytest.approx(column(sharded[0], "train/loss"), rel=2e-3)
    assert column(tmp_path, "train/grad_norm") == pytest.approx(column(sharded[0], "train/grad_norm"), rel=2e-2)


def test_lightnings_own_sharding_is_refused(world, tmp_path, capsys):
    strategy = json.dumps({"class_path": "pytorch_lightning.strategies.ModelParallelStrategy"})
    assert main(arguments(world, tmp_path, **{"trainer.strategy": strategy})) == 1
    assert "give --config overlays/fsdp.yaml" in capsys.readouterr().err


def test_with_length_groups_and_a_vocabulary_in_chunks(world, tmp_path):
    """Without dropout and noise, which are drawn group by group."""
    shutil.copytree(world.bart, tmp_path / "bart")
    config = json.loads((tmp_path / "bart" / "config.json").read_text())
    config |= dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
    (tmp_path / "bart" / "config.json").write_text(json.dumps(config))
    settings = {"model.init_args.bart": str(tmp_path / "bart"), "model.init_args.text_as_image_noise": 0.0}
    options = {"model.init_args.execution.num_length_groups": 3, "model.init_args.execution.vocabulary_chunk_size": 7}
    trained(world, tmp_path / "whole", "fsdp", **settings)
    trained(world, tmp_path / "groups", "fsdp", **(settings | options))
    for name in ("train/loss", "train/grad_norm"):
        assert column(tmp_path / "groups", name) == pytest.approx(column(tmp_path / "whole", name), rel=0.002)


def test_a_backend_that_sums_is_refused(monkeypatch):
    strategy = FSDP2Strategy()
    strategy.parallel_devices = [torch.device("cpu")]
    monkeypatch.setattr(torch.distributed, "reduce_scatter_tensor", lambda output, *_, **__: output.fill_(2.0))
    monkeypatch.setattr(torch.distributed, "get_backend", lambda: "gloo")
    with pytest.raises(MisconfigurationException, match=r"gloo of PyTorch .* computes 2 times the mean: use a newer"):
        strategy.configure_ddp()
