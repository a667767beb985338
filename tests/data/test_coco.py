"""COCO's caption files."""

import json

import pytest
import torch
from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.data.coco import COCOCaptions
from vlkd_pl.data.transforms import clip_transform


@pytest.fixture
def files(tmp_path):
    """Two captioned pictures, one of them grey, and one without a caption."""
    for name, mode in (("a.jpg", "RGB"), ("b.png", "L")):
        Image.effect_noise((80, 70), 50).convert(mode).save(tmp_path / name)
    content = {
        "images": [
            {"id": 5, "file_name": "a.jpg"},
            {"id": 9, "file_name": "none.jpg"},
            {"id": 7, "file_name": "b.png"},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "caption": "grey"},
            {"id": 2, "image_id": 5, "caption": "one"},
            {"id": 3, "image_id": 5, "caption": "two"},
        ],
    }
    (tmp_path / "captions.json").write_text(json.dumps(content))
    return tmp_path


def test_pictures_with_their_captions(files):
    data = COCOCaptions(files / "captions.json", files, clip_transform(32))
    assert [(item["image_id"], item["references"]) for item in (data[0], data[1])] == [
        (5, ["one", "two"]),
        (7, ["grey"]),
    ]
    assert len(data) == 2
    assert data[1]["image"].shape == (3, 32, 32)
    torch.testing.assert_close(data[0]["image"], clip_transform(32)(Image.open(files / "a.jpg")))
    assert len(COCOCaptions(files / "captions.json", files, clip_transform(32), num_samples=1)) == 1


def test_missing_pictures_are_named(files):
    (files / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 pictures of .*captions.json are missing; first: .*b\.png"):
        COCOCaptions(files / "captions.json", files, clip_transform(32))


def test_wrong_files(files):
    with pytest.raises(FileNotFoundError, match="no caption file at"):
        COCOCaptions(files / "nothing.json", files, clip_transform(32))
    for content, message in (
        ("[]", "not a caption file"),
        ("{", "not a caption file"),
        ('{"images": [], "annotations": []}', "no picture"),
    ):
        (files / "wrong.json").write_text(content)
        with pytest.raises(MisconfigurationException, match=message):
            COCOCaptions(files / "wrong.json", files, clip_transform(32))
