"""VLKDModule through the command line: what it trains, logs, keeps and resumes."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
from distilling import arguments, begin_ranks, joined
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.nn.functional import cross_entropy

from vlkd_pl.cli import main
from vlkd_pl.commands.train import run
from vlkd_pl.losses import MAX_LOGIT_SCALE
from vlkd_pl.models.vlkd import VLKDModel
from vlkd_pl.modules.vlkd import VLKDModule
from vlkd_pl.training.checkpoint import CLIP_PREFIX


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def column(folder, name):
    return [float(row[name]) for row in rows(folder) if row.get(name)]


@pytest.fixture(scope="module")
def trained(world, tmp_path_factory):
    """A finished run: its folder, and the command line object."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, run(arguments(world, folder))


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_everything_is_logged(trained):
    folder, _ = trained
    for name in (
        "loss",
        "ttdm_loss",
        "itcl_loss",
        "icti_loss",
        "text_infilling_loss",
        "text_as_image_loss",
        "temperature",
        "learning_rate",
        "grad_norm",
    ):
        values = column(folder, f"train/{name}")
        assert len(values) == 4, name
        assert all(math.isfinite(value) for value in values)
    assert min(column(folder, "train/samples_per_second")) > 0
    assert column(folder, "train/temperature")[0] == pytest.approx(0.07, rel=1e-5)
    assert column(folder, "data/skipped_samples") == [0.0] * 4
    for name in ("ttdm_loss", "itcl_loss", "icti_loss", "cider", "cider_shuffled"):
        assert len(column(folder, f"val/{name}")) == 1
    for encoder in ("bart", "clip"):
        for direction in ("image_to_text", "text_to_image"):
            assert [0 <= column(folder, f"val/{encoder}_{direction}_r{k}")[0] <= 1 for k in (1, 5, 10)] == [True] * 3
    assert list(folder.glob("events.out.tfevents.*"))
    assert (folder / "panels" / "val_captions_000003.png").is_file()


def test_the_loss_is_the_weighted_sum(trained):
    folder, _ = trained
    total = column(folder, "train/loss")
    names = ("ttdm", "itcl", "icti", "text_infilling", "text_as_image")
    parts = [column(folder, f"train/{name}_loss") for name in names]
    for step, loss in enumerate(total):
        assert loss == pytest.approx(
            sum(weight * part[step] for weight, part in zip((1e3, 1, 1, 1, 1), parts, strict=True)), rel=1e-4
        )


def test_clip_is_bit_for_bit_the_same_and_the_rest_is_not(trained, world):
    module = trained[1].model
    fresh = VLKDModel.load(world.clip, world.bart, "patches")
    torch.testing.assert_close(dict(module.model.clip.state_dict()), dict(fresh.clip.state_dict()), rtol=0, atol=0)
    for name, value in fresh.bart.named_parameters():
        if "embed_positions" not in name and "k_proj.bias" not in name:
            assert not torch.equal(value, module.model.bart.get_parameter(name)), name
    # a run's start is random or in closed form, never what another module drew
    assert module.logit_scale.item() != pytest.approx(-math.log(0.07), abs=1e-7)


@pytest.mark.parametrize("temperature", [0.001, 0.01, 0.0101])
def test_the_temperature_returns_from_its_bound_and_never_passes_it(world, tmp_path, temperature):
    options = {"trainer__max_steps": 12, "trainer__limit_val_batches": 0, "trainer__callbacks": "[]"}
    options |= {"model": "pushed.PushedTemperature", "model__init_args__temperature": temperature}
    options |= {
        "model__init_args__optimization__betas": "[0.0, 0.9]",
        "model__init_args__optimization__total_steps": 100,
    }
    done = run(arguments(world, tmp_path, **options))
    bound = torch.tensor([MAX_LOGIT_SCALE]).item()
    assert max(done.model.seen) == bound
    assert done.model.seen[4] == bound
    assert done.model.logit_scale.item() < bound - 0.005
    assert min(column(tmp_path, "train/temperature")) == pytest.approx(0.01)


