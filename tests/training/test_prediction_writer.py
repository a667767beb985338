"""vlkd-pl predict: a JSON line for each prediction, from one process and from two."""

import json

import pytest
from distilling import begin_ranks, joined
from evaluations import arguments
from PIL import Image

from vlkd_pl.cli import main


@pytest.fixture
def images(world, tmp_path):
    """Six images, one of them below, and a file that is none."""
    folder = tmp_path / "images"
    (folder / "below").mkdir(parents=True)
    for number, path in enumerate(sorted((world.folder / "images" / "val").glob("*.jpg"))):
        (folder / ("below" if number == 0 else "") / path.name).write_bytes(path.read_bytes())
    (folder / "bad.jpg").write_text("no image")
    return folder


def lines(folder):
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_captions_of_a_folder(world, model_folder, images, tmp_path, capsys):
    options = {"data__init_args__images": images}
    assert main(arguments("predict_captions", world, model_folder, tmp_path / "run", "predict", **options)) == 1
    predictions = lines(tmp_path / "run")
    names = [str(path.relative_to(images)) for path in images.rglob("0*.jpg")]
    assert sorted(prediction["image_id"] for prediction in predictions) == sorted(names)
    assert all(isinstance(prediction["caption"], str) for prediction in predictions)
    printed = capsys.readouterr()
    assert f"skipped {images}/bad.jpg: " in printed.err
    assert "6 predictions, 1 images skipped" in printed.out


def test_every_image_read_is_success(world, model_folder, images, tmp_path):
    Image.new("RGB", (70, 50)).save(images / "bad.jpg")
    options = {"data__init_args__images": images}
    assert main(arguments("predict_captions", world, model_folder, tmp_path / "run", "predict", **options)) == 0
    assert len(lines(tmp_path / "run")) == 7


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("ddp_spawn", marks=pytest.mark.slow)])
def test_two_processes_write_one_file(world, model_folder, images, tmp_path, strategy):
    options = {"data__init_args__images": images, "data__init_args__batch_size": 2}
    main(arguments("predict_captions", world, model_folder, tmp_path / "one", "predict", **options))
    command = arguments("predict_captions", world, model_folder, tmp_path / "two", "predict", **options)
    if strategy == "ddp":
        assert joined(begin_ranks(command)) == [1, 1]  # since one file is not a readable image
    else:
        main([*command, "--trainer.devices=2", f"--trainer.strategy={strategy}"])
    one, two = (sorted(lines(tmp_path / name), key=lambda item: item["image_id"]) for name in ("one", "two"))
    assert one == two
    assert [path.name for path in (tmp_path / "two").glob("predictions*")] == ["predictions.jsonl"]


def test_answers(world, model_folder, tmp_path):
    assert main(arguments("zeroshot_vqav2", world, model_folder, tmp_path, "predict")) == 0
    questions = json.loads((world.folder / "vqa_questions_test.json").read_text())["questions"]
    predictions = lines(tmp_path)
    assert {(prediction["question_id"], prediction["question"]) for prediction in predictions} == {
        (question["question_id"], question["question"]) for question in questions
    }
