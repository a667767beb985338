"""Files that try to run code, to fill the memory, or to run without end, in every format of a model."""

import builtins
import gzip
import importlib
import io
import json
import os
import pickle
import shutil
import socket
import struct
import subprocess
import tarfile
import zipfile

import numpy as np
import safetensors.torch
import torch
from torch import nn

CALLS = {
    "system": (os.system, ("touch ran",)),
    "popen": (os.popen, ("touch ran",)),
    "subprocess": (subprocess.Popen, (["touch", "ran"],)),
    "run": (subprocess.run, (["touch", "ran"],)),
    "eval": (builtins.eval, ("open('ran', 'w')",)),
    "exec": (builtins.exec, ("open('ran', 'w')",)),
    "open": (builtins.open, ("ran", "w")),
    "import": (importlib.import_module, ("antigravity",)),
    "getattr": (builtins.getattr, (os, "system")),
    "socket": (socket.create_connection, (("127.0.0.1", 9),)),
    "rmtree": (shutil.rmtree, ("ran",)),
    "load": (torch.load, ("ran",)),
    "jit": (torch.jit.load, ("ran",)),
    "hub": (torch.hub.load, ("a/b", "c")),
    "numpy": (np.load, ("ran",)),
    "mkdir": (os.mkdir, ("ran",)),
    "fork": (os.fork, ()),
}


class Call:
    """Object that calls a function when it is unpickled."""

    def __init__(self, function, arguments):
        self.reduced = (function, arguments)

    def __reduce__(self):
        return self.reduced


def by_reference(function, arguments):
    """A call with picklable arguments; a module can only be named."""
    return Call(function, tuple("os" if argument is os else argument for argument in arguments))


class Writes(nn.Module):
    """Module that writes a file when its TorchScript archive is loaded."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return torch.zeros(1), self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        self.training = state[1]
        torch.save("x", "ran")


class Outer(nn.Module):
    """Module with a submodule that writes a file."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.inner = Writes()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def zipped(members, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


def pickled_tensor(numel, shape, stride, offset=0, kind=b"FloatStorage", key=b"0"):
    """The pickle of a state dict with one tensor, as torch.save writes it, with arbitrary numbers."""

    def integer(value):
        return pickle.dumps(value, 2)[2:-1]

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value

    storage = b"(" + text(b"storage") + b"ctorch\n" + kind + b"\n" + text(key) + text(b"cpu") + integer(numel) + b"tQ"
    sizes = b"".join(b"(" + b"".join(map(integer, values)) + b"t" for values in (shape, stride))
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + integer(offset) + sizes + b"\x89}tR"
    return b"\x80\x02}" + text(b"weight") + tensor + b"s."


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def safetensors_file(header, data=b"", length=None):
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + data


def pickles():
    """Pickles of calls, in each of PyTorch's formats."""
    files = {}
    for name, (function, arguments) in CALLS.items():
        call = by_reference(function, arguments)
        for protocol in (0, 2, 4):
            files[f"{name}_{protocol}.pt"] = pickle.dumps(call, protocol)
        files[f"{name}_zip.pt"] = saved({"state_dict": {"weight": call}})
        files[f"{name}_legacy.pt"] = saved([call], _use_new_zipfile_serialization=False)
    files["legacy_magic.pt"] = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(
        Call(os.system, ("touch ran",)), 2
    )
    files["persistent.pt"] = zipped({"data.pkl": b"\x80\x02cos\nsystem\nX\x09\x00\x00\x00touch ranQ."})
    files["build.pt"] = zipped({"data.pkl": b"\x80\x02cos\nenviron\n}X\x01\x00\x00\x00aX\x01\x00\x00\x00bsb."})
    files["instance.pt"] = zipped({"data.pkl": b"(X\x09\x00\x00\x00touch ranios\nsystem\n."})
    files["extension.pt"] = zipped({"data.pkl": b"\x80\x02\x82\x01."})
    files["numpy.pt"] = pickle.dumps(np.array([Call(os.system, ("touch ran",))], dtype=object))
    return files