def test_a_checkpoint_above_the_bound_is_bounded(world, tmp_path):
    """Version 0.4.0 left the parameter above it."""
    options = {"trainer__limit_val_batches": 0, "model": "pushed.PushedTemperature"}
    run(arguments(world, tmp_path, trainer__max_steps=1, **options))
    path = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"]["logit_scale"].fill_(6.0)
    torch.save(checkpoint, path)
    done = run(arguments(world, tmp_path / "resumed", trainer__max_steps=3, ckpt_path=path, **options))
    assert max(done.model.seen) <= torch.tensor([MAX_LOGIT_SCALE]).item()


def test_shards_of_the_temperature_are_bounded(world, tmp_path):
    options = {"trainer__limit_val_batches": 0, "model": "pushed.PushedTemperature"}
    options |= {"model__init_args__temperature": 0.001}
    assert joined(begin_ranks(arguments(world, tmp_path, trainer__max_steps=2, **options), "fsdp")) == [0, 0]
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]["logit_scale"].tolist() == [torch.tensor(MAX_LOGIT_SCALE).item()]


def test_dropout_is_on_in_bart_alone(world):
    module = VLKDModule(world.clip, world.bart, "patches")
    module.train()
    assert module.model.bart.model.encoder.training
    assert not any(part.training for part in module.model.clip.modules())


def test_checkpoints_hold_no_clip(trained):
    checkpoint = torch.load(trained[0] / "checkpoints" / "last.ckpt", weights_only=True)
    assert not [name for name in checkpoint["state_dict"] if name.startswith(CLIP_PREFIX)]
    assert [name for name in checkpoint["state_dict"] if name.startswith("model.bart.")]


def test_the_exported_folder_is_the_trained_model(trained):
    folder, command_line = trained
    loaded = VLKDModel.from_pretrained(folder / "model")
    torch.testing.assert_close(dict(loaded.state_dict()), dict(command_line.model.model.state_dict()), rtol=0, atol=0)


def test_the_same_seed_gives_the_same_losses(trained, world, tmp_path):
    assert main(arguments(world, tmp_path)) == 0
    assert column(tmp_path, "train/loss") == column(trained[0], "train/loss")
    run(arguments(world, tmp_path / "other", seed_everything=1))
    assert column(tmp_path / "other", "train/loss") != column(trained[0], "train/loss")


@pytest.mark.parametrize(("cut", "num_workers"), [(1, 0), (3, 0), (4, 2)])
def test_a_cut_and_resumed_run_ends_as_the_uncut_one(world, tmp_path, cut, num_workers):
    """Before and after a validation, with dropout, corruption, two batches to a step, and workers."""
    options = {"trainer__accumulate_grad_batches": 2, "data__init_args__num_workers": num_workers}
    uncut = run(arguments(world, tmp_path / "uncut", trainer__max_steps=6, **options))
    run(arguments(world, tmp_path / "cut", trainer__max_steps=cut, **options))
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    resumed = run(arguments(world, tmp_path / "resumed", trainer__max_steps=6, ckpt_path=last, **options))
    assert resumed.trainer.global_step == 6
    torch.testing.assert_close(weights(resumed.model), weights(uncut.model), rtol=0, atol=0)
    assert column(tmp_path / "resumed", "train/loss") == column(tmp_path / "uncut", "train/loss")[cut:]


def test_a_checkpoint_of_another_clip_is_refused(trained, world, tmp_path, capsys):
    import safetensors.torch
    from tiny_models import tiny_clip

    other = {
        name: value + 0.1 if name == "text_projection" else value for name, value in tiny_clip().state_dict().items()
    }
    safetensors.torch.save_file(other, tmp_path / "clip.safetensors")
    (tmp_path / "merges.txt.gz").write_bytes((Path(world.clip) / "merges.txt.gz").read_bytes())
    last = trained[0] / "checkpoints" / "last.ckpt"
    assert main(arguments(world, tmp_path / "run", ckpt_path=last, model__init_args__clip=tmp_path)) == 1
    assert "the checkpoint was trained with the CLIP" in capsys.readouterr().err
    with pytest.raises(MisconfigurationException, match="was trained with the CLIP"):
        VLKDModule(str(tmp_path), world.bart, "patches", init_from=str(last))


