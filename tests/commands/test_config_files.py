"""Shipped configuration files stand in for local ones that do not exist."""

from pathlib import Path

import pytest

from vlkd_pl.cli import main
from vlkd_pl.commands.config_files import find_config

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", ["glue.yaml", "configs/glue.yaml", "overlays/ddp.yaml", "configs/sample/distill.yaml"])
def test_shipped_files_are_found_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == CONFIGS / name.removeprefix("configs/")


def test_a_local_file_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "glue.yaml").touch()
    assert find_config("glue.yaml") == Path("glue.yaml")


@pytest.mark.parametrize(
    "arguments",
    [
        ["fit", "--config", "{}"],
        ["fit", "--config={}"],
        ["test", "-c", "{}"],
        ["cache", "--config", "{}", "--output", "x"],
    ],
)
def test_a_missing_file_names_both_places(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([argument.format("configs/destill.yaml") for argument in arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"no configuration file configs/destill.yaml, neither here nor in {CONFIGS}" in line
    assert line.endswith("did you mean distill.yaml?")


def test_an_absolute_path_is_not_replaced(tmp_path):
    with pytest.raises(FileNotFoundError, match="no configuration file"):
        find_config(str(tmp_path / "glue.yaml"))
