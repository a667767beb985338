"""GLUEModule: the head is transformers' own, and the configuration's miniature runs end to end."""

import csv
import json
import random
from pathlib import Path

import pytest
import torch
from transformers import BartForSequenceClassification

from vlkd_pl.batch import GLUE_LABELS
from vlkd_pl.cli import main
from vlkd_pl.commands.train import run
from vlkd_pl.data.glue_files import GLUEText, collate
from vlkd_pl.evaluation.glue import GLUEPrediction
from vlkd_pl.metrics.glue import glue_scores
from vlkd_pl.models.vlkd import VLKDModel
from vlkd_pl.modules.glue import GLUEModule
from vlkd_pl.sample.glue import write_glue

CONFIGS = Path(__file__).parents[2] / "configs"
PAIRS = [GLUEText(0, ("a red fish", "the fish is red"), 0), GLUEText(1, ("two blue cups", "a cup"), 2)]


@pytest.fixture(scope="module")
def glue(tmp_path_factory):
    """A folder of the eight tasks with twelve training sentences each."""
    folder = tmp_path_factory.mktemp("glue")
    write_glue(folder, 12, 6, random.Random(0))
    return folder


def arguments(command, model, glue, folder, *extra, task="mnli"):
    """The command line of ``configs/glue.yaml`` and its sample overlay, in miniature."""
    settings = {
        "model.init_args.model": model,
        "model.init_args.task": task,
        "data.init_args.source": glue,
        "data.init_args.batch_size": 4,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "run_dir": folder,
    }
    configs = [f"--config={CONFIGS / part / 'glue.yaml'}" for part in ("", "sample")]
    return [command, *configs, *(f"--{key}={value}" for key, value in settings.items()), *extra]


@pytest.mark.parametrize(("task", "num_labels"), [("mnli", 3), ("cola", 2), ("stsb", 1)])
def test_logits_are_those_of_transformers(bart_folder, task, num_labels):
    module = GLUEModule(str(bart_folder), task).eval()
    theirs = BartForSequenceClassification.from_pretrained(bart_folder, num_labels=num_labels).float().eval()
    assert all(
        torch.equal(ours, value)
        for ours, value in zip(module.model.bart.model.parameters(), theirs.model.parameters(), strict=True)
    )
    theirs.classification_head.load_state_dict(module.head.state_dict())
    encoded = module.model.tokenizer(
        *zip(*(pair.texts for pair in PAIRS), strict=True), padding=True, return_tensors="pt"
    )
    assert encoded["attention_mask"].sum(1).unique().numel() == 2
    with torch.no_grad():
        expected = theirs(**encoded).logits
        logits = module.logits(encoded["input_ids"], encoded["attention_mask"])
    assert logits.shape == (2, num_labels)
    torch.testing.assert_close(logits, expected, atol=1e-6, rtol=0)
    assert not torch.allclose(logits[0], logits[1])


def test_pairs_are_reported_as_barts_tokenizer_states_them(bart_folder):
    module = GLUEModule(str(bart_folder), "mnli").eval()
    seen = []
    module.logits = lambda ids, mask: seen.append(ids) or torch.zeros(len(ids), 3)
    module.compute_losses(collate(PAIRS))
    assert module.model.tokenizer.decode(seen[0][0], skip_special_tokens=False).replace(" ", "") == (
        "<s>aredfish</s></s>thefishisred</s>" + "<pad>" * (seen[0] == 1).sum(1)[0]
    )


def test_long_texts_are_cut_and_keep_their_end(bart_folder):
    module = GLUEModule(str(bart_folder), "cola", max_tokens=8)
    seen = []
    module.logits = lambda ids, mask: seen.append(ids) or torch.zeros(len(ids), 2)
    module.predict(collate([GLUEText(0, ("a red fish and a blue cup and a green tree",), 1)]))
    assert seen[0].shape == (1, 8)
    assert seen[0][0, -1] == module.model.tokenizer.eos_token_id
    assert GLUEModule(str(bart_folder), "cola").max_tokens == 80  # the tiny BART's positions


