"""VLKD: images of every kind, one or many, in constant memory."""

import io
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import PIXELS, encoded, exif, jpeg, segment, with_exif
from PIL import Image

from vlkd_pl import VLKD, Decoding
from vlkd_pl.cli import main
from vlkd_pl.clip.transform import clip_transform
from vlkd_pl.data.image_inputs import to_image
from vlkd_pl.datamodules.image_folder import FolderDataModule
from vlkd_pl.models.decoding import caption

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


def test_paths_images_and_arrays_are_the_same(model, files):
    image = Image.open(files[0])
    array = np.asarray(image)
    kinds = [files[0], str(files[0]), image, array, array.astype(np.float32) / 255]
    assert len({model.caption(kind, 2, DECODING) for kind in kinds}) == 1
    pixels = [np.asarray(to_image(kind)) for kind in kinds]
    assert all((other == pixels[0]).all() for other in pixels)


def test_grey_alpha_and_turned_images(tmp_path):
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert (np.asarray(to_image(grey)) == grey[..., None]).all()
    assert (np.asarray(to_image(grey[..., None])) == grey[..., None]).all()
    assert to_image(np.zeros((3, 4, 4), np.uint8)).mode == "RGB"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (40, 20)).save(tmp_path / "turned.jpg", exif=exif)
    assert to_image(tmp_path / "turned.jpg").size == (20, 40)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 4, 3), np.uint8), "of shape .* is not an image"),
        (np.zeros((4, 4, 2), np.uint8), "of shape .* is not an image"),
        (np.zeros((4, 4, 3), np.int64), "an array of int64 is not an image"),
        (np.full((4, 4, 3), 255.0), r"must lie in \[0, 1\]"),
        (np.full((4, 4, 3), np.nan), r"must lie in \[0, 1\]"),
        (np.zeros((4, 4, 3), complex), "an array of complex128 is not an image"),
        (np.array([["a.jpg"]]), "an array of <U5 is not an image"),
        (np.zeros((0, 0, 3), np.uint8), "0 x 0 pixels is empty"),
        (np.zeros((5, 0, 3)), "0 x 5 pixels is empty"),
        (np.zeros((0, 5)), "5 x 0 pixels is empty"),
        (np.zeros((1, 600_000, 3), np.uint8), "600000 x 1 pixels is too thin"),
        (np.broadcast_to(np.float64(0), (50_000, 50_000, 3)), "too large"),
        (Image.new("RGB", (0, 5)), "is empty"),
        (Image.new("L", (60_000, 1)), "too thin"),
        (Image.new("F", (5, 5)), "its pixels are floats"),
    ],
)
def test_arrays_and_images_that_are_refused(model, array, message):
    with pytest.raises(ValueError, match=message):
        model.caption(array)
    with pytest.raises(ValueError, match=message):
        model.answer(array, "what?")
    assert [bool(result.error) for result in model.iter_captions([array])] == [True]


# One image, several, and what is neither


def test_a_string_is_one_path(model, files, monkeypatch):
    monkeypatch.setattr(
        "vlkd_pl.data.image_inputs.iter_image_files",
        lambda paths: pytest.fail("/") if "/" in paths else iter(map(Path, paths)),
    )
    for path in (str(files[0]), files[0]):
        assert [result.image for result in model.iter_captions(path, 2, DECODING)] == [files[0]]
        assert [result.image for result in model.search("a fish", path)[0]] == [files[0]]
        assert model.caption(path, 2, DECODING) == model.caption([path], 2, DECODING)[0]


def test_one_image_stands_for_a_list_of_one(model, files):
    folder = files[0].parent
    image = Image.open(files[0])
    for inputs in (image, np.asarray(image)):
        (result,) = model.iter_captions(inputs, 2, DECODING)
        assert result.captions[0].text == model.caption(inputs, 2, DECODING) == model.caption(files[0], 2, DECODING)
        assert len(model.search("a fish", inputs)[0]) == 1
    for inputs in (folder, str(folder), [folder], (file for file in files), tuple(map(str, files))):
        assert len(list(model.iter_captions(inputs, 2, DECODING))) == len(files)
    assert len(model.search("a fish", str(folder))[0]) == len(files)


