"""vlkd-pl caption: one line for each picture, and files that are none."""

import pytest
from PIL import Image

from vlkd_pl.cli import main
from vlkd_pl.models.vlkd import VLKDModel


@pytest.fixture(scope="module")
def folder(clip_folder, bart_folder, tmp_path_factory):
    """A model folder."""
    folder = tmp_path_factory.mktemp("model")
    VLKDModel.load(str(clip_folder), str(bart_folder), "patches").save_pretrained(folder)
    return folder


def test_every_picture_gets_a_line(folder, tmp_path, capsys):
    for name, mode, size in (("a.jpg", "RGB", (90, 70)), ("b.png", "RGBA", (30, 200)), ("c.gif", "P", (64, 64))):
        Image.effect_noise(size, 90).convert(mode).save(tmp_path / name)
    paths = [str(tmp_path / name) for name in ("a.jpg", "b.png", "c.gif")]
    assert main(["caption", *paths, "--model", str(folder), "--num-beams", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines if line.startswith(str(tmp_path))] == paths


def test_what_is_no_picture_is_named_and_skipped(folder, tmp_path, capsys):
    Image.effect_noise((40, 40), 90).convert("RGB").save(tmp_path / "good.jpg")
    (tmp_path / "bad.jpg").write_text("no picture")
    paths = [str(tmp_path / name) for name in ("bad.jpg", "nothing.jpg", "good.jpg")]
    assert main(["caption", *paths, "--model", str(folder), "--num-beams", "1"]) == 1
    printed = capsys.readouterr()
    assert f"{tmp_path}/good.jpg: " in printed.out
    assert f"skipped {tmp_path}/bad.jpg" in printed.err
    assert f"skipped {tmp_path}/nothing.jpg" in printed.err


def test_no_model(tmp_path, capsys):
    assert main(["caption", "a.jpg", "--model", str(tmp_path)]) == 1
    assert f"there is no model in {tmp_path}" in capsys.readouterr().err
