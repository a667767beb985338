"""ClassificationModule through the command line."""

import pytest
import torch
from evaluations import arguments, written
from torch.nn.functional import normalize

from vlkd_pl.commands.train import run


def test_classes_are_the_nearest_names(world, model_folder, tmp_path, capsys):
    done = run(arguments("classification", world, model_folder, tmp_path))
    model, data = done.model.model, done.datamodule
    assert data.class_names == sorted(data.class_names)
    batches = list(data.test_dataloader())
    labels = torch.tensor([sample.label for batch in batches for sample in batch["samples"]])
    images = torch.cat([model.clip.encode_image(batch["image"])[:, 0] for batch in batches])
    scores = written(tmp_path, "scores.json")["scores"]
    classes = {}
    for name in data.class_names:
        texts = [f"a {name}", f"there is a {name}"]
        classes.setdefault("bart", []).append(normalize(model.embed_texts(texts).mean(0), dim=0))
        by_clip = model.clip.encode_text(data.clip_tokenizer(texts))
        classes.setdefault("clip", []).append(normalize(by_clip.mean(0), dim=0))
    for name, embeddings in classes.items():
        nearest = (images @ torch.stack(embeddings).T).topk(5).indices
        right = nearest == labels[:, None]
        assert scores[f"{name}_top_1_accuracy"] == pytest.approx(right[:, 0].float().mean().item())
        assert scores[f"{name}_top_5_accuracy"] == pytest.approx(right.any(1).float().mean().item())
    results = written(tmp_path, "predictions.json")
    assert {result["truth"] for result in results} == set(data.class_names)
    assert f"{len(labels)} images, {len(data.class_names)} classes" in capsys.readouterr().out
    assert (tmp_path / "panels" / "test_captions_000000.png").is_file()


def test_classes_are_predicted(world, model_folder, tmp_path):
    done = run(arguments("classification", world, model_folder, tmp_path, "predict"))
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == len(done.datamodule.samples)