def bombs():
    """Small files that unpack to gigabytes, or take hours to read."""
    zeros = bytes((1 << 26) + 4)
    deflated = zipfile.ZIP_DEFLATED
    good = pickled_tensor((1 << 24) + 1, [(1 << 24) + 1], [1])
    tuples = b"\x80\x02})" + b"".join(b"q\x00h\x00\x86" for _ in range(200)) + b"K\x01s."
    lists = b"\x80\x02]" + b"".join(b"q\x00]h\x00ah\x00a" for _ in range(60)) + b"."
    files = {
        "bomb_pickle.pt": zipped({"data.pkl": zeros}, deflated),
        "bomb_tensor.pt": zipped({"data.pkl": good, "data/0": zeros}, deflated),
        "bomb_code.pt": zipped({"data.pkl": b"\x80\x02}.", "constants.pkl": b".", "code/a.py": zeros}, deflated),
        "bomb.gz": gzip.compress(zeros),
        "hashes.pt": zipped({"data.pkl": tuples}),
        "memo.pt": zipped({"data.pkl": lists}),
        "depth.pt": zipped({"data.pkl": b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b"."}),
        "dicts.pt": zipped({"data.pkl": b"\x80\x02" + b"}" * 2_100_000 + b"."}, deflated),
        "long_text.pt": zipped({"data.pkl": b"\x80\x02X\xff\xff\xff\xff."}),
        "long_bytes.pt": zipped({"data.pkl": b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f."}),
        "long_number.pt": zipped({"data.pkl": b"\x80\x02\x8b\xff\xff\xff\x7f."}),
        "expanded.pt": saved({"weight": torch.zeros(1).expand(1 << 40)}),
        "shared.pt": saved(dict.fromkeys(map(str, range(20_000)), torch.zeros(100_000))),
    }
    for name, arguments in {
        "too_large": (1 << 40, [1 << 40], [1]),
        "outside": (4, [5], [1]),
        "negative_offset": (4, [4], [1], -1),
        "negative_shape": (4, [-4], [1]),
        "negative_stride": (4, [4], [-1]),
        "strides": (4, [2, 2], [1 << 62, 1]),
        "numbers": (4, [1 << 80], [0]),
        "dimensions": (4, [1] * 1000, [1] * 1000),
        "key": (4, [4], [1], 0, b"FloatStorage", b"../../../etc/passwd"),
        "kind": (4, [4], [1], 0, b"_UntypedStorage"),
    }.items():
        files[f"tensor_{name}.pt"] = zipped({"data.pkl": pickled_tensor(*arguments), "data/0": bytes(16)})
    legacy = saved({"weight": torch.zeros(64)}, _use_new_zipfile_serialization=False)
    files["legacy_cut.pt"] = legacy[:-40]
    files["legacy_numel.pt"] = legacy[:-264] + struct.pack("<q", 1 << 50) + legacy[-256:]
    return files


def archives(folder):
    """TorchScript archives with custom code, and other containers."""
    files = {}
    for name, module in {"script": Writes(), "script_inner": Outer()}.items():
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.script(module), buffer)
        files[f"{name}.pt"] = buffer.getvalue()
    whole = files["script.pt"]
    files["script_cut.pt"] = whole[: len(whole) // 2]
    files["script_flipped.pt"] = whole[:80] + bytes([whole[80] ^ 255]) + whole[81:]
    files["script_cycle.pt"] = zipped(
        {
            "data.pkl": b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.",
            "constants.pkl": b"\x80\x02).",
            "code/__torch__.py": "class M(Module):\n  __parameters__ = []\n  __buffers__ = []\n",
        }
    )
    doubled = b"}" + b"".join(
        b"q\x00c__torch__\nM\n)\x81h\x00bq\x00}X\x01\x00\x00\x00ah\x00sX\x01\x00\x00\x00bh\x00s" for _ in range(90)
    )
    files["script_doubled.pt"] = zipped(
        {
            "data.pkl": b"\x80\x02" + doubled + b"q\x00c__torch__\nM\n)\x81h\x00b.",
            "constants.pkl": b"\x80\x02).",
            "code/__torch__.py": "class M(Module):\n  __parameters__ = []\n  __buffers__ = []\n",
        }
    )
    with tarfile.open(folder / "legacy.tar", "w") as tar:
        for name in ("sys_info", "pickle", "storages", "tensors", "\x80\x02\x8a"):
            info = tarfile.TarInfo(name)
            info.size = 10
            tar.addfile(info, io.BytesIO(bytes(10)))
    buffer = io.BytesIO()
    np.savez(buffer, weight=np.array([Call(os.system, ("touch ran",))], dtype=object))
    files["arrays.npz"] = buffer.getvalue()
    files["page.pt"] = b"<!DOCTYPE html><html>404</html>"
    files["lfs.pt"] = files["lfs.safetensors"] = (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1\n"
    )
    files["empty.pt"] = files["empty.safetensors"] = b""
    files["noise.pt"] = b"PK\x03\x04" + bytes(range(256)) * 8
    files["entries.pt"] = zipped({f"x{number}": b"" for number in range(2000)})
    return files


def headers():
    """Corrupt files of safetensors."""
    one = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    files = {
        "length": safetensors_file(b"{}", length=1 << 40),
        "length_max": safetensors_file(b"{}", length=(1 << 64) - 1),
        "length_zero": safetensors_file(b"", length=0),
        "text": safetensors_file(b"not JSON at all"),
        "list": safetensors_file([one]),
        "depth": safetensors_file(b'{"a":' * 100_000),
        "overlap": safetensors_file({"a": one, "b": one | {"data_offsets": [8, 24]}}, bytes(24)),
        "outside": safetensors_file({"a": one}, bytes(8)),
        "backwards": safetensors_file({"a": one | {"data_offsets": [16, 0]}}, bytes(16)),
        "negative": safetensors_file({"a": one | {"shape": [-4]}}, bytes(16)),
        "negative_offset": safetensors_file({"a": one | {"data_offsets": [-16, 0]}}, bytes(16)),
        "product": safetensors_file({"a": one | {"shape": [1 << 62, 1 << 62]}}, bytes(16)),
        "dtype": safetensors_file({"a": one | {"dtype": "PY"}}, bytes(16)),
        "excess": safetensors_file({"a": one}, bytes(160)),
        "twice": safetensors_file(b'{"a":%s,"a":%s}' % ((json.dumps(one).encode(),) * 2), bytes(32)),
        "utf8": safetensors_file(b'{"\xff\xfe":1}'),
        "whole_numbers": safetensors.torch.save({"visual.proj": torch.zeros(2, 2, dtype=torch.int64)}),
    }
    return {f"{name}.safetensors": content for name, content in files.items()}


def giants(clip):
    """State dicts with a CLIP's names and sizes that exceed the memory, empty tensors, or endless layers."""
    weights = {name: value.half() if value.is_floating_point() else value for name, value in clip.state_dict().items()}
    many = {f"transformer.resblocks.{number}.ln_1.bias": torch.zeros(1) for number in range(2000)}
    return {
        "vocabulary.pt": saved(weights | {"token_embedding.weight": torch.zeros(1 << 50, 0)}),
        "positions.pt": saved(weights | {"positional_embedding": torch.zeros(200_000, 64, dtype=torch.half)}),
        "width.pt": saved(weights | {"ln_final.weight": torch.zeros(1 << 40, 0)}),
        "no_width.pt": saved(weights | {"ln_final.weight": torch.zeros(0)}),
        "patch.pt": saved(weights | {"visual.conv1.weight": torch.zeros(0, 3, 0, 0)}),
        "layers.pt": saved(weights | many),
        "scalars.pt": saved({name: torch.zeros(()) for name in weights}),
        "complex.pt": saved({name: value.to(torch.complex64) for name, value in weights.items()}),
        "whole.pt": saved({name: value.long() for name, value in weights.items()}),
    }


def write_clips(folder, clip):
    """Write all files that pretend to hold a CLIP."""
    files = pickles() | bombs() | archives(folder) | headers() | giants(clip)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "folder.pt").mkdir()


def write_barts(folder, bart_folder):
    """Write folders that pretend to hold a BART, each a copy of a real one with one change."""
    config = json.loads((bart_folder / "config.json").read_text())
    tokenizer = json.loads((bart_folder / "tokenizer_config.json").read_text())

    def copy(name):
        shutil.copytree(bart_folder, folder / name)
        return folder / name

    for name, (function, arguments) in CALLS.items():
        changed = copy(f"bin_{name}")
        (changed / "model.safetensors").unlink()
        (changed / "pytorch_model.bin").write_bytes(saved({"weight": by_reference(function, arguments)}))
    code = "open('ran', 'w')\n"
    custom = {"AutoConfig": "code.Own", "AutoTokenizer": ["code.Own", "code.Own"], "AutoModelForSeq2SeqLM": "code.Own"}
    for name, settings in {
        "layers": {"encoder_layers": 10**9},
        "width": {"d_model": 1 << 40},
        "ffn": {"encoder_ffn_dim": 1 << 40},
        "vocabulary": {"vocab_size": 1 << 50},
        "text_size": {"d_model": "32"},
        "heads": {"encoder_attention_heads": 7},
        "no_heads": {"encoder_attention_heads": 0},
        "function": {"activation_function": "__import__"},
        "dropout": {"dropout": "much"},
        "id": {"pad_token_id": [1]},
        "t5": {"model_type": "t5"},
        "bert": {"model_type": "bert"},
        "mbart": {"model_type": "mbart"},
        "custom": {"model_type": "own", "auto_map": custom},
    }.items():
        (copy(name) / "config.json").write_text(json.dumps(config | settings))
    for name, content in {
        "text": "{",
        "list": "[]",
        "empty": "",
        "lfs": "version https://git-lfs.github.com/spec/v1\n",
    }.items():
        (copy(f"config_{name}") / "config.json").write_text(content)
        (copy(f"tokenizer_{name}") / "tokenizer.json").write_text(content)
    (copy("config_depth") / "config.json").write_text("[" * 100_000)
    changed = copy("code_in_tokenizer_may_load")
    (changed / "code.py").write_text(code)
    (changed / "tokenizer_config.json").write_text(
        json.dumps(tokenizer | {"tokenizer_class": "Own", "auto_map": custom})
    )
    for number, names in enumerate((["../../../etc/passwd"], ["/etc/passwd"], [5], [])):
        changed = copy(f"index_{number}")
        (changed / "model.safetensors").unlink()
        listed = {str(place): name for place, name in enumerate(names)}
        (changed / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    (copy("no_config") / "config.json").unlink()
    (copy("no_weights") / "model.safetensors").unlink()
    changed = copy("adapter")
    (changed / "model.safetensors").unlink()
    (changed / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../bin_system"}))


def write_models(folder, model_folder):
    """Write model folders with one change each."""

    def copy(name):
        shutil.copytree(model_folder, folder / name)
        return folder / name

    config = json.loads((model_folder / "config.json").read_text())
    for number, value in enumerate(("../../x", None, 5, ["pooled"], {"pooled": 1}, "", "Pooled")):
        (copy(f"features_{number}") / "config.json").write_text(json.dumps(config | {"image_features": value}))
    (copy("format") / "config.json").write_text(json.dumps(config | {"format_version": "1; import os"}))
    for name in ("config.json", "model.safetensors", "clip", "bart", "clip/clip.safetensors", "bart/config.json"):
        changed = copy(f"without_{name.replace('/', '_')}") / name
        shutil.rmtree(changed) if changed.is_dir() else changed.unlink()
    (copy("projections_pickle") / "model.safetensors").write_bytes(saved(Call(os.system, ("touch ran",))))
    names = ("text_projection", "image_projection", "text_back_projection")
    for name, value in {"shape": torch.zeros(2, 2), "whole": torch.zeros(32, 32, dtype=torch.int32)}.items():
        safetensors.torch.save_file(
            {key: value.clone() for key in names}, copy(f"projections_{name}") / "model.safetensors"
        )
    for name, content in {
        "bomb": gzip.compress(b"a b\n" * (1 << 24)),
        "cut": gzip.compress(b"#\na b\n" * 100)[:40],
        "text": b"a b\nc d\n",
        "latin": gzip.compress(b"#\n\xe9 \xe9\n"),
        "words": gzip.compress(b"#\na b c\n"),
        "few": gzip.compress(b"#\na b\n"),
        "none": b"",
    }.items():
        (copy(f"merges_{name}") / "clip" / "merges.txt.gz").write_bytes(content)


def write_checkpoints(folder):
    """Write files that pretend to be checkpoints."""
    for name, (function, arguments) in CALLS.items():
        content = {"state_dict": {"model.x": torch.zeros(2)}, "callbacks": by_reference(function, arguments)}
        (folder / f"{name}.ckpt").write_bytes(saved(content))
    for name, content in {"list": [1], "empty": {}, "text": {"state_dict": "x"}, "none": None}.items():
        (folder / f"{name}.ckpt").write_bytes(saved(content))
    (folder / "garbage.ckpt").write_bytes(bytes(range(256)) * 20)
    (folder / "nothing.ckpt").write_bytes(b"")
