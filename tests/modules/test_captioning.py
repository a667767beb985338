"""CaptioningModule through the command line: COCO's and NoCaps' files, training, scores and predictions."""

import json
import math

import pytest
import torch
from distilling import begin_ranks, joined
from evaluations import arguments, captioning_arguments, column, weights, written
from torch.nn.functional import cross_entropy

from vlkd_pl.cli import main
from vlkd_pl.commands.train import run
from vlkd_pl.evaluation.captioning import CaptioningEvaluator
from vlkd_pl.metrics.captions import caption_scores
from vlkd_pl.models.decoding import Decoding, caption
from vlkd_pl.models.vlkd import VLKDModel
from vlkd_pl.modules.captioning import CaptioningModule, as_continuation
from vlkd_pl.training.checkpoint import load_weights
from vlkd_pl.training.export import ExportModel

IN_PROCESS = "[BLEU,ROUGE-L,CIDEr]"


def test_coco(world, model_folder, tmp_path, capsys):
    done = run(arguments("zeroshot_coco", world, model_folder, tmp_path, model__init_args__metrics=IN_PROCESS))
    results = written(tmp_path, "predictions.json")
    assert [set(result) for result in results] == [{"image_id", "caption"}] * 6
    assert [result["image_id"] for result in results] == list(range(101, 107))
    samples = done.datamodule.samples
    expected = caption_scores(
        {sample.image_id: sample.references for sample in samples},
        {result["image_id"]: result["caption"] for result in results},
        ["BLEU", "ROUGE-L", "CIDEr"],
    )
    scores = written(tmp_path, "scores.json")["scores"]
    assert scores["cider"] == expected.scores["CIDEr"]
    assert scores["bleu_4"] == expected.scores["BLEU-4"]
    assert scores["rouge_l"] == expected.scores["ROUGE-L"]
    assert float(done.trainer.callback_metrics["test/cider"]) == pytest.approx(scores["cider"])
    for item in written(tmp_path, "scores_per_image.json"):
        assert item["CIDEr"] == expected.per_image[item["image_id"]]["CIDEr"]
        assert set(item) == {"image_id", "caption", *expected.scores}
    printed = capsys.readouterr().out
    assert "6 images, 6 with reference captions" in printed
    assert "\nin percent, CIDEr times 100 (JSON files hold fractions)\n" in printed
    assert f"\nCIDEr    {100 * scores['cider']:8.1f}\n" in printed
    assert written(tmp_path, "scores.json")["units"] == dict.fromkeys(scores, "fraction")
    assert "notes" not in written(tmp_path, "scores.json")
    assert "off-prompt: " in printed
    assert (tmp_path / "panels" / "test_captions_000000.png").is_file()


