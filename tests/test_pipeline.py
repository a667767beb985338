"""VLKD: pictures of every kind, one or many, in constant memory."""

import itertools
import json

import numpy as np
import pytest
import torch
from PIL import Image

from vlkd_pl import VLKD, Decoding
from vlkd_pl.cli import main
from vlkd_pl.data.transforms import clip_transform
from vlkd_pl.models.decoding import caption
from vlkd_pl.pipeline import open_picture

DECODING = Decoding(num_beams=2, max_new_tokens=4)


@pytest.fixture(scope="module")
def model(model_folder):
    return VLKD.from_pretrained(model_folder, device="cpu", batch_size=2)


@pytest.fixture
def files(world):
    return sorted((world.folder / "images" / "val").glob("*.jpg"))


def test_captions_are_those_of_the_model(model, files):
    transform = clip_transform(model.model.clip.image_size)
    tokens = model.model.clip.encode_image(torch.stack([transform(Image.open(file)) for file in files]))
    expected = [texts[0].text for texts in caption(model.model, tokens, 2, DECODING)]
    assert model.caption(files, 2, DECODING) == expected
    assert model.caption(str(files[0]), 2, DECODING) == expected[0]
    assert model.caption(files[0].parent, 2, DECODING) == expected


def test_paths_pictures_and_arrays_are_the_same(model, files):
    image = Image.open(files[0])
    array = np.asarray(image)
    kinds = [files[0], str(files[0]), image, array, array.astype(np.float32) / 255]
    assert len({model.caption(kind, 2, DECODING) for kind in kinds}) == 1
    pixels = [np.asarray(open_picture(kind)) for kind in kinds]
    assert all((other == pixels[0]).all() for other in pixels)


def test_grey_alpha_and_turned_pictures(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert (np.asarray(open_picture(grey)) == grey[..., None]).all()
    assert (np.asarray(open_picture(grey[..., None])) == grey[..., None]).all()
    assert open_picture(np.zeros((3, 4, 4), np.uint8)).mode == "RGB"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg").size == (20, 40)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 4, 3), np.uint8), "of shape .* is no picture"),
        (np.zeros((4, 4, 2), np.uint8), "of shape .* is no picture"),
        (np.zeros((4, 4, 3), np.int64), "an array of int64 is no picture"),
        (np.full((4, 4, 3), 255.0), r"must lie in \[0, 1\]"),
        (np.full((4, 4, 3), np.nan), r"must lie in \[0, 1\]"),
    ],
)
def test_arrays_that_are_no_pictures(model, array, message):
    with pytest.raises(ValueError, match=message):
        model.caption(array)


def test_a_stream_is_read_a_batch_at_a_time(model, files):
    taken = []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield files[number % len(files)]

    told = list(itertools.islice(model.iter_captions(endless(), 2, DECODING), 5))
    assert len(taken) == 6  # three batches of two
    assert told[0].picture == files[0]


def test_what_is_no_picture_is_told_in_its_place(model, files, tmp_path):
    (tmp_path / "bad.jpg").write_text("no picture")
    given = [tmp_path / "bad.jpg", tmp_path / "nothing.jpg", files[0], np.zeros((1, 2, 3, 4))]
    told = list(model.iter_captions(given, 2, DECODING))
    assert [bool(each.error) for each in told] == [True, True, False, True]
    assert told[0].error.startswith(f"{tmp_path}/bad.jpg: ")
    assert told[2].captions[0].text == model.caption(files[0], 2, DECODING)
    with pytest.raises(ValueError, match=r"nothing\.jpg"):
        model.caption([files[0], tmp_path / "nothing.jpg"])


def test_answers(model, files):
    questions = ["what is it?", "what color is the fish?"]
    answers = model.answer(files[0], questions)
    assert answers == [model.answer(files[0], question) for question in questions]
    found = model.answers(files[0], questions, decoding=Decoding(3, 6, num_candidates=3), scores=True)
    assert all(candidates[0].score >= candidates[-1].score for candidates in found)
    assert model.answer(files[0], "is it red?", candidates=["yes", "no"]) in ("yes", "no")
    assert isinstance(model.answer(files[0], "is it red?", caption_first=True), str)
    with pytest.raises(ValueError, match=r"nothing\.jpg"):
        model.answer("nothing.jpg", "what is it?")


