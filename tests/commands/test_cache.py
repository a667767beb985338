"""vlkd-pl cache: what it writes, after a kill too, and that training on it is training on the images."""

import csv
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from contextlib import nullcontext
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from distilling import MODEL_SETTINGS
from file_contents import contents
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.cli import main
from vlkd_pl.commands.train import run
from vlkd_pl.data.infilling import Masking
from vlkd_pl.data.shard_source import ImageLimits
from vlkd_pl.data.stream import TextCorpusFile
from vlkd_pl.datamodules.cc3m import CC3MDataModule
from vlkd_pl.features import builder
from vlkd_pl.features.cache import FeatureCache
from vlkd_pl.features.dataset import CachedPairs
from vlkd_pl.modules.vlkd import VLKDModule
from vlkd_pl.shards.reader import read_shard
from vlkd_pl.shards.subset import UniformSubset

CONFIG = Path(__file__).parents[2] / "configs" / "sample" / "distill.yaml"


@pytest.fixture(scope="module")
def shards(world, tmp_path_factory):
    """The world's four shards; of the third, an image and a caption are damaged, and the fourth is cut."""
    folder = tmp_path_factory.mktemp("shards")
    for path in sorted((world.folder / "shards").glob("*.tar")):
        shutil.copy(path, folder)
    content = bytearray((folder / "00002.tar").read_bytes())
    first_jpeg = content.index(b"\xff\xd8\xff")
    content[first_jpeg : first_jpeg + 200] = bytes(200)
    (folder / "00002.tar").write_bytes(content)
    whole = (folder / "00003.tar").read_bytes()
    (folder / "00003.tar").write_bytes(whole[: len(whole) // 2])
    return folder


def arguments(world, shards, **options):
    settings = {
        "model.init_args.clip": world.clip,
        "model.init_args.bart": world.bart,
        **MODEL_SETTINGS,
        "data.init_args.shards": f"{shards}/*.tar",
        "data.init_args.features": "null",
        "data.init_args.batch_size": 4,
        "data.init_args.num_workers": 0,
        "data.init_args.image_limits.max_bad_share": 0.5,
        "trainer.enable_progress_bar": "false",
    } | {name.replace("__", "."): value for name, value in options.items()}
    return ["--config", str(CONFIG), *(f"--{name}={value}" for name, value in settings.items())]


def build(world, shards, output, *more, **options):
    return main(["cache", "--output", str(output), *more, *arguments(world, shards, **options)])


@pytest.fixture(scope="module")
def cache(world, shards, tmp_path_factory):
    """A finished cache."""
    folder = tmp_path_factory.mktemp("cache")
    assert build(world, shards, folder) == 0
    return folder


def data_module(world, shards, cache=None, **options):
    settings = {"image_size": 64, "batch_size": 8, "num_workers": 0, "masking": Masking([0.3, 1.0])}
    settings["image_limits"] = ImageLimits(max_bad_share=0.5)
    features = {} if cache is None else {"features": str(cache)}
    module = CC3MDataModule(f"{shards}/*.tar", world.clip, world.bart, **settings | features | options)
    module.setup("fit")
    return module


def online_batch(module, epoch=0):
    """All good pairs of the shards in their order, as a batch with its images."""
    samples = []
    for path in module.shard_source.shards:
        samples += [module.decoder(raw, 0) for raw in _all(path)]
    return module.collator([{**sample, "key": f"{epoch}/{sample['key']}"} for sample in samples if sample is not None])


def _all(path):
    try:
        yield from read_shard(path)
    except Exception:
        return


def cached_batch(module, epoch=0):
    """All pairs of a cache, as a batch."""
    pairs = CachedPairs(module.cache, module.cache.subset(None), module.collator)
    return pairs.__getitems__([(epoch, place) for place in range(len(pairs))])


# What is written


def test_it_states_the_size_first_and_what_was_lost(world, shards, tmp_path, capsys):
    assert build(world, shards, tmp_path) == 0
    first, last = capsys.readouterr().out.splitlines()
    # 5 tokens of 32 and a text embedding in 2 bytes, 3 places of 8 bytes, about 80 bytes of text
    assert first.startswith("cache: about 60 samples of 0.5 KB in 4 of 4 shards are to be encoded: 0.00 GB, and")
    num = len(FeatureCache(tmp_path))
    assert (
        last
        == f"cache: {num} samples in {tmp_path}; skipped of 4 shards: 1 broken_tar, 1 missing_part, 1 unreadable_image"
    )


def test_features_are_clips_own(world, shards, cache):
    module = VLKDModule(world.clip, world.bart, "all")
    online, cached = online_batch(data_module(world, shards)), cached_batch(data_module(world, shards, cache))
    clip = module.model.clip
    assert len(cached["image_tokens"]) == len(online["image"]) > 44
    torch.testing.assert_close(
        cached["image_tokens"].float(), clip.encode_image(online["image"]), rtol=2**-10, atol=1e-6
    )
    torch.testing.assert_close(
        cached["clip_text_embedding"].float(), clip.encode_text(online["clip_text_ids"]), rtol=2**-10, atol=1e-6
    )


def test_pooled_embeddings_alone(world, shards, cache, tmp_path):
    assert build(world, shards, tmp_path, model__init_args__image_features="pooled") == 0
    pooled, full = FeatureCache(tmp_path), FeatureCache(cache)
    assert pooled.files[0].token_shape == (1, 32)
    first, second = (cache.read(range(len(cache))) for cache in (pooled, full))
    assert torch.equal(first.image_tokens, second.image_tokens[:, :1])
    assert torch.equal(first.clip_text_embedding, second.clip_text_embedding)
    assert (first.texts, first.keys) == (second.texts, second.keys)


def test_a_killed_build_resumes_and_ends_as_the_uncut_one(world, shards, cache, tmp_path):
    """SIGKILL at random moments: what is finished stays, and in the end every byte is the same."""
    rng = random.Random(0)
    context = multiprocessing.get_context("fork")
    num_killed = 0
    for num_finished in (1, 2, 3):
        process = context.Process(target=build, args=(world, shards, tmp_path))
        process.start()
        while len(list(tmp_path.glob("*.safetensors"))) < num_finished and process.is_alive():
            time.sleep(0.0005)
        time.sleep(rng.random() * 0.02)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        num_killed += process.exitcode == -signal.SIGKILL and not (tmp_path / "index.json").exists()
    assert num_killed > 0
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert times
    assert build(world, shards, tmp_path) == 0
    assert contents(tmp_path) == contents(cache)
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in times} == times


def test_a_damaged_file_is_made_anew(world, shards, cache, tmp_path):
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "00001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert build(world, shards, tmp_path) == 0
    assert path.read_bytes() == whole
    path.write_bytes(whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:])
    assert build(world, shards, tmp_path, "--verify") == 0
    assert path.read_bytes() == whole