def test_the_route_goes_around_or_through_the_projections(model_folder, tmp_path):
    trained = VLKDModel.from_pretrained(model_folder)
    trained.text_back_projection.weight.data.mul_(-2)  # it starts as the inverse, which changes nothing
    trained.save_pretrained(tmp_path)
    around, through = (GLUEModule(str(tmp_path), "mnli", route).eval() for route in ("around", "through"))
    through.head.load_state_dict(around.head.state_dict())
    distilled = trained.eval()
    encoded = distilled.tokenizer(["a red fish"], return_tensors="pt")
    ids, mask = encoded["input_ids"], encoded["attention_mask"]
    with torch.no_grad():
        features = distilled.encode_text(ids, mask)
        torch.testing.assert_close(around.model.encode(ids, mask), features)
        torch.testing.assert_close(through.model.encode(ids, mask), distilled.condition(features, mask)[0])
        assert not torch.allclose(around.logits(ids, mask), through.logits(ids, mask), atol=1e-4)
    names = [name for name, _ in through.named_parameters() if "projections" in name]
    assert names == ["model.projections.0.weight", "model.projections.1.weight"]
    assert not [name for name, _ in around.named_parameters() if "projections" in name]


def test_losses(bart_folder):
    classified = GLUEModule(str(bart_folder), "mnli").eval()
    logits = torch.tensor([[1.0, 0.0, -1.0], [0.0, 2.0, 0.5]])
    classified.logits = lambda ids, mask: logits
    expected = -(logits.log_softmax(1)[0, 0] + logits.log_softmax(1)[1, 2]) / 2
    assert classified.compute_losses(collate(PAIRS)) == {"classification": pytest.approx(float(expected))}
    regressed = GLUEModule(str(bart_folder), "stsb").eval()
    regressed.logits = lambda ids, mask: torch.tensor([[4.0], [1.0]])
    pairs = [pair._replace(label=label) for pair, label in zip(PAIRS, (2.5, 3.0), strict=True)]
    assert regressed.compute_losses(collate(pairs)) == {"regression": pytest.approx((1.5**2 + 2**2) / 2)}


def test_the_head_starts_as_transformers_starts_it(bart_folder):
    head = GLUEModule(str(bart_folder), "mnli").head
    assert float(head.dense.weight.detach().std()) == pytest.approx(0.2, rel=0.1)  # the tiny BART's init_std
    assert not head.dense.bias.any()
    assert not head.out_proj.bias.any()


def test_warm_up_decay_and_groups_step_by_step(bart_folder, glue, tmp_path, monkeypatch):
    steps = []

    def recorded(self, optimizer):
        steps.append([(group["lr"], group["weight_decay"]) for group in optimizer.param_groups])

    monkeypatch.setattr(GLUEModule, "on_before_optimizer_step", recorded)
    fitted = run(arguments("fit", bart_folder, glue, tmp_path, "--model.init_args.optimization.learning_rate=5e-4"))
    # 12 sentences in batches of 4: 3 steps an epoch, of which the first is the warm-up, and 10 epochs
    expected = [5e-4 * (step + 1) / 3 if step < 3 else 5e-4 * (30 - step) / 27 for step in range(30)]
    assert [rates[0][0] for rates in steps] == pytest.approx(expected)
    assert {tuple(decay for _, decay in groups) for groups in steps} == {(1e-4, 0.0)}
    assert all(len({rate for rate, _ in groups}) == 1 for groups in steps)
    (optimizer,) = fitted.trainer.optimizers
    assert type(optimizer).__module__.startswith("timm.")
    names = {id(parameter): name for name, parameter in fitted.model.named_parameters()}
    decayed, undecayed = ({names[id(p)] for p in group["params"]} for group in optimizer.param_groups)
    assert decayed | undecayed == set(names.values())
    assert all(name.endswith("bias") or "norm" in name for name in undecayed)
    assert not any(name.endswith("bias") or "norm" in name for name in decayed)
    assert "head.out_proj.weight" in decayed


