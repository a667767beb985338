"""The sample world's files."""

import io
import json
import random
import tarfile

from PIL import Image

from vlkd_pl.data.sample.scenes import distinct_scenes
from vlkd_pl.data.sample.writers import write_coco_captions, write_shards, write_world


def test_shards_are_in_img2dataset_layout(tmp_path):
    write_shards(tmp_path, 10, 3, random.Random(0))
    keys = []
    for path in sorted(tmp_path.glob("*.tar")):
        with tarfile.open(path) as archive:
            names = archive.getnames()
            for name in names[::3]:
                key = name.removesuffix(".jpg")
                assert {f"{key}.jpg", f"{key}.txt", f"{key}.json"} <= set(names)
                image = Image.open(io.BytesIO(archive.extractfile(name).read()))
                assert (image.format, image.mode) == ("JPEG", "RGB")
                caption = archive.extractfile(f"{key}.txt").read().decode()
                assert json.loads(archive.extractfile(f"{key}.json").read())["caption"] == caption
                keys.append(key)
    assert keys == [f"{index:09d}" for index in range(10)]


def test_coco_captions(tmp_path):
    write_coco_captions(tmp_path, "test", distinct_scenes(random.Random(0), "test", 4), 7, random.Random(0))
    content = json.loads((tmp_path / "captions_test.json").read_text())
    assert [image["id"] for image in content["images"]] == [7, 8, 9, 10]
    assert all((tmp_path / "images" / image["file_name"]).is_file() for image in content["images"])
    assert len({annotation["id"] for annotation in content["annotations"]}) == 20
    assert {annotation["image_id"] for annotation in content["annotations"]} == {7, 8, 9, 10}


def test_the_same_seed_writes_the_same_world(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_world(tmp_path / name, 6, 2, 20, 3, seed)
    files = {
        name: sorted(p.relative_to(tmp_path / name) for p in (tmp_path / name).rglob("*") if p.is_file())
        for name in "abc"
    }
    assert files["a"] == files["b"] == files["c"]
    contents = {name: [(tmp_path / name / file).read_bytes() for file in files[name]] for name in "abc"}
    assert contents["a"] == contents["b"] != contents["c"]
    assert {"clip", "bart", "shards", "images", "corpus.txt"} <= {file.parts[0] for file in files["a"]}
