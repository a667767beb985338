"""The frozen CLIP compared with OpenAI's forward pass, and its files."""

import copy
import gzip
import math
import pickle
import shutil

import clip.clip
import numpy as np
import pytest
import safetensors.torch
import torch
from clip.clip import _transform
from clip.model import convert_weights
from PIL import Image
from tiny_models import tiny_clip
from torch.nn.functional import normalize

from vlkd_pl.clip.frozen import FrozenCLIP, normalized
from vlkd_pl.clip.weights import CLIP_NAMES, OPENAI_CHECKSUMS, build_clip, clip_sizes
from vlkd_pl.errors import ModelFileError
from vlkd_pl.files import file_sha256
from vlkd_pl.sample.tokenizers import clip_merges

KINDS = ["resnet", "vit"]


def images(seed=0):
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def text_ids(lengths=(5, 9, 3), width=24):
    ids = torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, 600, (length,), generator=torch.Generator().manual_seed(row))
        ids[row, length - 1] = 654  # the end token has the highest id
    return ids


@pytest.mark.parametrize("kind", KINDS)
def test_position_0_is_clips_own_embedding(kind):
    frozen = FrozenCLIP(tiny_clip(kind))
    tokens = frozen.encode_image(images())
    assert tokens.shape == (3, 1 + frozen.num_patches, 32)
    assert frozen.num_patches == {"resnet": 4, "vit": 16}[kind]
    torch.testing.assert_close(
        tokens[:, 0], normalize(frozen.clip.encode_image(images()), dim=-1), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(tokens.shape[:2]))


def test_normalised_on_the_device_as_by_clips_own_transform():
    levels = np.stack([np.roll(np.arange(256, dtype=np.uint8), 85 * channel) for channel in range(3)], -1)
    image = levels.reshape(16, 16, 3)
    batch = torch.from_numpy(image).permute(2, 0, 1).repeat(2, 1, 1, 1)
    assert torch.equal(normalized(batch)[1], _transform(16)(Image.fromarray(image)))


@pytest.mark.parametrize("kind", KINDS)
def test_encodes_uint8_as_what_is_normalised(kind):
    frozen = FrozenCLIP(tiny_clip(kind))
    batch = torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8)
    original = batch.clone()
    assert torch.equal(frozen.encode_image(batch), frozen.encode_image(normalized(batch)))
    assert torch.equal(batch, original)
    with pytest.raises(TypeError, match=r"torch\.int64: give uint8, or floats with CLIP's normalisation"):
        frozen.encode_image(batch.long())


def test_resnet_patches_against_a_loop():
    """Multi-head attention of each position in turn, written out."""
    frozen = FrozenCLIP(tiny_clip())
    visual, pool = frozen.clip.visual, frozen.clip.visual.attnpool
    grids = []
    visual.layer4.register_forward_hook(lambda module, inputs, output: grids.append(output))
    tokens = frozen.encode_image(images())
    grid = grids[0][1].flatten(1).T  # the second image: (positions, channels)
    grid = torch.cat([grid.mean(0, keepdim=True), grid]) + pool.positional_embedding
    query, key, value = (
        layer(grid).reshape(5, pool.num_heads, -1) for layer in (pool.q_proj, pool.k_proj, pool.v_proj)
    )
    for position in range(5):
        heads = []
        for head in range(pool.num_heads):
            scores = key[:, head] @ query[position, head] / math.sqrt(query.shape[-1])
            heads.append(scores.softmax(0) @ value[:, head])
        expected = normalize(pool.c_proj(torch.cat(heads)), dim=0)
        torch.testing.assert_close(tokens[1, position], expected, rtol=1e-4, atol=1e-5)


def test_resnets_compute_in_channels_last_order():
    frozen = FrozenCLIP(tiny_clip())
    orders = []
    for part in frozen.clip.visual.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.register_forward_hook(lambda module, inputs, output: orders.append(output))
    tokens = frozen.encode_image(images())
    assert len(orders) > 10
    assert all(maps.is_contiguous(memory_format=torch.channels_last) for maps in orders)
    frozen.clip.visual.to(memory_format=torch.contiguous_format)
    torch.testing.assert_close(frozen.encode_image(images()), tokens, rtol=1e-4, atol=1e-6)


