"""Folders of small random models, and a small sample world in the real file formats."""

import os
import random
import sys
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on shared cores are slower than one
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import packaging.version
import pytest
import safetensors.torch
import torch
from damaged_shards import write_damaged
from tiny_models import tiny_bart, tiny_clip

from vlkd_pl.models.vlkd import VLKDModel
from vlkd_pl.sample.scenes import distinct_scenes
from vlkd_pl.sample.tokenizers import clip_merges, train_bart_tokenizer
from vlkd_pl.sample.vqa import write_questions
from vlkd_pl.sample.writers import (
    write_classes,
    write_coco_captions,
    write_corpus,
    write_karpathy,
    write_nocaps,
    write_shards,
)

try:
    from pkg_resources import packaging as _  # noqa: F401  what the whole of clip imports
except ImportError:  # it is missing in recent releases of setuptools
    # pytest's syspath_prepend asks a loaded one for its function
    stand_in = SimpleNamespace(packaging=packaging, fixup_namespace_packages=lambda path: None)
    sys.modules["pkg_resources"] = stand_in

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    """A folder with a tiny CLIP and the sample world's merges."""
    folder = tmp_path_factory.mktemp("clip")
    safetensors.torch.save_file(tiny_clip().state_dict(), folder / "clip.safetensors")
    (folder / "merges.txt.gz").write_bytes(clip_merges())
    return folder


@pytest.fixture(scope="session")
def bart_folder(tmp_path_factory):
    """A folder with a tiny BART and a tokenizer."""
    folder = tmp_path_factory.mktemp("bart")
    vocab_size = train_bart_tokenizer(folder, num_lines=2000)
    tiny_bart(vocab_size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def world(tmp_path_factory, clip_folder, bart_folder):
    """A small sample world: shards, corpus and caption files."""
    folder = tmp_path_factory.mktemp("world")
    rng = random.Random(0)
    write_shards(folder / "shards", 60, 4, rng)
    write_corpus(folder / "corpus.txt", 50, rng)
    scenes = {split: distinct_scenes(rng, split, 6) for split in ("val", "test")}
    for split, first_id in (("val", 1), ("test", 101)):
        write_coco_captions(folder, split, scenes[split], first_id, rng)
        write_questions(folder, split, scenes[split], first_id, rng)
    write_karpathy(folder, {"val": dict(enumerate(scenes["val"], 1)), "test": dict(enumerate(scenes["test"], 101))})
    write_nocaps(folder, 2, rng)
    write_classes(folder, 2, rng)
    return SimpleNamespace(
        folder=folder,
        shards=str(folder / "shards" / "{00000..00003}.tar"),
        clip=str(clip_folder),
        bart=str(bart_folder),
    )


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, clip_folder, bart_folder):
    """A folder of a small model, as vlkd-pl fit writes it."""
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("model")
    VLKDModel.load(str(clip_folder), str(bart_folder), "all").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def damaged(tmp_path_factory):
    """Damaged shards and their expected results."""
    return write_damaged(tmp_path_factory.mktemp("damaged"))
