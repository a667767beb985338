"""The pretraining of the sample world's models, in miniature, through the command line."""

from pathlib import Path

import pytest
import torch

from vlkd_pl.commands.train import run
from vlkd_pl.models.decoding import Decoding, caption
from vlkd_pl.models.vlkd import VLKDModel
from vlkd_pl.sample.tokenizers import clip_merges, train_bart_tokenizer

CONFIGS = Path(__file__).parents[2] / "configs" / "sample"
TRAINER = [
    "--trainer.max_steps=3",
    "--trainer.val_check_interval=3",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.logger=false",
]


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Folders of a CLIP and a BART after three steps each, and the metrics of both."""
    folder = tmp_path_factory.mktemp("pretrained")
    (folder / "merges.txt.gz").write_bytes(clip_merges())
    train_bart_tokenizer(folder / "tokenizer", num_lines=2000)
    metrics = {}
    for name, source in (("clip", "merges"), ("bart", "tokenizer")):
        path = folder / {"merges": "merges.txt.gz", "tokenizer": "tokenizer"}[source]
        options = [
            f"--model.init_args.output={folder / name}",
            f"--model.init_args.{source}={path}",
            f"--data.init_args.{source}={path}",
            "--data.init_args.batch_size=16",
            "--data.init_args.num_val_batches=1",
            f"--trainer.default_root_dir={folder}",
        ]
        done = run(["fit", "--config", str(CONFIGS / f"{name}.yaml"), *options, *TRAINER])
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
    assert 0 < metrics["bart"]["train/loss"] < 10
    assert 0 <= metrics["bart"]["val/exact"] <= 1
