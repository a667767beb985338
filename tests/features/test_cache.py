"""The files of a feature cache: what is read is what was written, and damage is reported."""

import json
import pickle

import numpy as np
import pytest
import safetensors.torch
import torch
from feature_files import DIM, NUM_TOKENS, SETTINGS, random_features, shard_end, write_feature_file
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.features.cache import FeatureCache, finished_file, write_index
from vlkd_pl.features.format import DamagedFileError, FeatureFile, FeatureWriter, quantized
from vlkd_pl.shards.subset import key_hash, subset_threshold


@pytest.fixture
def folder(tmp_path):
    """A finished cache of 11, 0 and 6 samples."""
    for seed, num in enumerate((11, 0, 6)):
        write_feature_file(tmp_path / f"{seed}.safetensors", num, seed, skipped_keys=[f"bad{seed}"])
    write_index(tmp_path, ["0", "1", "2"], SETTINGS)
    return tmp_path


def test_samples_are_read_as_they_were_written(folder):
    cache = FeatureCache(folder)
    assert len(cache) == 17
    tokens, embedding = (torch.cat(parts) for parts in zip(random_features(11, 0), random_features(6, 2), strict=True))
    order = [16, 0, 10, 11, 3, 3]
    samples = cache.read(order)
    assert torch.equal(samples.image_tokens, tokens[order].half())
    assert torch.equal(samples.clip_text_embedding, embedding[order].half())
    assert samples.texts == [f"a fish, número {name} 🐟" for name in ("2.5", "0.0", "0.10", "2.0", "0.3", "0.3")]
    assert samples.keys == ["2/0005", "0/0000", "0/0010", "2/0000", "0/0003", "0/0003"]
    assert cache.captions([11, 16]) == [samples.texts[3], samples.texts[0]]
    assert cache.losses == "skipped of 3 shards: 3 empty_text"


def test_a_file_is_a_safetensors_file(folder):
    tensors = safetensors.torch.load_file(folder / "2.safetensors")
    assert torch.equal(tensors["image_tokens"], random_features(6, 2)[0].half())
    assert tensors["key_hashes"].tolist() == [key_hash(f"2/{i:04d}") for i in range(6)] + [key_hash("bad2")]
    assert bytes(tensors["captions"][: tensors["caption_ends"][0]].tolist()).decode() == "a fish, número 2.0 🐟"
    assert safetensors.torch.load_file(folder / "1.safetensors")["image_tokens"].shape == (0, NUM_TOKENS, DIM)


def test_another_process_maps_the_files_anew(folder):
    cache = FeatureCache(folder)
    first = cache.read([3]).image_tokens
    copy = pickle.dumps(cache)
    assert len(copy) < 5000  # without what is mapped
    assert torch.equal(pickle.loads(copy).read([3]).image_tokens, first)


def test_an_unfinished_file_has_no_name(tmp_path):
    writer = FeatureWriter(tmp_path / "0.safetensors", SETTINGS)
    writer.append(*random_features(3), ["a", "b", "c"], ["0", "1", "2"])
    assert not (tmp_path / "0.safetensors").exists()
    with pytest.raises(FileNotFoundError, match=r"holds no index.json: .*; make it by vlkd-pl cache with --output"):
        FeatureCache(tmp_path)
    writer.finish(shard_end("012"))
    assert [path.name for path in tmp_path.iterdir()] == ["0.safetensors"]


def cut(content):
    return content[:-1]


def longer(content):
    return content + b"\0"


def without_header(content):
    return bytes(4096) + content[4096:]


def empty(content):
    return b""


@pytest.mark.parametrize("damage", [cut, longer, without_header, empty])
def test_a_damaged_file_is_refused_and_made_anew(folder, damage):
    path = folder / "2.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(MisconfigurationException, match=r"2\.safetensors is damaged: .*vlkd-pl cache command again$"):
        FeatureCache(folder)
    assert finished_file(path, SETTINGS) is None
    assert finished_file(folder / "0.safetensors", SETTINGS) is not None


def test_a_missing_file_is_reported(folder):
    (folder / "0.safetensors").unlink()
    with pytest.raises(MisconfigurationException, match=r"0\.safetensors"):
        FeatureCache(folder)


def test_a_flipped_bit_is_found_by_reading_all(folder):
    path = folder / "0.safetensors"
    content = bytearray(path.read_bytes())
    content[4096 + 100] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="another sha256"):
        FeatureFile(path).check_content()
    assert finished_file(path, SETTINGS) is not None
    assert finished_file(path, SETTINGS, check_content=True) is None
    FeatureFile(folder / "2.safetensors").check_content()


def test_damage_anywhere_in_a_header_never_crashes(folder):
    path = folder / "0.safetensors"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        content = bytearray(whole)
        content[rng.integers(8, 1100)] = rng.integers(256)
        path.write_bytes(content)
        try:
            FeatureFile(path)
        except DamagedFileError:
            refused += 1
    assert refused > 100  # what is left fell on the checksum, the padding or a number that is compared later