def test_workers_change_nothing(world, shards, cache, tmp_path):
    assert build(world, shards, tmp_path, data__init_args__num_workers=3) == 0
    assert contents(tmp_path) == contents(cache)


def test_two_processes_write_what_one_does(world, shards, cache, tmp_path):
    """Over gloo, with uneven parts: three shards are missing."""
    shutil.copy(cache / "00000.safetensors", tmp_path)
    assert build(world, shards, tmp_path, trainer__devices=2, trainer__strategy="ddp_fork") == 0
    assert contents(tmp_path) == contents(cache)


def test_shards_of_two_folders(world, shards, cache, tmp_path):
    for name, shard in (("a", "00000"), ("b", "00000"), ("b", "00001")):
        (tmp_path / name).mkdir(exist_ok=True)
        shutil.copy(shards / f"{shard}.tar", tmp_path / name)
    assert build(world, f"{tmp_path}/*", tmp_path / "cache") == 0
    made = contents(tmp_path / "cache")
    assert sorted(made) == ["a/00000.safetensors", "b/00000.safetensors", "b/00001.safetensors", "index.json"]
    assert made["b/00001.safetensors"] == (cache / "00001.safetensors").read_bytes()


def test_a_shard_without_a_good_sample(world, shards, tmp_path):
    (tmp_path / "zeros").mkdir()
    (tmp_path / "zeros" / "0.tar").write_bytes(b"no tar at all" * 100)
    shutil.copy(shards / "00000.tar", tmp_path / "zeros" / "1.tar")
    assert build(world, tmp_path / "zeros", tmp_path / "cache") == 0
    cache = FeatureCache(tmp_path / "cache")
    assert [len(file) for file in cache.files] == [0, 15]
    assert cache.skipped["broken_tar"] == 1


