"""The sample world's files."""

import io
import json
import random
import re
import tarfile

import pytest
from PIL import Image
from scenes_of_captions import scene_of

from vlkd_pl.sample.language import WHERE, captions
from vlkd_pl.sample.scenes import (
    OBJECTS,
    UNSEEN_COMBINATIONS,
    distinct_scenes,
)
from vlkd_pl.sample.writers import write_classes, write_coco_captions, write_nocaps, write_shards, write_world

NUM_EVALUATION = 20


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole_world")
    write_world(folder, 6, 2, 20, NUM_EVALUATION, seed=3)
    return folder


def content(path):
    """The pixels of an image of the sample world."""
    with Image.open(path) as image:
        assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (64, 64))
        return image.tobytes()


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


@pytest.mark.parametrize("split", ["val", "test", "unseen"])
def test_the_scenes_follow_from_the_split_and_the_seed_alone(world, split):
    content = json.loads((world / f"captions_{split}.json").read_text())
    scenes = distinct_scenes(random.Random(f"{split} 3"), split, NUM_EVALUATION)
    texts = [annotation["caption"] for annotation in content["annotations"]]
    assert texts == [caption for scene in scenes for caption in captions(scene)]


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_documents_tell_the_scenes_of_their_split(world, split):
    documents, summaries = (
        (world / "xsum" / f"{split}.{end}").read_text().splitlines() for end in ("source", "target")
    )
    texts = json.loads((world / f"captions_{split}.json").read_text())["annotations"]
    assert summaries == [annotation["caption"] for annotation in texts[::5]]
    for text, summary in zip(documents, summaries, strict=True):
        scene = scene_of(summary)
        assert all(name in text for name in (WHERE[scene.place], *(item.object for item in scene.items)))


@pytest.mark.parametrize("split", ["val", "test", "unseen"])
@pytest.mark.parametrize("name", ["vqa", "okvqa"])
def test_questions_are_asked_of_the_images_of_their_split(world, split, name):
    images = {image["id"]: image for image in json.loads((world / f"captions_{split}.json").read_text())["images"]}
    image_ids = {q["image_id"] for q in json.loads((world / f"{name}_questions_{split}.json").read_text())["questions"]}
    assert image_ids <= images.keys()
    assert name == "okvqa" or image_ids == images.keys()
    assert all((world / "images" / split / f"{image_id:012d}.jpg").is_file() for image_id in image_ids)


def test_nocaps_is_in_the_benchmark_layout(world):
    val = json.loads((world / "nocaps_val_captions.json").read_text())
    test = json.loads((world / "nocaps_test_image_info.json").read_text())
    assert val.keys() == {"info", "licenses", "images", "annotations"}
    assert test.keys() == {"info", "licenses", "images"}
    fields = {"id", "open_images_id", "file_name", "coco_url", "width", "height", "license", "date_captured"}
    assert all(image.keys() == fields | {"domain"} for image in val["images"])
    assert all(image.keys() == fields for image in test["images"])
    assert all(annotation.keys() == {"image_id", "id", "caption"} for annotation in val["annotations"])
    assert len({annotation["id"] for annotation in val["annotations"]}) == len(val["annotations"])
    images = val["images"] + test["images"]
    assert [image["id"] for image in images] == list(range(len(images)))
    assert len({image["open_images_id"] for image in images}) == len(images)
    assert all(re.fullmatch("[0-9a-f]{15}[a-f]", image["open_images_id"]) for image in images)
    contents = {content(world / "images" / image["file_name"]) for image in images}
    assert len(contents) == len(images) == 6 * 6


def test_nocaps_domains_tell_which_combinations_training_shows(tmp_path):
    write_nocaps(tmp_path, 40, random.Random(0))
    val = json.loads((tmp_path / "nocaps_val_captions.json").read_text())
    layouts = {"in-domain": [], "near-domain": [], "out-domain": []}
    for image in val["images"]:
        texts = [item["caption"] for item in val["annotations"] if item["image_id"] == image["id"]]
        scene = scene_of(texts[0])
        assert texts == captions(scene)
        unseen = [(item.color, item.object) in UNSEEN_COMBINATIONS for item in scene.items]
        assert image["domain"] == ("out-domain" if all(unseen) else "near-domain" if any(unseen) else "in-domain")
        assert scene.split == ("unseen" if any(unseen) else "test")
        layouts[image["domain"]].append(scene.layout)
    assert {domain: len(drawn) for domain, drawn in layouts.items()} == dict.fromkeys(layouts, 40)
    assert set(layouts["in-domain"]) == set(layouts["out-domain"]) == {"one", "count", "pair", "row"}
    assert set(layouts["near-domain"]) == {"pair", "row"}


def test_karpathy_file_states_the_images_and_captions_of_its_splits(world):
    content = json.loads((world / "dataset_coco.json").read_text())
    assert content.keys() == {"images", "dataset"}
    assert content["dataset"] == "coco"
    texts = {"train": [], "val": [], "test": []}
    for index, image in enumerate(content["images"]):
        fields = {"filepath", "sentids", "filename", "imgid", "split", "sentences", "cocoid"}
        assert image.keys() == fields
        assert image["imgid"] == index
        assert (world / "images" / image["filepath"] / image["filename"]).is_file()
        assert image["sentids"] == [sentence["sentid"] for sentence in image["sentences"]]
        for sentence in image["sentences"]:
            assert sentence.keys() == {"tokens", "raw", "imgid", "sentid"}
            assert sentence["imgid"] == index
            assert sentence["tokens"] == sentence["raw"].replace(",", "").split()
            texts[image["split"]].append((image["cocoid"], sentence["sentid"], sentence["raw"]))
        assert scene_of(image["sentences"][0]["raw"]).split == image["split"]
    for split, every in texts.items():
        annotations = json.loads((world / f"captions_{split}.json").read_text())["annotations"]
        assert every == [
            (annotation["image_id"], annotation["id"], annotation["caption"]) for annotation in annotations
        ]


def test_class_folders_hold_as_many_different_images_of_each_object(world):
    names = (world / "class_names.txt").read_text().splitlines()
    assert names == sorted(OBJECTS) == sorted(path.name for path in (world / "classes" / "test").iterdir())
    images = [[content(path) for path in (world / "classes" / "test" / name).iterdir()] for name in names]
    assert {len(image) for image in images} == {2}
    assert len({item for every in images for item in every}) == 2 * len(names)


def test_class_folders_show_their_object_alone_in_scenes_held_out(tmp_path, monkeypatch):
    drawn = []

    def gray(scene, rng):
        drawn.append(scene)
        return Image.new("RGB", (64, 64), (20 * OBJECTS.index(scene.items[0].object),) * 3)

    monkeypatch.setattr("vlkd_pl.sample.writers.render", gray)
    write_classes(tmp_path, 20, random.Random(0))
    assert {(scene.layout, scene.split) for scene in drawn} == {("one", "test")}
    for path in tmp_path.glob("classes/test/*/*.jpg"):
        with Image.open(path) as image:
            assert OBJECTS[round(image.getpixel((0, 0))[0] / 20)] == path.parent.name


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
