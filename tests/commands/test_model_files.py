"""Wrong model files in the trainer's commands: one line each; and which CLIP and BART a run takes."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from distilling import arguments
from tiny_models import tiny_bart, tiny_clip

from vlkd_pl.cli import main
from vlkd_pl.clip.frozen import FrozenCLIP
from vlkd_pl.commands.train import run
from vlkd_pl.models.vlkd import VLKDModel
from vlkd_pl.sample.tokenizers import clip_merges

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"


def one_line(capsys, command_line):
    """The line that a command prints for an error, when it prints nothing else of it."""
    assert main(command_line) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    (line,) = [line for line in lines if line.startswith("vlkd-pl")]
    assert lines[-1] == line
    assert not any("Traceback" in line or "error:" in line for line in lines)
    return line


def write_wrong(folder, world, model_folder):
    """Writes wrong files; returns the options that name them, with a part of each one's line."""
    torch.save(tiny_clip().state_dict(), folder / "gelu.pt")
    (folder / "pointer.pt").write_bytes(POINTER)
    (folder / "garbage.ckpt").write_bytes(bytes(range(256)))
    torch.save({}, folder / "empty.ckpt")
    (folder / "nothing").mkdir()
    for name in ("t5", "no_tokenizer", "cut"):
        shutil.copytree(world.bart, folder / name)
    config = json.loads((folder / "t5" / "config.json").read_text())
    (folder / "t5" / "config.json").write_text(json.dumps(config | {"model_type": "t5"}))
    for path in [*(folder / "no_tokenizer").glob("*token*"), *(folder / "no_tokenizer").glob("vocab*")]:
        path.unlink()
    weights = (folder / "cut" / "model.safetensors").read_bytes()
    (folder / "cut" / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    for name in ("no_config", "features"):
        shutil.copytree(model_folder, folder / name)
    (folder / "no_config" / "config.json").unlink()
    (folder / "features" / "config.json").write_text('{"format_version": 1, "image_features": "../../x"}')
    size = {"data__init_args__image_size": 64}
    alone = {f"model__init_args__{name}": "null" for name in ("clip", "bart", "image_features")}
    return [
        ({"model__init_args__clip": folder / "pointer.pt"} | size, "is a git-lfs pointer"),
        ({"model__init_args__clip": folder / "nothing"} | size, "holds no clip.safetensors"),
        ({"model__init_args__bart": folder / "t5"}, "has the model_type 't5', not 'bart'"),
        ({"model__init_args__bart": folder / "no_tokenizer"}, "holds no tokenizer"),
        ({"model__init_args__bart": folder / "cut"}, "model.safetensors is corrupt"),
        ({"model__init_args__bart": folder / "nothing"}, "config.json is missing"),
        ({"model__init_args__init_from": folder / "garbage.ckpt"}, "garbage.ckpt is not a file of weights"),
        ({"model__init_args__init_from": folder / "empty.ckpt"}, "empty.ckpt is not a checkpoint of a model"),
        ({"model__init_args__init_from": folder / "nothing"}, "config.json is missing"),
        ({"model__init_args__init_from": folder / "no_config"}, "config.json is missing"),
        ({"model__init_args__init_from": folder / "features"}, "image_features is '../../x', not one of pooled"),
        ({"model__init_args__init_from": folder / "nowhere"}, "no model folder or checkpoint at"),
        (alone | {"model__init_args__init_from": folder / "nowhere"}, "no model folder or checkpoint at"),
        (alone | {"model__init_args__init_from": "https://a.b/c"}, "no model folder or checkpoint at https://a.b/c"),
        ({"model__init_args__clip": "https://a.b/c.pt"} | size, "there is no CLIP at https://a.b/c.pt"),
        ({"model__init_args__bart": "https://a.b/c"}, "BART cannot be loaded from https://a.b/c"),
    ]


@pytest.mark.parametrize("command", ["fit", "test"])
def test_wrong_files_are_reported_in_one_line(world, model_folder, tmp_path, capsys, command):
    wrong = write_wrong(tmp_path, world, model_folder)
    for options, message in wrong if command == "fit" else wrong[:12:3]:
        line = one_line(capsys, arguments(world, tmp_path / "run", command, **options))
        assert message in line, options
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_clip_that_nobody_vouches_for_is_refused(world, tmp_path, capsys):
    clip = tiny_clip(vocab_size=49408)
    torch.save(clip.state_dict(), tmp_path / "mine.pt")
    options = {"model__init_args__clip": tmp_path / "mine.pt", "data__init_args__image_size": 64}
    line = one_line(capsys, arguments(world, tmp_path / "run", **options))
    option, digest = line.split()[-2:]
    assert (option, len(digest)) == ("--model.clip_sha256", 64)
    command = arguments(world, tmp_path / "run", "test", **options)
    fingerprint = run([*command, f"{option}={digest}"]).model.model.clip.fingerprint
    assert fingerprint == FrozenCLIP(clip).fingerprint


def test_evaluation_takes_all_of_the_model_folder(world, model_folder, tmp_path):
    """Also where the configuration of the training names other models, which need not even be here."""
    others = {"clip": "ViT-B/16", "bart": "facebook/bart-large", "image_features": "pooled", "clip_sha256": "0" * 64}
    options = {f"model__init_args__{name}": value for name, value in others.items()}
    line = run(arguments(world, tmp_path, "test", **options, model__init_args__init_from=model_folder))
    expected = VLKDModel.from_pretrained(model_folder)
    torch.testing.assert_close(dict(line.model.model.state_dict()), dict(expected.state_dict()), rtol=0, atol=0)
    assert line.model.model.image_features == expected.image_features == "all"
    assert line.datamodule.clip_tokenizer.end_id == 654
    assert line.datamodule.clip_tokenizer.context_length == 24


def test_training_refuses_another_clip_or_bart_than_the_model_folders(world, model_folder, tmp_path, capsys):
    other = {
        name: value + 0.1 if name == "text_projection" else value for name, value in tiny_clip().state_dict().items()
    }
    (tmp_path / "clip").mkdir()
    safetensors.torch.save_file(other, tmp_path / "clip" / "clip.safetensors")
    (tmp_path / "clip" / "merges.txt.gz").write_bytes(clip_merges())
    shutil.copytree(world.bart, tmp_path / "bart")
    config = json.loads((tmp_path / "bart" / "config.json").read_text())
    tiny_bart(config["vocab_size"], width=48).save_pretrained(tmp_path / "bart")
    for name, message in {"clip": "but model.clip, ", "bart": "which has d_model 48 instead of 32"}.items():
        options = {
            "model__init_args__init_from": model_folder,
            "model__init_args__image_features": "all",
            f"model__init_args__{name}": tmp_path / name,
        }
        line = one_line(capsys, arguments(world, tmp_path / "run", **options))
        assert "init_from: " in line
        assert message in line
        assert "leave out that of the two that is wrong" in line