class Ranks:
    """Stands in for a trainer with other ranks, which write their files while this one waits."""

    is_global_zero = True

    def __init__(self, folder, *names):
        self.datamodule = SimpleNamespace(missing=[(name, f"{name}.tar") for name in names])
        self.left = [folder / f"{name}.safetensors" for name in names]

    def sleep(self, seconds):
        if self.left:
            self.left.pop().touch()


def test_a_rank_waits_for_the_files_of_the_others(tmp_path, monkeypatch):
    ranks = Ranks(tmp_path, "0", "1", "2")
    monkeypatch.setattr(builder.time, "sleep", ranks.sleep)
    reports = []
    writer = builder.CacheWriter(tmp_path, None, nullcontext(lambda *arguments: reports.append(arguments)))
    writer.on_predict_start(ranks, None)
    writer.on_predict_end(ranks, None)
    assert not ranks.left
    assert list(dict.fromkeys(reports)) == [("encoded", done, 3) for done in range(4)]


def wait(folder, ranks):
    writer = builder.CacheWriter(folder, None)
    writer.on_predict_start(ranks, None)
    writer.on_predict_end(ranks, None)


def test_a_rank_does_not_wait_without_end(tmp_path, monkeypatch):
    ranks = Ranks(tmp_path, "0", "1")
    ranks.left.pop()
    clock = count(step=3600)
    monkeypatch.setattr(builder.time, "sleep", ranks.sleep)
    monkeypatch.setattr(builder.time, "monotonic", lambda: next(clock))
    with pytest.raises(MisconfigurationException, match=r"1 files are missing in .*, first 1.safetensors"):
        wait(tmp_path, ranks)


# What is refused


