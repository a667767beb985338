"""The pretraining of the sample world's models, in miniature, through the command line."""

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch.nn import functional

from vlkd_pl.commands.train import run
from vlkd_pl.models.decoding import Decoding, caption
from vlkd_pl.models.vlkd import VLKDModel
from vlkd_pl.sample.pretraining_modules import BARTPretrainingModule
from vlkd_pl.sample.tokenizers import clip_merges, train_bart_tokenizer

CONFIGS = Path(__file__).parents[2] / "configs" / "sample"
TRAINER = [
    "--trainer.max_steps=4",
    "--trainer.val_check_interval=2",
    "--checkpoint.every_n_train_steps=2",
    "--checkpoint.save_top_k=-1",
    "--checkpoint.filename={step}",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.logger=false",
]
SOURCES = {
    "clip": ("merges", "merges.txt.gz"),
    "bart": ("tokenizer", "tokenizer"),
    "bart_questions": ("tokenizer", "tokenizer"),
}
CONFIGS_OF = {"clip": ["clip"], "bart": ["bart"], "bart_questions": ["bart", "bart_questions"]}


def weights_of(folder):
    """The weights in a model folder."""
    (path,) = folder.glob("*.safetensors")
    return safetensors.torch.load_file(path)


def fit(name, folder, output, *options):
    """Train a small CLIP or a small BART for four steps, in a directory of its own."""
    source, file = SOURCES[name]
    options = [
        f"--model.init_args.output={output}",
        f"--model.init_args.{source}={folder / file}",
        f"--data.init_args.{source}={folder / file}",
        "--data.init_args.batch_size=16",
        "--data.init_args.num_val_batches=1",
        "--data.init_args.num_workers=0",
        *(["--data.init_args.num_hard_negatives=2"] if name == "clip" else []),
        *([f"--model.init_args.start_from={folder / 'bart'}"] if name == "bart_questions" else []),
        *options,
    ]
    configs = [f"--config={CONFIGS / config}.yaml" for config in CONFIGS_OF[name]]
    return run(["fit", *configs, *options, *TRAINER])


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Folders of a CLIP and a BART after four steps each, and of the BART after four more; and their metrics."""
    folder = tmp_path_factory.mktemp("pretrained")
    (folder / "merges.txt.gz").write_bytes(clip_merges())
    train_bart_tokenizer(folder / "tokenizer", num_lines=2000)
    metrics = {}
    for name in SOURCES:
        done = fit(name, folder, folder / name, f"--run_dir={folder / f'{name}_log'}")
        metrics[name] = {key: float(value) for key, value in done.trainer.callback_metrics.items()}
    return folder, metrics


def test_what_is_written_can_be_distilled(pretrained):
    folder, _ = pretrained
    model = VLKDModel.load(str(folder / "clip"), str(folder / "bart"), "patches").eval()
    assert model.clip.merges == clip_merges()
    assert model.clip.num_patches == 4
    tokens = model.clip.encode_image(torch.randn(2, 3, 64, 64))
    assert len(caption(model, tokens, decoding=Decoding(num_beams=2, max_new_tokens=4))) == 2


def test_both_log_a_loss_and_a_score(pretrained):
    _, metrics = pretrained
    assert 0 < metrics["clip"]["train/loss"] < 10
    assert 0 <= metrics["clip"]["val/text_to_image_r1"] <= 1
    assert {metrics["clip"][f"val/hard_negatives{split}"] for split in ("", "_unseen")} <= {0, 0.5, 1}
    assert 0 < metrics["bart"]["train/loss"] < 10
    assert 0 <= metrics["bart"]["val/exact"] <= 1
    answers = {name: value for name, value in metrics["bart"].items() if name.startswith("val/answers")}
    assert {"val/answers", "val/answers_color", "val/answers_object"} <= answers.keys()
    assert "val_separate/answers" in metrics["bart"]
    assert all(0 <= value <= 1 for value in answers.values())


def test_a_bart_is_trained_further_from_its_folder(pretrained, tmp_path):
    """At a learning rate of 0 the model that is written is the one that training starts from."""
    folder, _ = pretrained
    fit("bart_questions", folder, tmp_path, f"--run_dir={tmp_path}/log", "--model.init_args.learning_rate=0")
    torch.testing.assert_close(weights_of(tmp_path), weights_of(folder / "bart"), rtol=0, atol=0)
    assert any(
        (weights_of(folder / "bart_questions")[name] != value).any() for name, value in weights_of(tmp_path).items()
    )


@pytest.mark.parametrize("name", list(SOURCES))
def test_an_interrupted_run_ends_with_the_same_model(pretrained, tmp_path, name):
    folder, _ = pretrained
    checkpoint = folder / f"{name}_log" / "checkpoints" / "step=2.ckpt"
    resumed = fit(name, folder, tmp_path / name, f"--run_dir={tmp_path}", f"--ckpt_path={checkpoint}")
    assert resumed.trainer.global_step == 4
    torch.testing.assert_close(weights_of(tmp_path / name), weights_of(folder / name), rtol=0, atol=0)


def test_a_finished_run_is_written_without_training(pretrained, tmp_path):
    folder, _ = pretrained
    fit("bart", folder, tmp_path, f"--run_dir={folder / 'bart_log'}", "--ckpt_path=last")
    torch.testing.assert_close(weights_of(tmp_path), weights_of(folder / "bart"), rtol=0, atol=0)


def test_a_separate_passage_is_read_by_the_decoder_alone(bart_folder, tmp_path):
    """Its features precede those of the question, in rows of both kinds at once."""
    module = BARTPretrainingModule(str(bart_folder), str(tmp_path), width=8, num_layers=1).eval()
    labels = torch.tensor([[0, 5, 6, 2], [0, 7, 2, -100]])
    ids, mask = torch.tensor([[0, 4, 2], [0, 9, 2]]), torch.ones(2, 3, dtype=torch.int64)
    passage_ids, passage_mask = torch.tensor([[0, 8, 2], [1, 1, 1]]), torch.tensor([[1, 1, 1], [0, 0, 0]])
    names = ("corrupted_ids", "corrupted_mask", "labels", "passage_ids", "passage_mask")
    logits = module.logits(dict(zip(names, (ids, mask, labels, passage_ids, passage_mask), strict=True)))
    encode = module.bart.model.encoder
    features = torch.cat([encode(rows[:1]).last_hidden_state for rows in (passage_ids, ids)], 1)
    first = module.bart(encoder_outputs=(features,), labels=labels[:1], use_cache=False).logits
    second = module.bart(input_ids=ids[1:], labels=labels[1:], use_cache=False).logits
    torch.testing.assert_close(logits, torch.cat([first, second]))


@pytest.mark.parametrize("weight", [1.0, 10.0])
def test_answers_weigh_more_in_the_loss(bart_folder, tmp_path, weight):
    module = BARTPretrainingModule(str(bart_folder), str(tmp_path), width=8, num_layers=1, answer_weight=weight)
    labels = torch.tensor([[0, 5, 6, 2], [0, 7, 2, -100]])
    answers = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]])
    logits = torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0))
    losses = functional.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none")
    weights = torch.tensor([1, 1, weight, weight, 1, 1, 1])
    loss = module.loss({"labels": labels, "answer_mask": answers}, logits)
    torch.testing.assert_close(loss, (weights * losses).sum() / weights.sum())