def test_the_order_in_memory_changes_neither_file_nor_fingerprint(tmp_path):
    clip = tiny_clip()
    expected = {name: value.clone() for name, value in clip.state_dict().items()}
    frozen = FrozenCLIP(clip)
    frozen.save(tmp_path)
    saved = safetensors.torch.load_file(tmp_path / "clip.safetensors")
    torch.testing.assert_close({name: value.to(expected[name]) for name, value in saved.items()}, expected)
    contiguous = FrozenCLIP(copy.deepcopy(clip))
    contiguous.clip.visual.to(memory_format=torch.contiguous_format)
    assert contiguous.fingerprint == frozen.fingerprint


def test_vit_patches_are_projected_like_the_class_token():
    frozen = FrozenCLIP(tiny_clip("vit"))
    visual = frozen.clip.visual
    hidden = []
    visual.transformer.register_forward_hook(lambda module, inputs, output: hidden.append(output))
    tokens = frozen.encode_image(images())
    for position in range(17):
        expected = normalize(visual.ln_post(hidden[0][position]) @ visual.proj, dim=-1)
        torch.testing.assert_close(tokens[:, position], expected, rtol=1e-4, atol=1e-5)


def test_short_text_ids_give_the_embedding_of_padded_ones():
    frozen = FrozenCLIP(tiny_clip())
    full = normalize(frozen.clip.encode_text(text_ids()), dim=-1)
    torch.testing.assert_close(frozen.encode_text(text_ids()[:, :9]), full, rtol=1e-4, atol=1e-6)
    changed = text_ids()[:, :9]
    changed[:, 1] = 7
    assert (frozen.encode_text(changed) - full).abs().max() > 1e-3


def test_stays_frozen():
    frozen = FrozenCLIP(tiny_clip())
    before = {name: value.clone() for name, value in frozen.state_dict().items()}
    frozen.train()
    assert not any(module.training for module in frozen.modules())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    assert not frozen.encode_image(images()).requires_grad
    torch.testing.assert_close(dict(frozen.state_dict()), before, rtol=0, atol=0)


def test_half_precision_weights_become_float32():
    half = tiny_clip()
    convert_weights(half)
    frozen = FrozenCLIP(half)
    assert {value.dtype for value in frozen.parameters()} == {torch.float32}
    assert frozen.encode_image(images()).dtype == torch.float32


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_reported_from_the_weights(kind):
    model = tiny_clip(kind)
    sizes = clip_sizes({name: tuple(value.shape) for name, value in model.state_dict().items()})
    layers, width, patch = ((1, 1, 1, 1), 8, None) if kind == "resnet" else (2, 64, 16)
    assert list(sizes.values()) == [32, 64, layers, width, patch, 24, 655, 64, 1, 2]