@pytest.mark.parametrize("nothing", [[], (), iter([])])
def test_no_images(model, nothing, tmp_path):
    assert model.caption(nothing) == []
    assert list(model.iter_captions(nothing)) == []
    assert model.search("a fish", nothing) == ([], [])
    assert model.caption(tmp_path) == []


@pytest.mark.parametrize(
    "images",
    [
        None,
        3,
        3.5,
        b"\xff\xd8",
        bytearray(b"x"),
        memoryview(b"x"),
        {"a.jpg": 1},
        {"a.jpg"},
        frozenset({"a.jpg"}),
        io.BytesIO(b"x"),
        torch.zeros(3, 8, 8),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
    ],
    ids=lambda images: type(images).__name__,
)
def test_an_unreadable_file_is_a_type_error_at_once(model, images, files):
    name = type(images).__name__
    for call in (model.caption, model.iter_captions, lambda images: model.search("a fish", images)):
        with pytest.raises(TypeError, match=f"^images has the type {name}: give a path, a PIL image, or a NumPy array"):
            call(images)
    with pytest.raises(TypeError, match=rf"^images\[1\] has the type {name}: give a path"):
        model.caption([files[0], images])
    with pytest.raises(TypeError, match=f"^image has the type {name}: give a path"):
        model.answers(images, "what?")


def test_a_list_in_a_list_is_a_type_error(model, files):
    with pytest.raises(TypeError, match=r"^images\[0\] has the type list"):
        model.caption([files])
    with pytest.raises(TypeError, match=r"^image has the type list"):
        model.answer(files, "what?")


def test_one_question_is_a_list_of_one(model, files):
    (candidates,) = model.answers(files[0], "what is it?")
    assert candidates[0].text == model.answer(files[0], "what is it?")
    assert model.answers(files[0], []) == model.answer(files[0], []) == []
    assert len(model.answers(files[0], (question for question in ("what?", "where?")))) == 2


def test_empty_texts_are_refused(model, files):
    for empty in ("", " \n", "\0", "\u200b"):
        with pytest.raises(ValueError, match=r"^the question is empty: give one word"):
            model.answer(files[0], empty)
        with pytest.raises(ValueError, match=r"^question 2 is empty"):
            model.answers(files[0], ["what?", empty])
        with pytest.raises(ValueError, match=r"^the text to search for is empty"):
            model.search(empty, files)
    for wrong in (None, 3, ["a fish"]):
        with pytest.raises(TypeError, match=r"^the text to search for has the type"):
            model.search(wrong, files)
    with pytest.raises(TypeError, match=r"^the question has the type int: give a string"):
        model.answers(files[0], [3])
    with pytest.raises(TypeError, match="candidates has the type str: give a list"):
        model.answer(files[0], "what?", candidates="yes, no")


def test_a_folder_is_no_image_to_ask_about(model, files):
    with pytest.raises(ValueError, match="val: it is a folder"):
        model.answer(files[0].parent, "what?")


def test_a_stream_is_read_a_batch_at_a_time(model, files):
    taken = []

    def endless():
        for number in itertools.count():
            taken.append(number)
            yield files[number % len(files)]

    captioned = list(itertools.islice(model.iter_captions(endless(), 2, DECODING), 5))
    assert len(taken) == 6  # three batches of two
    assert captioned[0].image == files[0]


def test_an_unreadable_file_is_reported_in_its_place(model, files, tmp_path):
    (tmp_path / "bad.jpg").write_text("no image")
    inputs = [tmp_path / "bad.jpg", tmp_path / "nothing.jpg", files[0], np.zeros((1, 2, 3, 4))]
    captioned = list(model.iter_captions(inputs, 2, DECODING))
    assert [bool(item.error) for item in captioned] == [True, True, False, True]
    assert captioned[0].error.startswith(f"{tmp_path}/bad.jpg: ")
    assert captioned[2].captions[0].text == model.caption(files[0], 2, DECODING)
    with pytest.raises(ValueError, match=r"nothing\.jpg"):
        model.caption([files[0], tmp_path / "nothing.jpg"])


