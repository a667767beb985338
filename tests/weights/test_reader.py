"""Reading of weights files, compared with PyTorch's readers."""

import io
import zipfile

import pytest
import torch
from tiny_models import tiny_clip
from torch import nn

from vlkd_pl.errors import ModelFileError
from vlkd_pl.weights.reader import read_pickle, read_weights, weight_shapes


def same(tensors, expected):
    """Return whether two state dicts are equal bit for bit, including types and strides."""
    return tensors.keys() == expected.keys() and all(
        (value.dtype, value.shape, value.stride())
        == (expected[name].dtype, expected[name].shape, expected[name].stride())
        and torch.equal(value, expected[name])
        for name, value in tensors.items()
    )


class Odd(nn.Module):
    """Module with parameters that share memory or are not contiguous, buffers, and other attributes."""

    def __init__(self) -> None:
        super().__init__()
        memory = torch.randn(6, 4)
        self.transposed = nn.Parameter(memory.T)
        self.rows = nn.Parameter(memory[1:3])
        self.small = nn.Parameter(memory.half()[:, ::2])
        self.register_buffer("counts", torch.arange(5, dtype=torch.int32))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("fleeting", torch.ones(3), persistent=False)
        self.plain = torch.ones(2)
        self.maybe: torch.Tensor | None = torch.ones(2)
        self.listed = [torch.ones(2)]
        self.named = {"a": 1.5}
        self.numbers = (1, 2.5, [3, 4])
        self.layers = nn.ModuleList([nn.Linear(2, 2), nn.BatchNorm2d(3), nn.Sequential(nn.Linear(2, 1, bias=False))])
        self.again = self.layers[0]
        self.scalar = nn.Parameter(torch.tensor(2.0, dtype=torch.bfloat16))
        self.empty = nn.Parameter(torch.zeros(0, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.plain + self.listed[0] + self.named["a"] + self.numbers[0] + self.numbers[2][0]


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_openais_archives_are_read_as_by_torchscript(tmp_path, kind):
    """OpenAI's archives hold most weights in half precision, and three numbers as buffers."""
    model = tiny_clip(kind)
    inputs = torch.zeros(1, 3, 64, 64), torch.ones(1, 24, dtype=torch.long)
    for name, value in {"input_resolution": 64, "context_length": 24, "vocab_size": 655}.items():
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(value))
    with torch.no_grad():
        traced = torch.jit.trace(model, inputs, check_trace=False)
    for parameter in traced.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.half()
    torch.jit.save(traced, str(tmp_path / "archive.pt"))
    expected = torch.jit.load(str(tmp_path / "archive.pt")).state_dict()
    assert {value.dtype for value in expected.values()} == {torch.float16, torch.float32, torch.int64}
    assert {"input_resolution", "context_length", "vocab_size"} <= expected.keys()
    assert same(read_weights(tmp_path / "archive.pt"), expected)
    assert weight_shapes(tmp_path / "archive.pt") == {name: tuple(value.shape) for name, value in expected.items()}


def test_any_archive_is_read_as_by_torchscript(tmp_path):
    torch.jit.save(torch.jit.script(Odd()), str(tmp_path / "odd.pt"))
    expected = torch.jit.load(str(tmp_path / "odd.pt")).state_dict()
    assert "fleeting" in expected
    assert "plain" not in expected
    assert same(read_weights(tmp_path / "odd.pt"), expected)


@pytest.mark.parametrize("options", [{}, {"pickle_protocol": 4}, {"_use_new_zipfile_serialization": False}])
def test_state_dicts_are_read_as_by_torch(tmp_path, options):
    torch.save(Odd().state_dict(), tmp_path / "odd.pt", **options)
    assert same(read_weights(tmp_path / "odd.pt"), torch.load(tmp_path / "odd.pt", weights_only=False))
    torch.save(dict(Odd().named_parameters()), tmp_path / "odd.pt", **options)
    assert same(read_weights(tmp_path / "odd.pt"), torch.load(tmp_path / "odd.pt", weights_only=False))


def test_a_pickled_model_is_not_built(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(
        ModelFileError, match=r"holds a pickled torch\.nn\.modules\.linear\.Linear, not a state dict: save"
    ):
        read_weights(tmp_path / "model.pt")


def test_flipped_bits_are_found(tmp_path):
    torch.save({"a": torch.arange(1000.0)}, tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    content[content.index(torch.arange(1000.0).numpy().tobytes()) + 1000] ^= 1
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ModelFileError, match=r"a\.pt is corrupt .*CRC"):
        read_weights(tmp_path / "a.pt")


def test_a_cut_file_is_corrupt(tmp_path):
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"a": torch.zeros(1000)}, tmp_path / "whole.pt", **options)
        content = (tmp_path / "whole.pt").read_bytes()
        for share in (0.1, 0.5, 0.9, 0.999):
            (tmp_path / "cut.pt").write_bytes(content[: int(len(content) * share)])
            with pytest.raises(ModelFileError, match=r"cut\.pt"):
                read_weights(tmp_path / "cut.pt")


def test_only_what_is_asked_for_is_read(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(3)}, "optimizer": torch.zeros(5)}, tmp_path / "a.ckpt")
    buffer = io.BytesIO()
    with zipfile.ZipFile(tmp_path / "a.ckpt") as archive, zipfile.ZipFile(buffer, "w") as other:
        for name in archive.namelist():
            if not name.endswith("data/1"):
                other.writestr(name, archive.read(name))
    (tmp_path / "a.ckpt").write_bytes(buffer.getvalue())
    assert read_pickle(tmp_path / "a.ckpt")["optimizer"].shape == (5,)
    assert read_weights(tmp_path / "a.ckpt").keys() == {"a"}