@pytest.fixture
def files(tmp_path):
    """The same CLIP in every format."""
    model = tiny_clip()
    example = (images()[:1], text_ids()[:1])
    with torch.no_grad():
        torch.jit.save(torch.jit.trace(model, example, check_trace=False), str(tmp_path / "archive.pt"))
    torch.save(model.state_dict(), tmp_path / "state.pt")
    safetensors.torch.save_file(model.state_dict(), tmp_path / "state.safetensors")
    wrapped = {f"module.{name}": value for name, value in model.state_dict().items()}
    for key in ("state_dict", "model_state_dict", "model"):
        torch.save({key: wrapped, "epoch": 3, "optimizer": {(1, 2): torch.zeros(2)}}, tmp_path / f"{key}.pt")
    torch.save(wrapped, tmp_path / "module.pt", pickle_protocol=4)
    torch.save(model.state_dict(), tmp_path / "legacy.pt", _use_new_zipfile_serialization=False)
    FrozenCLIP(model, clip_merges()).save(tmp_path / "folder")
    shutil.copy(tmp_path / "folder" / "clip.safetensors", tmp_path / "copied.safetensors")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "archive.pt",
        "state.pt",
        "state_dict.pt",
        "model_state_dict.pt",
        "model.pt",
        "module.pt",
        "legacy.pt",
        "state.safetensors",
        "copied.safetensors",
        "folder",
    ],
)
def test_every_format_gives_the_same_model(files, name):
    path = files / name
    is_marked = name in ("folder", "copied.safetensors")
    loaded = FrozenCLIP.load(str(path), sha256=None if is_marked else file_sha256(path).upper())
    assert loaded.fingerprint == FrozenCLIP(tiny_clip()).fingerprint
    torch.testing.assert_close(loaded.encode_image(images()), FrozenCLIP(tiny_clip()).encode_image(images()))
    assert loaded.merges == (clip_merges() if name == "folder" else None)


def test_archive_with_openais_extra_entries(tmp_path):
    """OpenAI's archives hold three numbers in addition to the weights, and most weights in half precision."""
    model = tiny_clip()
    weights = model.state_dict() | {
        "input_resolution": torch.tensor(64),
        "context_length": torch.tensor(24),
        "vocab_size": torch.tensor(655),
    }
    loaded = build_clip({name: value.half() if value.is_floating_point() else value for name, value in weights.items()})
    assert loaded.visual.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(loaded.visual.conv1.weight, model.visual.conv1.weight.half().float(), rtol=0, atol=0)


def test_saved_in_half_precision_only_where_nothing_is_lost(tmp_path):
    model = tiny_clip()
    FrozenCLIP(model).save(tmp_path / "full")
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.copy_(value.half())
    FrozenCLIP(model, clip_merges()).save(tmp_path / "half")
    sizes = {name: (tmp_path / name / "clip.safetensors").stat().st_size for name in ("full", "half")}
    assert sizes["half"] < 0.6 * sizes["full"]
    assert FrozenCLIP.load(tmp_path / "half").fingerprint == FrozenCLIP(model).fingerprint


def test_limits_are_saved_and_loaded(tmp_path):
    assert FrozenCLIP(tiny_clip()).limits == ""
    FrozenCLIP(tiny_clip(), clip_merges(), "It knows fish.\nNothing else.").save(tmp_path)
    for path in (tmp_path, tmp_path / "clip.safetensors"):
        assert FrozenCLIP.load(path).limits == "It knows fish.\nNothing else."
    (tmp_path / "limits.txt").write_bytes(b"\xef\xbb\xbf It knows\x1b[31m fish.\r\n\n")
    assert FrozenCLIP.load(tmp_path).limits == "It knows[31m fish."


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"fish" * 5000, "larger than 16 KiB"), (b"\xff", "not a text in UTF-8")],
)
def test_limits_that_are_not_a_text_are_refused(tmp_path, content, message):
    FrozenCLIP(tiny_clip(), clip_merges()).save(tmp_path)
    (tmp_path / "limits.txt").write_bytes(content)
    with pytest.raises(ModelFileError, match=rf"limits\.txt.*{message}"):
        FrozenCLIP.load(tmp_path)


def test_published_names():
    assert set(CLIP_NAMES) == {
        "RN50",
        "RN101",
        "RN50x4",
        "RN50x16",
        "RN50x64",
        "ViT-B/32",
        "ViT-B/16",
        "ViT-L/14",
        "ViT-L/14@336px",
    }


def test_checksums(files):
    with pytest.raises(ModelFileError, match="has the sha256"):
        FrozenCLIP.load(files / "state.pt", sha256="0" * 64)
    shutil.copy(files / "state.pt", files / "ViT-B-16.pt")
    with pytest.raises(ModelFileError, match="5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"):
        FrozenCLIP.load(files / "ViT-B-16.pt")