def test_answers(model, files):
    questions = ["what is it?", "what color is the fish?"]
    answers = model.answer(files[0], questions)
    assert answers == [model.answer(files[0], question) for question in questions]
    results = model.answers(files[0], questions, decoding=Decoding(3, 6, num_candidates=3), scores=True)
    assert all(candidates[0].score >= candidates[-1].score for candidates in results)
    assert model.answer(files[0], "is it red?", candidates=["yes", "no"]) in ("yes", "no")
    assert isinstance(model.answer(files[0], "is it red?", caption_first=True), str)
    with pytest.raises(ValueError, match=r"nothing\.jpg"):
        model.answer("nothing.jpg", "what is it?")


def test_search_finds_the_nearest(model, files, tmp_path):
    (tmp_path / "bad.jpg").write_text("no image")
    nearest, unread = model.search("a red fish", [files[0].parent, tmp_path], top=3)
    embedding = model.model.embed_texts(["a red fish"])[0]
    transform = clip_transform(model.model.clip.image_size)
    tokens = model.model.clip.encode_image(torch.stack([transform(Image.open(file)) for file in files]))
    cosines = dict(zip(files, (tokens[:, 0] @ embedding).tolist(), strict=True))
    assert [result.image for result in nearest] == sorted(cosines, key=cosines.get, reverse=True)[:3]
    for result in nearest:
        assert result.score == pytest.approx(cosines[result.image], abs=1e-5)
    assert [result.image for result in unread] == [tmp_path / "bad.jpg"]


# The commands


def test_captions_of_files_and_folders(model_folder, files, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_text("no image")
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


def write_zoo(folder):
    """Good and refused images of every kind."""
    good = {
        "damaged_exif.jpg": jpeg(segment(0xE1, b"Exif\0\0" + exif((0x011A, 2, 4, b"72\0\0"), (0x0128, 3, 1, 2)))),
        "negative_exif.png": with_exif(exif((0x0112, 9, 1, b"\xff" * 4)))["png"],
        "grey.bmp": encoded(PIXELS.convert("L"), "BMP"),
        "palette.gif": encoded(PIXELS.convert("P"), "GIF"),
        "named.png": encoded(image_format="TIFF"),
    }
    refused = {
        "line.png": encoded(Image.new("RGB", (1, 60_000))),
        "postscript.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
        "truncated.jpg": encoded(PIXELS.resize((300, 200)), "JPEG")[:-300],
        "empty.jpg": b"",
        "float.tif": encoded(Image.new("F", (9, 9)), "TIFF"),
        "text.webp": b"no image",
    }
    for name, content in (good | refused).items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "fifo.jpg")
    (folder / "zero.png").symlink_to("/dev/zero")
    return sorted(good), sorted([*refused, "fifo.jpg", "zero.png"])


def skipped(printed, command):
    lines = printed.err.splitlines()
    assert all(line.startswith(f"vlkd-pl {command}: skipped ") for line in lines)
    return sorted(Path(line.split("skipped ")[1].split(": ")[0]).name for line in lines)


def test_all_commands_take_the_same_files(model_folder, tmp_path, capsys):
    good, refused = write_zoo(tmp_path)
    model = ["--model", str(model_folder)]
    assert main(["caption", str(tmp_path), "--num-beams", "1", *model]) == 1
    printed = capsys.readouterr()
    assert sorted(Path(line.split(": ")[0]).name for line in printed.out.splitlines()) == good
    assert skipped(printed, "caption") == refused
    assert main(["search", "a fish", str(tmp_path), *model]) == 1
    printed = capsys.readouterr()
    assert sorted(Path(line.split()[1]).name for line in printed.out.splitlines()) == good
    assert skipped(printed, "search") == refused
    for name in (*good, *refused):
        assert main(["ask", str(tmp_path / name), "what is it?", *model]) == int(name in refused)
        lines = capsys.readouterr().err.splitlines()
        assert lines == [] if name in good else lines[0].startswith(f"vlkd-pl ask: {tmp_path / name}: ")
        assert len(lines) == int(name in refused)
    # what vlkd-pl predict reads
    module = FolderDataModule(str(tmp_path), clip=str(model_folder / "clip"), num_workers=0)
    module.setup("predict")
    (batch,) = module.predict_dataloader()
    assert sorted(sample.image_id for sample in batch["samples"]) == good
    assert sorted(Path(line.split(": ")[0]).name for line in batch["unreadable"]) == refused
    module = FolderDataModule(str(tmp_path / good[0]), clip=str(model_folder / "clip"), num_workers=0)
    module.setup("predict")
    assert [sample.image_id for sample in module.samples] == [good[0]]