@pytest.mark.parametrize(("command", "stage"), [("test", "test"), ("validate", "val")])
def test_cider_of_one_image_says_why_it_is_zero(world, model_folder, tmp_path, command, stage, capsys):
    options = {"model__init_args__metrics": "[CIDEr]", "data__init_args__num_samples": 1}
    with pytest.warns(UserWarning, match="CIDEr is 0, since .* one image alone"):
        done = run(arguments("zeroshot_coco", world, model_folder, tmp_path, command, **options))
    assert float(done.trainer.callback_metrics[f"{stage}/cider"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("in percent, CIDEr times 100 (JSON files hold fractions)") == 1
    assert "/cider" not in printed  # Lightning's own table of fractions
    if command == "test":
        assert written(tmp_path, "scores.json")["notes"][0].startswith("CIDEr is 0")


def test_captions_are_those_of_the_model(world, model_folder, tmp_path):
    options = {"model__init_args__metrics": "[CIDEr]", "model__init_args__decoding__num_beams": 2}
    done = run(arguments("zeroshot_coco", world, model_folder, tmp_path, **options))
    model = done.model.model
    batch = next(iter(done.datamodule.test_dataloader()))
    actual = caption(model, model.clip.encode_image(batch["image"]), 3, Decoding(2, max_new_tokens=5))
    assert [texts[0].text for texts in actual] == [
        result["caption"] for result in written(tmp_path, "predictions.json")[:4]
    ]


def test_nocaps_has_a_column_for_each_domain(world, model_folder, tmp_path, capsys):
    run(arguments("zeroshot_nocaps", world, model_folder, tmp_path, model__init_args__metrics=IN_PROCESS))
    scores = written(tmp_path, "scores.json")["scores"]
    domains = ("in-domain", "near-domain", "out-domain")
    assert {f"{domain}/cider" for domain in domains} | {"cider"} <= scores.keys()
    header = next(line for line in capsys.readouterr().out.splitlines() if "near-domain" in line)
    assert header.split() == ["all", *domains]


def test_without_captions_there_are_predictions_for_the_server(world, model_folder, tmp_path, capsys):
    file = world.folder / "nocaps_test_image_info.json"
    run(arguments("zeroshot_nocaps", world, model_folder, tmp_path, data__init_args__annotations=file))
    assert set(written(tmp_path, "scores.json")["scores"]) == {"off_prompt"}
    assert len(written(tmp_path, "predictions.json")) == 6
    assert "6 images, 0 with reference captions" in capsys.readouterr().out


def test_what_cannot_be_computed_is_said(world, model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    run(arguments("zeroshot_coco", world, model_folder, tmp_path, model__init_args__metrics="[METEOR,CIDEr,SPICE]"))
    printed = capsys.readouterr().out
    assert "METEOR not computed: " in printed
    assert "SPICE not computed: " in printed
    assert "meteor" not in written(tmp_path, "scores.json")["scores"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("data__init_args__annotations", "nowhere.json", "no caption file at nowhere.json"),
        ("data__init_args__images", "nowhere", "no folder of images at nowhere"),
        ("data__init_args__split", "tset", "holds no image of the split tset"),
        ("model__init_args__metrics", "[CIDER]", "there is no 'CIDER': choose from BLEU"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(world, model_folder, tmp_path, capsys, option, value, message):
    assert main(arguments("zeroshot_coco", world, model_folder, tmp_path, **{option: value})) == 1
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_two_processes_test_as_one(world, model_folder, tmp_path):
    """Six images on two ranks in batches of four: each counts once."""
    options = {"model__init_args__metrics": "[CIDEr]", "data__init_args__num_samples": 5}
    run(arguments("zeroshot_coco", world, model_folder, tmp_path / "one", **options))
    ranks = begin_ranks(arguments("zeroshot_coco", world, model_folder, tmp_path / "two", **options))
    assert joined(ranks) == [0, 0]
    one, two = (written(tmp_path / name, "scores.json")["scores"] for name in ("one", "two"))
    assert one == two
    assert written(tmp_path / "one", "predictions.json") == written(tmp_path / "two", "predictions.json")


# Training


@pytest.fixture(scope="module")
def trained(world, model_folder, tmp_path_factory):
    """A finished training: its folder, and the command line object."""
    folder = tmp_path_factory.mktemp("captioning_fit")
    return folder, run(captioning_arguments("captioning_coco", world, model_folder, folder))


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_loss_is_that_of_single_captions(world, model_folder, reduction):
    options = {"clip": world.clip, "bart": world.bart, "image_features": "all", "init_from": str(model_folder)}
    module = CaptioningModule(num_masks=2, icti_reduction=reduction, **options).eval()
    model, tokenizer = module.model, module.model.tokenizer
    labels = [["A red fish on the grass. "], ["two boats"], ["a tree", "there is a tree."]]
    batch = {"image": torch.randn(3, 3, 64, 64), "labels": labels}
    output = [(0, "a red fish on the grass"), (1, "two boats"), (2, "a tree"), (2, "there is a tree")]
    prompt = tokenizer("A picture of <mask><mask>.", return_tensors="pt")
    total, num_tokens = 0.0, 0
    for row, text in output:
        ids = tokenizer(f"A picture of {text}.", return_tensors="pt")["input_ids"]
        features = model.encode_text(prompt["input_ids"], prompt["attention_mask"])
        image_tokens = model.clip.encode_image(batch["image"][row : row + 1])
        logits = model.decode(*model.condition(features, prompt["attention_mask"], image_tokens), ids)
        total += cross_entropy(logits[0], ids[0], reduction="sum")
        num_tokens += ids.shape[1]
    losses = module.compute_losses(batch)
    assert set(losses) == {"icti"}
    expected = total / (len(output) if reduction == "sum" else num_tokens)
    torch.testing.assert_close(losses["icti"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("written_by_a_person", "text"),
    [
        ("A man on a\nbike. ", "a man on a bike"),
        ("TV on a desk", "TV on a desk"),
        ("Two dogs... one cat...", "two dogs... one cat"),
        ("I see", "i see"),
        ("", ""),
    ],
)
def test_captions_resume_from_the_prompt(written_by_a_person, text):
    assert as_continuation(written_by_a_person) == text


def test_training_logs_and_leaves_clip_alone(trained, world):
    folder, command_line = trained
    assert len(column(folder, "train/icti_loss")) == 6
    assert all(math.isfinite(value) for value in column(folder, "train/icti_loss"))
    rates = column(folder, "train/learning_rate")
    assert rates == pytest.approx([1e-3 * share for share in (2 / 3, 1, 1, 2 / 3, 1 / 3, 0)])  # of the next step
    assert len(column(folder, "val/cider")) == 2
    assert column(folder, "val/meteor") == []  # Java is for the test
    fresh = VLKDModel.load(world.clip, world.bart, "all")
    torch.testing.assert_close(dict(command_line.model.model.clip.state_dict()), dict(fresh.clip.state_dict()))


def test_it_learns_captions_by_heart(world, model_folder, tmp_path):
    options = {"trainer__max_epochs": 40, "trainer__check_val_every_n_epoch": 40}
    run(captioning_arguments("captioning_coco", world, model_folder, tmp_path, **options))
    loss = column(tmp_path, "train/icti_loss")
    assert sum(loss[-3:]) < 0.5 * sum(loss[:3])


def test_the_exported_model_is_the_best_in_validation(trained, world, monkeypatch, tmp_path, model_folder):
    """Of three epochs the second scores best, as the scores are given here."""
    scores = iter([0.1, 0.3, 0.2])
    compute = CaptioningEvaluator.compute

    def compute_with_fixed_cider(evaluator):
        report = compute(evaluator)
        return report._replace(scores=report.scores | {"cider": next(scores)})

    monkeypatch.setattr(CaptioningEvaluator, "compute", compute_with_fixed_cider)
    done = run(captioning_arguments("captioning_coco", world, model_folder, tmp_path, trainer__max_epochs=3))
    monitoring = next(callback for callback in done.trainer.checkpoint_callbacks if callback.monitor)
    assert monitoring.best_model_path.endswith("epoch=1-step=6.ckpt")
    exported = VLKDModel.from_pretrained(tmp_path / "model")
    best = VLKDModel.load(world.clip, world.bart, "all")
    load_weights(best, tmp_path / "steps" / "step=6.ckpt")
    torch.testing.assert_close(dict(exported.state_dict()), dict(best.state_dict()), rtol=0, atol=0)
    last = weights(done.model.model)  # the trained module stays as it is
    assert not torch.equal(last["text_projection.weight"], exported.text_projection.weight)
    load_weights(best, tmp_path / "steps" / "step=9.ckpt")
    torch.testing.assert_close(last, dict(best.state_dict()), rtol=0, atol=0)


def test_a_resumed_run_without_validation_exports_its_last_step(trained, world, model_folder, tmp_path):
    """The best checkpoint is known by its path then, and not by its score."""
    options = {"ckpt_path": trained[0] / "steps" / "step=4.ckpt", "trainer__limit_val_batches": 0}
    done = run(captioning_arguments("captioning_coco", world, model_folder, tmp_path, **options))
    exported = VLKDModel.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(dict(exported.state_dict()), weights(done.model.model), rtol=0, atol=0)


def test_a_best_checkpoint_that_is_gone_is_warned_of(trained, tmp_path):
    _, command_line = trained
    monitoring = next(callback for callback in command_line.trainer.checkpoint_callbacks if callback.monitor)
    best, monitoring.best_model_path = monitoring.best_model_path, str(tmp_path / "gone.ckpt")
    try:
        with pytest.warns(UserWarning, match=r"gone\.ckpt is gone: the exported model is that of the last step"):
            ExportModel(str(tmp_path / "model")).on_fit_end(command_line.trainer, command_line.model)
    finally:
        monitoring.best_model_path = best
    exported = VLKDModel.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(dict(exported.state_dict()), weights(command_line.model.model), rtol=0, atol=0)


def test_the_folder_and_the_checkpoint_score_the_same(trained, world, model_folder, tmp_path):
    folder, command_line = trained
    best = next(callback for callback in command_line.trainer.checkpoint_callbacks if callback.monitor).best_model_path
    metrics = {"model__init_args__metrics": "[CIDEr,BLEU]"}
    tests = {
        "folder": {"model__init_args__init_from": folder / "model"},
        "init_from": {
            "model__init_args__init_from": best,
            "model__init_args__clip": world.clip,  # a checkpoint holds neither
            "model__init_args__bart": world.bart,
            "model__init_args__image_features": "all",
        },
        "ckpt": {"ckpt_path": best},
    }
    for name, options in tests.items():
        run(captioning_arguments("captioning_coco", world, model_folder, tmp_path / name, "test", **metrics, **options))
    scores, *others = [written(tmp_path / name, "scores.json")["scores"] for name in tests]
    assert others == [scores, scores]
    assert written(tmp_path / "folder", "predictions.json") == written(tmp_path / "ckpt", "predictions.json")
    assert [item["image_id"] for item in written(tmp_path / "folder", "predictions.json")] == list(range(101, 107))


def test_a_finetuned_model_is_tested_on_nocaps(trained, world, tmp_path):
    run(arguments("zeroshot_nocaps", world, trained[0] / "model", tmp_path, model__init_args__metrics=IN_PROCESS))
    assert {"in-domain/cider", "near-domain/cider", "out-domain/cider"} <= written(tmp_path, "scores.json")[
        "scores"
    ].keys()


@pytest.mark.parametrize("step", [2, 3, 4])
def test_a_cut_and_resumed_run_ends_as_the_uncut_one(trained, world, model_folder, tmp_path, step):
    """Cut in an epoch, at its end, and in the next: the same samples, dropout and learning rates."""
    folder, uncut = trained
    checkpoint = folder / "steps" / f"step={step}.ckpt"
    done = run(captioning_arguments("captioning_coco", world, model_folder, tmp_path, ckpt_path=checkpoint))
    assert done.trainer.global_step == 6
    torch.testing.assert_close(weights(done.model), weights(uncut.model), rtol=0, atol=0)
    assert column(tmp_path, "train/loss") == column(folder, "train/loss")[step:]


def test_two_processes_train_as_one(world, model_folder, tmp_path):
    options = {"trainer__max_epochs": 1, "data__init_args__train_batch_size": 5}
    command = captioning_arguments("captioning_coco", world, model_folder, tmp_path, **options)
    assert joined(begin_ranks(command)) == [0, 0]
    assert (tmp_path / "model" / "model.safetensors").is_file()
    assert len(column(tmp_path, "train/loss")) == 3
    assert column(tmp_path, "val/cider")


def test_nothing_to_train_on_is_said_in_one_line(world, model_folder, tmp_path, capsys):
    files = {"annotations": str(world.folder / "dataset_coco.json"), "images": str(world.folder / "images")}
    options = {"data__init_args__train": json.dumps({**files, "split": ["train"]})}
    assert main(captioning_arguments("captioning_coco", world, model_folder, tmp_path, **options)) == 1
    assert "holds no image of the split train" in capsys.readouterr().err.strip().splitlines()[-1]
