"""SummarizationModule through the command line: fit, resume, test, predict, and what is written."""

import csv
import json
import random
from pathlib import Path

import pytest
import torch
from evaluations import written

from vlkd_pl.cli import main
from vlkd_pl.commands.train import run
from vlkd_pl.losses import label_smoothed_loss
from vlkd_pl.modules.summarization import SummarizationModule
from vlkd_pl.sample.scenes import distinct_scenes
from vlkd_pl.sample.xsum import write_documents

CONFIGS = Path(__file__).parents[2] / "configs"
SCORES = {"rouge1", "rouge2", "rougel", "rougelsum"}


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    """A folder of documents and summaries."""
    folder = tmp_path_factory.mktemp("documents")
    for split, size in (("train", 24), ("val", 5), ("test", 7)):
        write_documents(folder, split, distinct_scenes(random.Random(split), split, size), random.Random(0))
    return folder


def arguments(model, documents, folder, command="fit", **options):
    """The command line of the configuration and its sample overlay, in miniature."""
    settings = {
        "model.init_args.model": str(model),
        "model.init_args.optimization.warmup_steps": 2,
        "model.init_args.optimization.total_steps": 20,
        "model.init_args.dropout": 0.1,
        "model.init_args.decoding.max_length": 14,
        "data.init_args.source": str(documents),
        "data.init_args.max_tokens": 200,
        "data.init_args.eval_batch_size": 3,
        "trainer.max_epochs": 2,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "run_dir": str(folder),
        "trainer.callbacks": json.dumps(
            [
                {
                    "class_path": "ModelCheckpoint",
                    "init_args": {"monitor": "val/loss", "mode": "min", "filename": "best", "save_last": True},
                }
            ]
        ),
    } | {name.replace("__", "."): value for name, value in options.items()}
    configs = [f"--config={CONFIGS / part / 'summarization_xsum.yaml'}" for part in ("", "sample")]
    return [command, *configs, *(f"--{name}={value}" for name, value in settings.items())]


def logged(folder):
    with (folder / "metrics.csv").open() as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def fitted(documents, bart_folder, tmp_path_factory):
    """The folder of a finished fit."""
    folder = tmp_path_factory.mktemp("fit")
    assert main(arguments(bart_folder, documents, folder)) == 0
    return folder


@pytest.fixture(scope="module")
def tested(fitted, documents, bart_folder, tmp_path_factory):
    """The folder of the test of its best checkpoint."""
    folder = tmp_path_factory.mktemp("test")
    best = fitted / "checkpoints" / "best.ckpt"
    assert main(arguments(bart_folder, documents, folder, "test", ckpt_path=best)) == 0
    return folder


def test_fit_learns_and_validates(fitted):
    rows = logged(fitted)
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert losses[-1] < losses[0]
    assert {f"val/{name}" for name in SCORES} | {"val/loss", "train/summary_loss"} <= rows[0].keys()
    assert len([row for row in rows if row["val/loss"]]) == 2
    checkpoints = {path.name for path in (fitted / "checkpoints").iterdir()}
    assert checkpoints == {"best.ckpt", "last.ckpt"}


def test_tested_again_from_the_checkpoint_the_scores_are_the_same(fitted, tested, documents, bart_folder, tmp_path):
    best = fitted / "checkpoints" / "best.ckpt"
    options = {"data__init_args__eval_batch_size": 2, "ckpt_path": best}
    assert main(arguments(bart_folder, documents, tmp_path, "test", **options)) == 0
    assert written(tmp_path, "scores.json") == written(tested, "scores.json")
    assert written(tmp_path, "predictions.json") == written(tested, "predictions.json")
    assert set(written(tested, "scores.json")["scores"]) == SCORES


def test_the_command_score_gives_the_same_figures(tested, documents, capsys):
    output = tested / "rescored.json"
    files = [f"--references={tested / 'references.txt'}", f"--predictions={tested / 'predictions.txt'}"]
    assert main(["score", "summaries", *files, f"--output={output}"]) == 0
    rescored = json.loads(output.read_text())
    scores = written(tested, "scores.json")["scores"]
    assert rescored.pop("units") == dict.fromkeys(rescored, "percent")
    assert rescored == {
        "ROUGE-1": scores["rouge1"],
        "ROUGE-2": scores["rouge2"],
        "ROUGE-L": scores["rougel"],
        "ROUGE-Lsum": scores["rougelsum"],
    }
    assert (tested / "references.txt").read_text() == (documents / "test.target").read_text()
    items = written(tested, "predictions.json")
    assert [item["id"] for item in items] == list(range(7))
    assert [item["summary"] for item in items] == (tested / "predictions.txt").read_text().splitlines()