@pytest.mark.parametrize(
    "command",
    [["ask", "a.png", ""], ["ask", "a.png", "what?", " "], ["search", "", "a.png"], ["search", "\t", "a.png"]],
)
def test_empty_texts_are_refused_in_one_line(command, model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(encoded())
    assert main([*command, "--model", str(model_folder)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "is empty: give one word at least" in line


ODD_NAMES = [b"caf\xe9.png", "h\u00e4\u2603.png".encode(), b"new\nline.png", b"bad\xff.jpg"]


def run_commands(inputs, coding, monkeypatch):
    """Runs commands with an output of a coding, which is that of a new process in the C locale where it is empty."""
    if not coding:
        code = "import sys, json\nfrom vlkd_pl.cli import main\nprint(list(map(main, json.loads(sys.argv[1]))))"
        environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": ""}
        done = subprocess.run([sys.executable, "-c", code, json.dumps(inputs)], capture_output=True, env=environment)
        return done.stdout, done.stderr
    streams = [io.TextIOWrapper(io.BytesIO(), *coding.split(":")) for _ in range(2)]
    for name, stream in zip(("stdout", "stderr"), streams, strict=True):
        monkeypatch.setattr(sys, name, stream)
    print(list(map(main, inputs)))
    for stream in streams:
        stream.flush()
    return [stream.buffer.getvalue() for stream in streams]


@pytest.mark.parametrize("coding", ["ascii:strict", "utf-8:strict", "latin-1:strict", "utf-8:surrogateescape", ""])
def test_names_that_an_output_cannot_show_do_not_stop_commands(model_folder, tmp_path, monkeypatch, coding):
    for name in ODD_NAMES:
        (tmp_path / os.fsdecode(name)).write_bytes(b"no image" if name.startswith(b"bad") else encoded())
    commands = [["caption", str(tmp_path), "--num-beams", "1"], ["search", "a fish", str(tmp_path)]]
    commands += [["ask", str(tmp_path / os.fsdecode(ODD_NAMES[0])), "what?"]]
    inputs = [[*command, *more, "--model", str(model_folder)] for command in commands for more in ([], ["--json"])]
    output, errors = run_commands(inputs, coding, monkeypatch)
    assert b"Traceback" not in errors
    lines = output.splitlines()
    assert lines[-1] == b"[1, 1, 1, 1, 0, 0]"
    assert errors.count(b"skipped") == 4
    records = [json.loads(line) for line in lines if line.startswith(b"{")]
    names = [os.path.basename(os.fsencode(record["image"])) for record in records]
    good = sorted(name for name in ODD_NAMES if not name.startswith(b"bad"))
    assert sorted(names[:3]) == sorted(names[3:6]) == good
    assert names[6] == ODD_NAMES[0]


def test_searching(model_folder, files, tmp_path, capsys):
    assert main(["search", "a red fish", str(files[0].parent), "--top", "2", "--model", str(model_folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert float(lines[0].split()[0]) >= float(lines[1].split()[0])
    assert main(["search", "a red fish", str(tmp_path), "--model", str(model_folder)]) == 1
    assert "no image found" in capsys.readouterr().err


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
            "model cannot be loaded from runs/nope: there is no such folder, and the Hugging Face hub is not used",
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
    monkeypatch.setattr("vlkd_pl.weights.model_files.HfApi", None)  # nothing may be asked
    assert main(["caption", "a.jpg", "--model", model]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_the_hub_is_asked_once(monkeypatch, capsys):
    requests = []

    class Hub:
        def model_info(self, name, timeout):
            requests.append((name, timeout))
            raise OSError("no network")

    monkeypatch.setattr("vlkd_pl.weights.model_files.HfApi", Hub)
    assert main(["caption", "a.jpg", "--model", "nobody/nothing"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the Hugging Face hub does not answer (no network); give the folder" in line
    assert requests == [("nobody/nothing", 5)]


@pytest.mark.parametrize("device", ["nonsense", "cuda:99", "meta", ""])
def test_a_device_that_is_missing_is_refused_before_the_model_is_loaded(device, capsys):
    assert main(["caption", "a.jpg", "--model", "nowhere", "--device", device]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the device {device!r} cannot be used" in line
    assert "this machine has cpu" in line
