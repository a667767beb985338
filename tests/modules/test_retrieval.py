"""RetrievalModule through the command line, against ranks counted in a loop."""

import json

import pytest
import torch
from evaluations import arguments, written

from vlkd_pl.cli import main
from vlkd_pl.commands.train import run
from vlkd_pl.modules.vlkd import VLKDModule


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
        assert scores[f"{name}_2_text_to_image_r1"] == pytest.approx(sum(fold[1] for fold in folds) / 3)


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


def test_captions_are_ranked_for_each_image(world, model_folder, tmp_path):
    done = run(arguments("retrieval_coco", world, model_folder, tmp_path, "predict"))
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    samples, model = done.datamodule.samples, done.model.model
    assert [row["image_id"] for row in rows] == [sample.image_id for sample in samples]
    captions = list(dict.fromkeys(text for sample in samples for text in sample.references))
    batch = next(iter(done.datamodule.predict_dataloader()))
    with torch.no_grad():
        cosines = model.clip.encode_image(batch["image"])[0, 0] @ model.embed_texts(captions).T
    order = cosines.argsort(descending=True).tolist()
    assert rows[0]["captions"] == [captions[index] for index in order[:5]]
    assert rows[0]["scores"] == pytest.approx(cosines[order[:5]].tolist(), abs=1e-5)
    assert rows[0]["rank"] == 1 + min(order.index(captions.index(text)) for text in samples[0].references)


@pytest.mark.parametrize(
    ("name", "module"), [("retrieval_coco", "RetrievalModule"), ("classification", "ClassificationModule")]
)
def test_a_fit_is_refused_before_the_model_is_loaded(world, tmp_path, capsys, name, module):
    assert main(arguments(name, world, tmp_path / "missing", tmp_path, "fit")) == 1
    assert f"{module} only evaluates: train with vlkd-pl fit and VLKDModule" in capsys.readouterr().err.splitlines()[-1]


def test_data_without_captions_is_refused_in_one_line(world, model_folder, tmp_path, capsys):
    command = ["predict", "--model=vlkd_pl.RetrievalModule", f"--model.init_from={model_folder}"]
    command += ["--data=vlkd_pl.FolderDataModule", f"--data.images={world.folder / 'images'}", "--data.num_workers=0"]
    command += ["--trainer.accelerator=cpu", "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path}"]
    assert main(command) == 1
    assert "RetrievalModule needs images with captions" in capsys.readouterr().err.splitlines()[-1]


def test_a_checkpoint_of_a_trained_module_is_tested(world, model_folder, tmp_path):
    trained = VLKDModule(init_from=str(model_folder))
    checkpoint = {"state_dict": trained.state_dict(), "pytorch-lightning_version": "2.6", "epoch": 0, "global_step": 1}
    trained.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "trained.ckpt")
    for folder, options in (("folder", {}), ("checkpoint", {"ckpt_path": tmp_path / "trained.ckpt"})):
        run(arguments("retrieval_coco", world, model_folder, tmp_path / folder, **options))
    assert written(tmp_path / "folder", "scores.json") == written(tmp_path / "checkpoint", "scores.json")