def test_test_writes_scores_and_predictions(trained, world, tmp_path):
    folder, command_line = trained
    tested = run(arguments(world, tmp_path, "test", model__init_args__init_from=folder / "model"))
    torch.testing.assert_close(weights(tested.model.model), weights(command_line.model.model), rtol=0, atol=0)
    record = json.loads((tmp_path / "scores.json").read_text())
    assert {"cider", "cider_shuffled", "bart_text_to_image_r1", "clip_text_to_image_r1"} <= set(record["scores"])
    assert Path(record["caption_panel"]).is_file()
    predictions = json.loads((tmp_path / "predictions.json").read_text())
    assert [prediction["image_id"] for prediction in predictions] == list(range(101, 107))


def test_starting_from_a_checkpoint_or_a_folder_is_the_same(trained, world):
    folder, command_line = trained
    for source in (folder / "model", folder / "checkpoints" / "last.ckpt"):
        module = VLKDModule(world.clip, world.bart, "all", init_from=str(source))
        torch.testing.assert_close(weights(module.model), weights(command_line.model.model), rtol=0, atol=0)
    with pytest.raises(MisconfigurationException, match="was trained with image_features all, not patches"):
        VLKDModule(world.clip, world.bart, "patches", init_from=str(folder / "model"))
    with pytest.raises(MisconfigurationException, match="was trained with prefix_length 1, not 2"):
        VLKDModule(init_from=str(folder / "model"), prefix_length=2)
    with pytest.raises(MisconfigurationException, match=r"model.prefix_length is 0: give a number from 1 to 256"):
        VLKDModule(world.clip, world.bart, prefix_length=0)
    module = VLKDModule(init_from=str(folder / "model"))
    assert module.model.image_features == "all"
    torch.testing.assert_close(weights(module.model), weights(command_line.model.model), rtol=0, atol=0)
    for options in ({}, {"clip": world.clip}, {"init_from": str(folder / "checkpoints" / "last.ckpt")}):
        with pytest.raises(MisconfigurationException, match="give both clip and bart to the model, also with"):
            VLKDModule(**options)
    with pytest.raises(FileNotFoundError, match="no model folder or checkpoint at"):
        VLKDModule(world.clip, world.bart, init_from="nowhere")


