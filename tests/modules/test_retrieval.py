"""RetrievalModule through the command line, against ranks counted in a loop."""

import json

import pytest
import torch
from evaluations import arguments, written

from vlkd_pl.commands.train import run


def recall(image_embedding, text_embedding, owners, k):
    """Recall@k both ways; with random weights there are no ties."""
    similarity = text_embedding @ image_embedding.T
    text_to_image = [owner in row.topk(k).indices for row, owner in zip(similarity, owners, strict=True)]
    image_to_text = [
        any(owners[text] == image for text in similarity[:, image].topk(k).indices)
        for image in range(len(image_embedding))
    ]
    return sum(image_to_text) / len(image_to_text), sum(text_to_image) / len(text_to_image)


def test_recall_of_both_text_encoders(world, model_folder, tmp_path):
    done = run(arguments("retrieval_coco", world, model_folder, tmp_path, model__init_args__fold_size=2))
    scores = written(tmp_path, "scores.json")["scores"]
    module, batches = done.model, list(done.datamodule.test_dataloader())
    samples = [sample for batch in batches for sample in batch["samples"]]
    with torch.no_grad():
        images = torch.cat([module.model.clip.encode_image(batch["image"])[:, 0] for batch in batches])
        texts = [text for sample in samples for text in sample.references]
        owners = [row for row, sample in enumerate(samples) for _ in sample.references]
        encoders = {
            "bart": module.model.embed_texts(texts),
            "clip": module.model.clip.encode_text(done.datamodule.clip_tokenizer(texts)),
        }
    for name, embedding in encoders.items():
        for k in (1, 5):
            image_to_text, text_to_image = recall(images, embedding, owners, k)
            assert scores[f"{name}_6_image_to_text_r{k}"] == pytest.approx(image_to_text)
            assert scores[f"{name}_6_text_to_image_r{k}"] == pytest.approx(text_to_image)
        rows = [[i for i, owner in enumerate(owners) if owner // 2 == fold] for fold in range(3)]
        folds = [
            recall(
                images[2 * fold : 2 * fold + 2], embedding[rows[fold]], [owners[i] - 2 * fold for i in rows[fold]], 1
            )
            for fold in range(3)
        ]
        assert scores[f"{name}_2_text_to_image_r1"] == pytest.approx(sum(each[1] for each in folds) / 3)


def test_a_folder_of_ones_own(world, model_folder, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    for path in sorted((world.folder / "images" / "val").glob("*.jpg")):
        (tmp_path / "images" / path.name).write_bytes(path.read_bytes())
        (tmp_path / "images" / path.name).with_suffix(".txt").write_text(f"{path.stem}\na image\n")
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path), "name": "", "version": ""}}
    run(
        [
            "test",
            "--model=vlkd_pl.RetrievalModule",
            f"--model.init_from={model_folder}",
            "--data=vlkd_pl.CaptionFolderDataModule",
            f"--data.images={tmp_path / 'images'}",
            "--data.num_workers=0",
            "--trainer.accelerator=cpu",
            f"--trainer.logger={json.dumps(logger)}",
        ]
    )
    assert "6 images, 12 captions" in capsys.readouterr().out
    assert 0 <= written(tmp_path, "scores.json")["scores"]["bart_6_text_to_image_r1"] <= 1