def test_an_address_is_no_folder(world, shards, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert build(world, shards, "s3://bucket/cache") == 1
    assert capsys.readouterr().err.startswith("vlkd-pl cache: s3://bucket/cache is not a local folder")
    assert not list(tmp_path.iterdir())


def test_too_little_room_is_reported_before_anything_is_written(world, shards, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=20_000))
    assert build(world, shards, tmp_path) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vlkd-pl")]
    assert "has room for 0.00 GB: give another --output, or --dtype int8" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data__init_args__shards": "nowhere/*.tar"}, "no file matches nowhere"),
        ({"model__init_args__clip": "nowhere", "data__init_args__image_size": 64}, "there is no CLIP at nowhere"),
        ({"data__init_args__image_size": 32}, "was made with image_size 64, not 32: give another --output"),
        ({"data__init_args__image_limits__skip_non_rgb": "false"}, "was made with skip_non_rgb True, not False"),
        ({"data__init_args__image_limits__draft_decoding": "true"}, "was made with draft_decoding False, not True"),
        ({"data__init_args__image_limits__max_bad_share": 0.001}, "too much was bad when"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(world, shards, cache, capsys, options, message):
    before = contents(cache)
    assert build(world, shards, cache, **options) == 1
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert contents(cache) == before


def test_a_shard_given_twice_is_refused(world, shards, tmp_path, capsys):
    twice = json.dumps([f"{shards}/00000.tar"] * 2)
    assert build(world, shards, tmp_path, data__init_args__shards=twice) == 1
    assert "00000.tar is repeated" in capsys.readouterr().err


def test_other_data_are_refused(world, tmp_path, capsys):
    config = CONFIG.parents[1] / "captioning_coco.yaml"
    models = [f"--model.init_args.clip={world.clip}", f"--model.init_args.bart={world.bart}"]
    assert main(["cache", "--config", str(config), "--output", str(tmp_path / "cache"), *models]) == 1
    assert "has no shards: give CC3MDataModule" in capsys.readouterr().err


# What is read


def compared(world, online, cached):
    """Losses and the gradient of their weighted sum, of the same model on two batches."""
    torch.manual_seed(0)
    module = VLKDModule(world.clip, world.bart, "patches")
    module.eval()
    results = []
    for batch in (online, cached):
        module.zero_grad()
        losses = module.compute_losses(batch)
        sum(module.loss_weights[name] * loss for name, loss in losses.items()).backward()
        gradients = {name: value.grad for name, value in module.named_parameters() if value.grad is not None}
        results.append(({name: loss.item() for name, loss in losses.items()}, gradients))
    return results


def distance(first, second):
    """Of two gradients, as a share of the first's length."""
    norm = sum((first[name] - second[name]).square().sum() for name in first).sqrt()
    return (norm / sum(value.square().sum() for value in first.values()).sqrt()).item()


@pytest.mark.parametrize("epoch", [0, 3])
def test_losses_and_gradients_are_those_of_the_images(world, shards, cache, epoch):
    online = online_batch(data_module(world, shards), epoch)
    cached = cached_batch(data_module(world, shards, cache), epoch)
    for name in ("bart_text_ids", "bart_text_mask", "corrupted_ids", "corrupted_mask", "labels"):
        assert torch.equal(online[name], cached[name]), name
    (losses, gradients), (cached_losses, cached_gradients) = compared(world, online, cached)
    assert cached_losses == pytest.approx(losses, rel=2e-4)
    assert gradients.keys() == cached_gradients.keys()
    assert distance(gradients, cached_gradients) < 1e-3


def test_what_int8_costs(world, shards, cache, tmp_path):
    assert build(world, shards, tmp_path, "--dtype", "int8") == 0
    assert all(file.image_tokens.dtype == np.int8 for file in FeatureCache(tmp_path).files)
    online = online_batch(data_module(world, shards))
    (losses, gradients), (int8_losses, int8_gradients) = compared(
        world, online, cached_batch(data_module(world, shards, tmp_path))
    )
    assert int8_losses == pytest.approx(losses, rel=5e-3)
    assert int8_losses["ttdm"] == pytest.approx(losses["ttdm"], rel=2e-4)  # text embeddings stay in float16
    assert distance(gradients, int8_gradients) < 2e-2
    with pytest.raises(AssertionError):  # int8 is not float16: the bounds above do hold something
        assert int8_losses == pytest.approx(losses, rel=1e-6)


def test_batches_of_cached_features(world, shards, cache):
    corpus = str(world.folder / "corpus.txt")
    module = data_module(world, shards, cache, text_corpus=TextCorpusFile(corpus, batch_size=3, text_as_image=2))
    batches = list(module.train_dataloader())
    assert len(batches) == len(module.cache) // 8
    for batch in batches:
        assert (batch["image_tokens"].shape, batch["image_tokens"].dtype) == ((8, 5, 32), torch.float16)
        assert batch["clip_text_embedding"].shape == (8, 32)
        assert {"image", "clip_text_ids"}.isdisjoint(batch)
        assert len(batch["text_infilling"]["labels"]) == 3
    with_workers = data_module(
        world, shards, cache, text_corpus=TextCorpusFile(corpus, batch_size=3, text_as_image=2), num_workers=2
    )
    for first, second in zip(batches, with_workers.train_dataloader(), strict=True):
        assert torch.equal(first["image_tokens"], second["image_tokens"])
        assert torch.equal(first["corrupted_ids"], second["corrupted_ids"])
        for name in ("text_infilling", "text_as_image"):
            assert torch.equal(first[name]["corrupted_ids"], second[name]["corrupted_ids"])
        assert torch.equal(first["text_as_image"]["clip_text_ids"], second["text_as_image"]["clip_text_ids"])


def test_a_subset_has_the_same_samples_and_captions(world, shards, cache, tmp_path):
    for folder, options in ((cache, {}), (tmp_path, {"data__init_args__subset_size": 20})):
        assert build(world, shards, folder, **options) == 0
        module = data_module(world, shards, folder, subset_size=20)
        keep = UniformSubset([str(path) for path in sorted(shards.glob("*.tar"))], 20)
        full = FeatureCache(cache)
        expected = [key for key in full.read(range(len(full))).keys if keep(key)]
        assert module.cache.read(module.train_dataloader().dataset.samples).keys == expected
    assert len(FeatureCache(tmp_path)) == len(expected)
    assert module.training_captions(5) == data_module(world, shards, cache, subset_size=20).training_captions(5)


def test_captions_for_the_start_are_the_first(world, shards, cache):
    cached, online = data_module(world, shards, cache), data_module(world, shards)
    assert cached.training_captions(20) == online.training_captions(20)


# Training


def fit(world, shards, folder, cache, **options):
    """The sample run in miniature on cached features, with the closed-form start, a text corpus and validation."""
    settings = {
        "model__init_args__num_start_texts": 20,
        "model__init_args__optimization__warmup_steps": 2,
        "model__init_args__optimization__total_steps": 20,
        "model__init_args__decoding__max_new_tokens": 3,
        "model__init_args__decoding__num_beams": 1,
        "data__init_args__batch_size": 8,
        "data__init_args__evaluation__num_samples": 2,
        "data__init_args__features": cache,
        "data__init_args__text_corpus__path": world.folder / "corpus.txt",
        "data__init_args__evaluation__val_images": world.folder / "images",
        "data__init_args__evaluation__val_captions": world.folder / "captions_val.json",
        "trainer__max_steps": 9,
        "trainer__val_check_interval": 5,
        "trainer__log_every_n_steps": 1,
        "trainer__enable_model_summary": "false",
        "trainer__logger": json.dumps(
            {"class_path": "CSVLogger", "init_args": {"save_dir": str(folder), "name": None, "version": ""}}
        ),
        "trainer__callbacks": json.dumps(
            [{"class_path": "ModelCheckpoint", "init_args": {"save_last": True, "every_n_train_steps": 1}}]
        ),
    }
    return ["fit", *arguments(world, shards, **settings | options)]


def losses(folder):
    with (folder / "metrics.csv").open() as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row.get("train/loss")]


@pytest.mark.parametrize(("cut", "num_workers"), [(2, 0), (7, 2)])
def test_a_resumed_run_on_cached_features_resumes_exactly(world, shards, cache, tmp_path, cut, num_workers):
    """In the first epoch, and behind its end; the shards are gone."""
    options = {"data__init_args__num_workers": num_workers, "data__init_args__shards": "nowhere/*.tar"}
    uncut = run(fit(world, shards, tmp_path / "uncut", cache, **options))
    assert uncut.trainer.current_epoch > 0
    run(fit(world, shards, tmp_path / "cut", cache, trainer__max_steps=cut, **options))
    last = tmp_path / "cut" / "checkpoints" / "last.ckpt"
    resumed = run(fit(world, shards, tmp_path / "resumed", cache, ckpt_path=last, **options))
    torch.testing.assert_close(
        dict(resumed.model.state_dict()), dict(uncut.model.state_dict()), rtol=0, atol=0, equal_nan=False
    )
    assert losses(tmp_path / "resumed") == losses(tmp_path / "uncut")[cut:]


def test_a_cache_of_another_clip_is_refused_before_training(world, shards, cache, tmp_path, capsys):
    import safetensors.torch
    from tiny_models import tiny_clip

    weights = tiny_clip().state_dict()
    other = {name: value + 0.1 if name == "text_projection" else value for name, value in weights.items()}
    safetensors.torch.save_file(other, tmp_path / "clip.safetensors")
    (tmp_path / "merges.txt.gz").write_bytes((Path(world.clip) / "merges.txt.gz").read_bytes())
    assert main(fit(world, shards, tmp_path / "run", cache, model__init_args__clip=tmp_path)) == 1
    assert "was made with the CLIP" in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data__init_args__features": "nowhere"}, "nowhere holds no index.json"),
        ({"data__init_args__image_size": 32}, "was made with image_size 64, not 32"),
        ({"data__init_args__subset_size": 1000}, "subset_size is 1000, but the shards hold"),
        ({"data__init_args__batch_size": 64}, "do not fill a batch of 64"),
    ],
)
def test_what_does_not_fit_is_refused_before_training(world, shards, cache, tmp_path, capsys, options, message):
    assert main(fit(world, shards, tmp_path, cache, **options)) == 1
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "checkpoints").exists()