def test_a_damaged_index_is_reported(folder):
    (folder / "index.json").write_text((folder / "index.json").read_text()[:50])
    with pytest.raises(MisconfigurationException, match=r"index.json is damaged"):
        FeatureCache(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("files", {"../outside": 11}),
        ("files", {"/etc/outside": 11}),
        ("files", {"a/../../outside": 11}),
        ("files", {"a//b": 1}),
        ("files", {"..\\\\outside": 1}),
        ("files", {"a\x00b": 1}),
        ("files", {"": 1}),
        ("files", {"0": "11"}),
        ("files", {"0": -1}),
        ("files", {"0": True}),
        ("files", ["0"]),
        ("files", {}),
        ("files", None),
        ("skipped", {}),
        ("skipped", {"broken_tar": None}),
        ("settings", {"clip": "a"}),
        ("settings", SETTINGS._asdict() | {"dtype": "object"}),
        ("settings", SETTINGS._asdict() | {"dtype": ["float16"]}),
        ("settings", SETTINGS._asdict() | {"image_features": "../../x"}),
        ("settings", SETTINGS._asdict() | {"other": 1}),
    ],
)
def test_an_index_with_odd_names_or_values_is_refused(folder, name, value):
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {name: value}))
    with pytest.raises(MisconfigurationException, match=r"index.json is damaged") as refused:
        FeatureCache(folder)
    assert "\n" not in str(refused.value)


def test_a_file_of_another_cache_is_refused(folder):
    other = SETTINGS._replace(clip="f" * 16)
    write_feature_file(folder / "0.safetensors", 11, 0, other)
    with pytest.raises(MisconfigurationException, match=r"0.safetensors is of another cache"):
        FeatureCache(folder)
    with pytest.raises(MisconfigurationException, match=r"made with clip ffff.*, not 0123.*: give another --output"):
        finished_file(folder / "0.safetensors", SETTINGS)


def test_a_cache_is_held_against_model_and_data(folder):
    cache = FeatureCache(folder)
    cache.check_clip(SETTINGS.clip, "patches")
    with pytest.raises(
        MisconfigurationException, match=r"was made with the CLIP 0123456789abcdef, but --model.clip is"
    ):
        cache.check_clip("f" * 16, "all")
    settings = {"image_size": 64, "max_image_pixels": 50_000_000, "skip_non_rgb": True, "draft_decoding": False}
    cache.check_data(0.2, **settings)
    for name, value in (("image_size", 32), ("max_image_pixels", 9), ("skip_non_rgb", False), ("draft_decoding", True)):
        with pytest.raises(
            MisconfigurationException, match=f"was made with {name} {settings[name]}, not {value}: give"
        ):
            cache.check_data(0.2, **settings | {name: value})
    with pytest.raises(MisconfigurationException, match=r"too much was bad .* 3 empty_text: .*max_bad_share from 0.1"):
        cache.check_data(0.1, **settings)


def test_pooled_features_do_not_serve_for_patches(tmp_path):
    pooled = SETTINGS._replace(image_features="pooled")
    write_feature_file(tmp_path / "0.safetensors", 3, 0, pooled)
    cache = write_index(tmp_path, ["0"], pooled)
    cache.check_clip(pooled.clip, "pooled")
    for needed in ("patches", "all"):
        with pytest.raises(MisconfigurationException, match=f"pooled embeddings alone, but image_features is {needed}"):
            cache.check_clip(pooled.clip, needed)


def test_a_subset_is_that_of_the_shards(folder):
    """The skipped samples count in its size, as they do where the shards are read."""
    cache = FeatureCache(folder)
    keys = cache.read(range(len(cache))).keys
    for size in (1, 9, 20):
        hashes = np.array([key_hash(key) for key in [*keys, "bad0", "bad1", "bad2"]], dtype=np.uint64)
        threshold = subset_threshold(hashes, size)
        assert cache.subset(size).tolist() == [i for i, key in enumerate(keys) if key_hash(key) <= threshold]
    assert cache.subset(None).tolist() == list(range(17))
    with pytest.raises(MisconfigurationException, match="subset_size is 21, but the shards hold 20"):
        cache.subset(21)


def test_a_cached_subset_serves_for_no_more(tmp_path):
    settings = SETTINGS._replace(subset_size=9)
    write_feature_file(tmp_path / "0.safetensors", 8, 0, settings, skipped_keys=["bad", "unchosen"])
    cache = write_index(tmp_path, ["0"], settings)
    assert len(cache.subset(9)) in (7, 8)
    for size in (None, 10):
        with pytest.raises(MisconfigurationException, match=f"holds a subset of 9 samples, .* is {size}: give"):
            cache.subset(size)


def test_int8_tokens_are_within_half_a_step(tmp_path):
    tokens = random_features(12)[0]
    tokens[0, 0] = 0
    steps, scales = quantized(tokens)
    assert (steps.dtype, scales.dtype) == (torch.int8, torch.float16)
    error = (steps * scales.float().unsqueeze(-1) - tokens).abs()
    half_a_step = tokens.abs().amax(-1, keepdim=True) / 127 / 2
    assert (error <= half_a_step * 1.001).all()  # the scale itself is rounded to float16
    assert error.max() > 0.8 * half_a_step.max()

    settings = SETTINGS._replace(dtype="int8")
    write_feature_file(tmp_path / "0.safetensors", 12, 0, settings)
    cache = write_index(tmp_path, ["0"], settings)
    steps, scales = quantized(random_features(12)[0])
    samples = cache.read([7, 2])
    assert torch.equal(samples.image_tokens, steps[[7, 2]])
    assert torch.equal(samples.image_scales, scales[[7, 2]])
    size = (tmp_path / "0.safetensors").stat().st_size - 4096
    samples = cache.read(range(12))
    texts = len("".join(samples.texts + samples.keys).encode())
    assert size == 12 * settings.num_bytes(NUM_TOKENS, DIM) + texts