def test_one_encoder_pass_gives_what_separate_passes_give(world):
    module = VLKDModule(world.clip, world.bart, "patches").eval()
    tokenizer = module.model.tokenizer

    def infilling(corrupted, clean):
        ids, labels = (tokenizer(texts, padding=True, return_tensors="pt") for texts in (corrupted, clean))
        return {
            "corrupted_ids": ids["input_ids"],
            "corrupted_mask": ids["attention_mask"],
            "labels": labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100),
        }

    clean = ["a red fish", "two blue boats on the grass"]
    batch = infilling(["a <mask> fish", "<mask>"], clean)
    text = tokenizer(clean, padding=True, return_tensors="pt")
    clip_ids = torch.tensor([[653, 5, 654], [653, 9, 654]])
    batch |= {
        "image": torch.randn(2, 3, 64, 64),
        "clip_text_ids": clip_ids,
        "bart_text_ids": text["input_ids"],
        "bart_text_mask": text["attention_mask"],
        "text_infilling": infilling(
            ["what color is the fish? Answer: <mask>."], ["what color is the fish? Answer: red."]
        ),
    }
    losses = module.compute_losses(batch)
    model = module.model

    def infilling_loss(part, image_tokens=None):
        features = model.encode_text(part["corrupted_ids"], part["corrupted_mask"])
        logits = model.decode(*model.condition(features, part["corrupted_mask"], image_tokens), part["labels"])
        return sum(
            cross_entropy(row, labels, ignore_index=-100, reduction="sum")
            for row, labels in zip(logits, part["labels"], strict=True)
        ) / len(logits)

    torch.testing.assert_close(
        losses["icti"], infilling_loss(batch, model.clip.encode_image(batch["image"])), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(losses["text_infilling"], infilling_loss(batch["text_infilling"]), rtol=1e-4, atol=1e-4)
    embedding = model.embed_text(model.encode_text(text["input_ids"], text["attention_mask"]), text["attention_mask"])
    expected = (model.clip.encode_text(clip_ids) - embedding).square().mean()
    torch.testing.assert_close(losses["ttdm"], expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_texts_around_the_projections(world, share):
    """A share of the texts reaches the decoder as a plain BART's would; the others pass W'_e W_e."""
    module = VLKDModule(world.clip, world.bart, text_infilling_around=share, icti_reduction="sum").eval()
    model, texts = module.model, ["a red fish", "two blue boats at night"]
    encoded = model.tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    labels = ids.masked_fill(mask == 0, -100)
    part = {"corrupted_ids": ids, "corrupted_mask": mask, "labels": labels}
    batch = part | {"bart_text_ids": ids, "bart_text_mask": mask, "clip_text_ids": torch.tensor([[653, 5, 654]] * 2)}
    batch |= {"image": torch.randn(2, 3, 64, 64), "text_infilling": part}
    plain = model.bart(input_ids=ids, attention_mask=mask, labels=labels, use_cache=False).logits
    through = model.decode(*model.condition(model.encode_text(ids, mask), mask), labels)
    logits = torch.cat([plain[:1], (plain if share == 1 else through)[1:]])
    expected = cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none").sum(1).mean()
    torch.testing.assert_close(module.compute_losses(batch)["text_infilling"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_around_outside_of_0_to_1_is_refused(world, share):
    with pytest.raises(MisconfigurationException, match=r"text_infilling_around is .*: give a share from 0 to 1"):
        VLKDModule(world.clip, world.bart, text_infilling_around=share)


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize("image_features", ["pooled", "patches", "all"])
@pytest.mark.parametrize(("icti_reduction", "prefix_length"), [("sum", 1), ("mean", 3)])
def test_text_as_image_against_its_definition(world, noise, image_features, icti_reduction, prefix_length):
    """One token, or one prefix, W_i (t + noise), next to the question alone; the other losses stay."""
    options = {"icti_reduction": icti_reduction, "text_as_image_noise": noise, "prefix_length": prefix_length}
    module = VLKDModule(world.clip, world.bart, image_features, **options).eval()
    model, tokenizer = module.model, module.model.tokenizer
    questions, corrupted, clean = (
        tokenizer(texts, padding=True, return_tensors="pt")
        for texts in (
            ["what color is it? Answer: red.", "where is the old boat at night? Answer: sand."],
            ["what color is it? Answer: <mask>.", "where is the old boat at night? Answer: <mask>."],
            ["a red fish", "a boat", "a tree"],
        )
    )
    passage_ids = torch.tensor([[653, 5, 654, 0], [653, 9, 8, 654]])
    batch = {
        "image": torch.randn(3, 3, 64, 64),
        "clip_text_ids": torch.tensor([[653, 5, 654], [653, 9, 654], [653, 7, 654]]),
        "bart_text_ids": clean["input_ids"],
        "bart_text_mask": clean["attention_mask"],
        "corrupted_ids": clean["input_ids"],
        "corrupted_mask": clean["attention_mask"],
        "labels": clean["input_ids"].masked_fill(clean["attention_mask"] == 0, -100),
    }
    text_as_image = {
        "corrupted_ids": corrupted["input_ids"],
        "corrupted_mask": corrupted["attention_mask"],
        "labels": questions["input_ids"].masked_fill(questions["attention_mask"] == 0, -100),
        "clip_text_ids": passage_ids,
    }
    torch.manual_seed(3)
    losses = module.compute_losses(batch | {"text_as_image": text_as_image})
    torch.manual_seed(3)
    embedding = model.clip.encode_text(passage_ids)
    if noise:
        embedding = embedding + torch.normal(torch.zeros_like(embedding), noise)
    total, num_tokens = 0.0, 0
    for row in range(2):  # one by one, without padding
        length, end = int(corrupted["attention_mask"][row].sum()), int(questions["attention_mask"][row].sum())
        features = model.encode_text(corrupted["input_ids"][row : row + 1, :length], torch.ones(1, length))
        text = features @ model.text_projection.weight.T @ model.text_back_projection.weight.T
        image = (embedding[row] @ model.image_projection.weight.T).reshape(1, prefix_length, -1)
        condition = torch.cat([image, text], 1)
        labels = questions["input_ids"][row : row + 1, :end]
        logits = model.decode(condition, torch.ones(1, prefix_length + length), labels)
        total += cross_entropy(logits[0], labels[0], reduction="sum")
        num_tokens += end
    expected = total / (2 if icti_reduction == "sum" else num_tokens)
    torch.testing.assert_close(losses.pop("text_as_image"), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses, module.compute_losses(batch), rtol=1e-4, atol=1e-5)


def test_without_text_as_image_no_random_number_is_drawn(world):
    module = VLKDModule(world.clip, world.bart).eval()
    clean = module.model.tokenizer(["a red fish"], return_tensors="pt")
    batch = {
        "image": torch.zeros(1, 3, 64, 64),
        "clip_text_ids": torch.tensor([[653, 5, 654]]),
        "bart_text_ids": clean["input_ids"],
        "bart_text_mask": clean["attention_mask"],
        "corrupted_ids": clean["input_ids"],
        "corrupted_mask": clean["attention_mask"],
        "labels": clean["input_ids"],
    }
    before = torch.get_rng_state()
    assert module.compute_losses(batch).keys() == {"ttdm", "itcl", "icti"}
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("noise", [-0.1, math.nan])
def test_noise_that_is_no_deviation_is_refused(world, noise):
    with pytest.raises(MisconfigurationException, match=rf"text_as_image_noise is {noise}: give a standard deviation"):
        VLKDModule(world.clip, world.bart, text_as_image_noise=noise)


def test_closed_form_start_beats_the_random_one(world, tmp_path):
    """On the captions that it is computed on, W_e brings BART's embeddings nearer to CLIP's at once."""
    distances = {}
    for start in ("random", "closed_form"):
        options = {"model__init_args__start": start, "model__init_args__num_start_texts": 60, "trainer__max_steps": 1}
        run(arguments(world, tmp_path / start, **options))
        distances[start] = column(tmp_path / start, "train/ttdm_loss")[0]
    assert distances["closed_form"] < 0.5 * distances["random"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("model__init_args__clip", "nowhere", "no CLIP at nowhere"),
        ("model__init_args__bart", "./nowhere", "BART cannot be loaded from ./nowhere"),
        ("data__init_args__shards", "nowhere/{0..2}.tar", "3 of 3 shards do not exist"),
        ("data__init_args__num_workers", "5", "4 shards are too few"),
        ("data__init_args__evaluation__val_captions", "nowhere.json", "no caption file at nowhere.json"),
    ],
)
def test_what_is_missing_is_said_in_one_line_before_training(world, tmp_path, capsys, option, value, message):
    assert main(arguments(world, tmp_path, **{option: value})) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert not (tmp_path / "checkpoints").exists()


def test_mixed_precision_gives_nearly_the_same_losses(trained, world, tmp_path):
    run(arguments(world, tmp_path, trainer__precision="bf16-mixed", trainer__max_steps=1))
    for name in ("ttdm_loss", "itcl_loss", "icti_loss"):
        full, mixed = (column(folder, f"train/{name}")[0] for folder in (trained[0], tmp_path))
        assert mixed == pytest.approx(full, rel=0.05), name


def test_two_processes_train_as_one(world, tmp_path):
    """DDP over gloo, with two batches to a step, and validation on a number of images that two ranks do not share."""
    options = {
        "data__init_args__evaluation__num_samples": 5,
        "trainer__accumulate_grad_batches": 2,
        "trainer__max_steps": 2,
        "trainer__val_check_interval": 2,
    }
    assert joined(begin_ranks(arguments(world, tmp_path, **options))) == [0, 0]
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert all(math.isfinite(value) for value in column(tmp_path, "train/loss"))
    assert column(tmp_path, "val/cider")


def test_a_caption_that_is_no_text_stops_before_training(world, tmp_path, capsys):
    content = json.loads((world.folder / "captions_val.json").read_text())
    content["annotations"][-1]["caption"] = None
    (tmp_path / "captions.json").write_text(json.dumps(content))
    options = {"data__init_args__evaluation__val_captions": tmp_path / "captions.json"}
    assert main(arguments(world, tmp_path, **options)) == 1
    printed = capsys.readouterr().err
    error = (
        f"captions.json is not a caption file of COCO's format: annotations, entry {len(content['annotations'])} has "
    )
    assert printed.endswith(f"{error}null as caption: it must be a text\n")
    assert "Traceback" not in printed