def test_the_loss_is_the_mean_over_all_tokens(fitted, tested, documents, bart_folder):
    best = fitted / "checkpoints" / "best.ckpt"
    data = run(arguments(bart_folder, documents, tested / "again", "validate", ckpt_path=best))
    module, total, num_tokens = data.model.eval(), 0.0, 0
    for batch in data.datamodule.val_dataloader():
        for row in range(len(batch["samples"])):
            one = {key: batch[key][row : row + 1] for key in ("document_ids", "document_mask", "labels")}
            size = int((one["labels"] != -100).sum())
            with torch.no_grad():
                total += module.compute_losses(one)["summary"].item() * size
            num_tokens += size
    assert float(data.trainer.callback_metrics["val/loss"]) == pytest.approx(total / num_tokens, rel=1e-5)


@pytest.mark.parametrize("num_steps", [2, 5, 7])  # of ten, in two epochs
def test_a_resumed_run_ends_as_one_that_was_not_cut(fitted, documents, bart_folder, tmp_path, num_steps):
    original = {"class_path": "ModelCheckpoint", "init_args": {"save_last": True, "every_n_train_steps": num_steps}}
    options = {"trainer__max_steps": num_steps, "trainer__callbacks": json.dumps([original])}
    assert main(arguments(bart_folder, documents, tmp_path / "cut", **options)) == 0
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    assert main(arguments(bart_folder, documents, tmp_path / "on", ckpt_path=last)) == 0
    whole, resumed = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (fitted, tmp_path / "on")
    )
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value)


@pytest.mark.parametrize("route", ["around", "through"])
def test_a_distilled_model(documents, model_folder, tmp_path, route):
    options = {"model__init_args__route": route, "trainer__max_epochs": 1, "trainer__max_steps": 1}
    done = run(arguments(model_folder, documents, tmp_path, **options))
    weights = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert len([name for name in weights if "projections" in name]) == (2 if route == "through" else 0)
    assert not any("clip" in name for name in weights)
    batch = next(iter(done.datamodule.val_dataloader()))
    done.model.eval()
    features = done.model.model.encode(batch["document_ids"], batch["document_mask"])
    raw = done.model.model.bart.model.encoder(batch["document_ids"], batch["document_mask"]).last_hidden_state
    assert torch.equal(features, raw) == (route == "around")


def test_predict_needs_no_summaries(fitted, documents, bart_folder, tmp_path, capsys):
    (tmp_path / "test.source").write_text((documents / "test.source").read_text())
    best = fitted / "checkpoints" / "best.ckpt"
    options = {"data__init_args__source": tmp_path, "ckpt_path": best}
    assert main(arguments(bart_folder, documents, tmp_path, "predict", **options)) == 0
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert sorted(row["id"] for row in rows) == list(range(7))
    assert all(row.keys() == {"id", "summary"} for row in rows)


def test_dropout_is_the_given_one(bart_folder):
    module = SummarizationModule(str(bart_folder), dropout=0.3, attention_dropout=0.2)
    layer = module.model.bart.model.decoder.layers[0]
    assert (layer.dropout, layer.activation_dropout) == (0.3, 0.0)
    assert (layer.self_attn.dropout, layer.encoder_attn.dropout) == (0.2, 0.2)
    assert module.model.bart.model.encoder.dropout == 0.3
    ids = torch.tensor([[0, 9, 8, 7, 2]])
    batch = {"document_ids": ids, "document_mask": torch.ones_like(ids), "labels": ids}
    module.train()
    assert module.compute_losses(batch)["summary"] != module.compute_losses(batch)["summary"]
    module.eval()
    assert module.compute_losses(batch)["summary"] == module.compute_losses(batch)["summary"]


def test_the_loss_is_that_of_barts_own_forward_pass(bart_folder):
    module = SummarizationModule(str(bart_folder)).eval()
    ids, mask = torch.tensor([[0, 9, 8, 2], [0, 7, 2, 1]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    labels = torch.tensor([[0, 5, 2], [0, 2, -100]])
    logits = module.model.bart(input_ids=ids, attention_mask=mask, labels=labels).logits
    batch = {"document_ids": ids, "document_mask": mask, "labels": labels}
    torch.testing.assert_close(module.compute_losses(batch)["summary"], label_smoothed_loss(logits, labels, 0.1))


def test_errors_in_one_line(documents, bart_folder, tmp_path, capsys):
    assert main(arguments(tmp_path / "nowhere", documents, tmp_path)) == 1
    assert "nowhere" in capsys.readouterr().err
    assert main(arguments(bart_folder, tmp_path, tmp_path)) == 1
    assert "no train.source and no train.jsonl" in capsys.readouterr().err
