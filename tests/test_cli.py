"""The command line: finds its commands, is quick to help, and explains errors in one line."""

import subprocess
import sys
from pathlib import Path

import pytest

from vlkd_pl import __version__
from vlkd_pl.cli import _with_shipped_configs, main


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for command in ("fit", "validate", "test", "sample", "prepare", "caption", "scores"):
        assert f"\n  {command} " in printed


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vlkd-pl {__version__}\n"


def test_unknown_command(capsys):
    assert main(["distil"]) == 2
    assert "no command 'distil'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["--help"], *([name, "--help"] for name in ("sample", "prepare", "scores", "caption", "grid", "cache"))],
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom vlkd_pl.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers', 'pytorch_lightning', 'clip') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_scores_prints_runs_side_by_side(tmp_path, capsys):
    for name, cider in (("after", 5.5), ("before", 0.25)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "scores.json").write_text(
            f'{{"scores": {{"cider": {cider}}}, "caption_panel": "{name}.png"}}'
        )
    assert main(["scores", str(tmp_path / "after"), str(tmp_path / "before")]) == 0
    header, row, *panels = capsys.readouterr().out.splitlines()
    assert header.split() == [str(tmp_path / "after"), str(tmp_path / "before")]
    assert row.split() == ["cider", "5.500", "0.250"]
    assert [line.split()[-1] for line in panels] == ["after.png", "before.png"]


def test_scores_of_an_unfinished_test(tmp_path, capsys):
    assert main(["scores", str(tmp_path)]) == 1
    assert f"no scores.json in {tmp_path}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (["--config", "configs/glue.yaml"], ["--config", "{shipped}"]),
        (["-c", "configs/glue.yaml"], ["-c", "{shipped}"]),
        (["--config=configs/glue.yaml", "--a=b=c"], ["--config={shipped}", "--a=b=c"]),
        (["--config", "configs/there.yaml"], ["--config", "configs/there.yaml"]),
        (["--config", "configs/no.yaml"], ["--config", "configs/no.yaml"]),
        (["--config", "glue.yaml", "configs/glue.yaml"], ["--config", "glue.yaml", "configs/glue.yaml"]),
        (["--output", "configs/glue.yaml", "--config"], ["--output", "configs/glue.yaml", "--config"]),
    ],
)
def test_shipped_configurations_stand_in_for_files_that_are_not_there(given, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "there.yaml").touch()
    shipped = Path(__file__).parents[1] / "configs" / "glue.yaml"
    assert _with_shipped_configs(given) == [argument.format(shipped=shipped) for argument in found]