def test_search_finds_the_nearest(model, files, tmp_path):
    (tmp_path / "bad.jpg").write_text("no picture")
    nearest, unread = model.search("a red fish", [files[0].parent, tmp_path], top=3)
    embedding = model.model.embed_texts(["a red fish"])[0]
    transform = clip_transform(model.model.clip.image_size)
    tokens = model.model.clip.encode_image(torch.stack([transform(Image.open(file)) for file in files]))
    cosines = dict(zip(files, (tokens[:, 0] @ embedding).tolist(), strict=True))
    assert [found.picture for found in nearest] == sorted(cosines, key=cosines.get, reverse=True)[:3]
    for found in nearest:
        assert found.score == pytest.approx(cosines[found.picture], abs=1e-5)
    assert [found.picture for found in unread] == [tmp_path / "bad.jpg"]


# The commands


def test_captions_of_files_and_folders(model_folder, files, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_text("no picture")
    settings = ["--model", str(model_folder), "--num-beams", "2", "--num-masks", "2"]
    assert main(["caption", str(files[0]), str(files[0].parent), *settings]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(files[0]), *map(str, files)]
    assert main(["caption", str(tmp_path / "bad.jpg"), str(files[0]), "--json", *settings]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"image": str(files[0]), "caption": lines[0].split(": ", 1)[1]}
    assert f"vlkd-pl caption: skipped {tmp_path}/bad.jpg: " in printed.err
    assert main(["caption", str(files[0]), "--top", "2", "--json", "--rerank", *settings]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["captions"][0]["score"] >= record["captions"][-1]["score"]


def test_asking(model_folder, files, capsys):
    settings = ["--model", str(model_folder)]
    assert main(["ask", str(files[0]), "what is it?", *settings]) == 0
    alone = capsys.readouterr().out.strip()
    assert main(["ask", str(files[0]), "what is it?", "where is it?", "--json", "--top", "3", *settings]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["question"] for record in records] == ["what is it?", "where is it?"]
    assert all(1 <= len(record["answers"]) <= 3 for record in records)
    assert main(["ask", str(files[0]), "what is it?", "where is it?", *settings]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"what is it? {alone}".strip()
    assert main(["ask", str(files[0]), "is it red?", "--candidates", "yes, no", "--top", "2", *settings]) == 0
    assert sorted(line.split()[-1] for line in capsys.readouterr().out.splitlines()) == ["no", "yes"]
    assert main(["ask", "nothing.jpg", "what is it?", *settings]) == 1
    assert "vlkd-pl ask: nothing.jpg: " in capsys.readouterr().err


def test_searching(model_folder, files, tmp_path, capsys):
    assert main(["search", "a red fish", str(files[0].parent), "--top", "2", "--model", str(model_folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert float(lines[0].split()[0]) >= float(lines[1].split()[0])
    assert main(["search", "a red fish", str(tmp_path), "--model", str(model_folder)]) == 1
    assert "there are no pictures" in capsys.readouterr().err


@pytest.mark.parametrize("command", [["caption", "a.jpg"], ["ask", "a.jpg", "what?"], ["search", "a fish", "."]])
def test_no_model(command, tmp_path, capsys):
    assert main([*command, "--model", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"vlkd-pl {command[0]}: {tmp_path}/config.json is missing")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            "runs/nope",
            "model cannot be loaded from runs/nope: there is no such folder, and the Hugging Face hub is not asked",
        ),
        ("./nope", "VLKD model cannot be loaded from ./nope: there is no such folder; give the folder"),
        ("a/b/c", "VLKD model cannot be loaded from a/b/c: there is no such folder; give the folder"),
        ("https://example.org/a", "VLKD model cannot be loaded from https://example.org/a: addresses are not read"),
        ("file.txt", "VLKD model cannot be loaded from file.txt: it is a file"),
    ],
)
def test_a_model_that_is_missing_is_refused_at_once(model, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "file.txt").write_text("a")
    monkeypatch.setattr("vlkd_pl.model_files.HfApi", None)  # nothing may be asked
    assert main(["caption", "a.jpg", "--model", model]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_hub_is_asked_once(monkeypatch, capsys):
    asked = []

    class Hub:
        def model_info(self, name, timeout):
            asked.append((name, timeout))
            raise OSError("no network")

    monkeypatch.setattr("vlkd_pl.model_files.HfApi", Hub)
    assert main(["caption", "a.jpg", "--model", "nobody/nothing"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the Hugging Face hub does not answer (no network); give the folder" in line
    assert asked == [("nobody/nothing", 5)]


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta", ""])
def test_a_device_that_is_missing_is_refused_before_the_model_is_loaded(device, capsys):
    assert main(["caption", "a.jpg", "--model", "nowhere", "--device", device]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the device {device!r} cannot be used" in line
    assert "this machine has cpu" in line