@pytest.fixture(scope="module")
def fitted(model_folder, glue, tmp_path_factory):
    """The folder of a finished miniature of MNLI."""
    folder = tmp_path_factory.mktemp("fitted")
    assert main(arguments("fit", model_folder, glue, folder, "--trainer.max_epochs=2")) == 0
    return folder


def test_a_written_checkpoint_scores_the_same_again(fitted, model_folder, glue, tmp_path, capsys):
    scores = []
    for name in ("once", "again"):
        checkpoint = f"--ckpt_path={fitted / 'checkpoints' / 'best.ckpt'}"
        assert main(arguments("test", model_folder, glue, tmp_path / name, checkpoint)) == 0
        scores.append(json.loads((tmp_path / name / "scores.json").read_text())["scores"])
    assert scores[0] == scores[1]
    with open(fitted / "metrics.csv") as lines:
        logged = [float(row["val/score"]) for row in csv.DictReader(lines) if row["val/score"]]
    assert len(logged) == 2
    assert scores[0]["score"] == pytest.approx(max(logged))
    assert "accuracy_mismatched" in capsys.readouterr().out


def test_mnlis_sets_are_scored_apart_and_written_for_the_server(fitted, model_folder, glue, tmp_path):
    options = [f"--ckpt_path={fitted / 'checkpoints' / 'last.ckpt'}"]
    tested = run(arguments("test", model_folder, glue, tmp_path, *options))
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert scores.keys() == {"accuracy_matched", "accuracy_mismatched", "score"}
    assert scores["score"] == pytest.approx((scores["accuracy_matched"] + scores["accuracy_mismatched"]) / 2)
    for part, name in (("matched", "MNLI-m.tsv"), ("mismatched", "MNLI-mm.tsv")):
        head, *rows = (tmp_path / name).read_text().splitlines()
        assert head == "index\tprediction"
        truth = [sample.label for sample in tested.datamodule.samples["dev"] if sample.part == part]
        assert [int(row.split("\t")[0]) for row in rows] == list(range(6))
        predicted = [GLUE_LABELS["mnli"].index(row.split("\t")[1]) for row in rows]
        assert scores[f"accuracy_{part}"] == glue_scores("mnli", predicted, truth)["accuracy"]


def test_where_labels_are_secret_there_is_a_submission(bart_folder, glue, tmp_path, capsys):
    for task, name in (("stsb", "STS-B.tsv"), ("qnli", "QNLI.tsv"), ("cola", "CoLA.tsv")):
        folder = tmp_path / task
        assert main(arguments("test", bart_folder, glue, folder, "--data.init_args.evaluated=test", task=task)) == 0
        assert "6 predictions; the labels are secret" in capsys.readouterr().out
        assert json.loads((folder / "scores.json").read_text()) == {"scores": {}, "units": {}}
        head, *rows = (folder / name).read_text().splitlines()
        assert head == "index\tprediction"
        assert len(rows) == 6
        for row in rows:
            value = row.split("\t")[1]
            assert 0 <= float(value) <= 5 if task == "stsb" else value in GLUE_LABELS[task]


def test_predictions_are_json_lines(bart_folder, glue, tmp_path):
    assert main(arguments("predict", bart_folder, glue, tmp_path, "--data.init_args.evaluated=test")) == 0
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert [(row["part"], row["index"]) for row in rows] == [
        (p, i) for p in ("matched", "mismatched") for i in range(6)
    ]
    assert all(row["prediction"] in GLUE_LABELS["mnli"] for row in rows)


def test_a_constant_similarity_is_no_score(bart_folder):
    evaluator = GLUEModule(str(bart_folder), "stsb").evaluator
    evaluator.update(GLUEPrediction("", number, 2.0, float(number)) for number in range(3))
    with pytest.warns(match="constant"):
        assert str(evaluator.compute().scores["score"]) == "nan"


def test_no_bart_is_reported_in_one_line(glue, tmp_path, capsys):
    assert main(arguments("fit", tmp_path / "nowhere", glue, tmp_path)) == 1
    assert "BART cannot be loaded from" in capsys.readouterr().err