@pytest.mark.parametrize("name", ["archive.pt", "state.pt", "state_dict.pt", "state.safetensors"])
def test_a_file_that_nobody_vouches_for_is_refused(files, name, monkeypatch):
    digest = file_sha256(files / name)
    with pytest.raises(ModelFileError, match=f"QuickGELU and heads of width 64, pass --model.clip_sha256 {digest}$"):
        FrozenCLIP.load(files / name)
    monkeypatch.setitem(OPENAI_CHECKSUMS, "ViT-B-16.pt", digest)  # OpenAI's, whatever its name
    FrozenCLIP.load(files / name)


def test_a_folder_of_an_earlier_release_is_loaded(clip_folder):
    with safetensors.safe_open(clip_folder / "clip.safetensors", "pt") as file:
        assert not file.metadata()
    assert FrozenCLIP.load(clip_folder).merges == clip_merges()
    assert FrozenCLIP.load(clip_folder / "clip.safetensors").merges == clip_merges()


def test_a_folder_without_its_merges_is_refused(clip_folder, tmp_path):
    shutil.copy(clip_folder / "clip.safetensors", tmp_path)
    with pytest.raises(ModelFileError, match=r"embeds 655 tokens, but it has no merges.txt.gz"):
        FrozenCLIP.load(tmp_path)
    (tmp_path / "merges.txt.gz").write_bytes(gzip.compress(b"#\na b\nc d"))
    with pytest.raises(ModelFileError, match=r"embeds 655 tokens, but its merges.txt.gz gives 516"):
        FrozenCLIP.load(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a git-lfs pointer, not the file itself"),
        (b"", "is empty"),
        (b"<html>", "is not a file of weights"),
    ],
)
def test_a_file_that_is_no_weights_is_refused(content, message, tmp_path):
    for name in ("clip.pt", "clip.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ModelFileError, match=message if name == "clip.pt" or b"html" not in content else "corrupt"):
            FrozenCLIP.load(tmp_path / name)


def test_other_shapes_and_types_are_refused():
    weights = tiny_clip("vit").state_dict()
    name = "visual.transformer.resblocks.1.mlp.c_fc.weight"
    for value in (weights[name][:5], weights[name].long(), weights[name].to(torch.complex64)):
        with pytest.raises(ModelFileError, match=f"^mine.pt: not a CLIP .* of another shape or type: {name}$"):
            build_clip(weights | {name: value}, "mine.pt")
    with pytest.raises(ModelFileError, match=r"unexpected, or .*: visual\.extra"):
        build_clip(weights | {"visual.extra": torch.zeros(1)})
    del weights[name]
    with pytest.raises(ModelFileError, match=f"missing, .*: {name}"):
        build_clip(weights)


def test_a_name_that_cannot_be_downloaded(tmp_path, monkeypatch):
    def refused(url, root):
        raise clip.clip.urllib.error.URLError("no network")

    monkeypatch.setattr("vlkd_pl.clip.weights._download", refused)
    with pytest.raises(FileNotFoundError, match=r"fetch https://.*/ViT-B-16\.pt"):
        FrozenCLIP.load("ViT-B/16", download_root=str(tmp_path))


def test_a_missing_file_names_what_would_do(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no CLIP at .*nowhere\.pt: give the path .* RN50, RN101"):
        FrozenCLIP.load(tmp_path / "nowhere.pt")


class Payload:
    """Object that writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    "write",
    [
        lambda payload, path: torch.save({"a": payload}, path),
        lambda payload, path: path.write_bytes(pickle.dumps(payload)),
    ],
)
def test_nothing_in_a_file_is_run(tmp_path, write):
    write(Payload(tmp_path / "ran"), tmp_path / "bad.pt")
    with pytest.raises(ModelFileError):
        FrozenCLIP.load(tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [{"weight": torch.zeros(2)}, [torch.zeros(2)]])
def test_other_weights_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(ModelFileError, match="CLIP"):
        FrozenCLIP.load(tmp_path / "other.pt")
