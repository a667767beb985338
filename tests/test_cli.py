"""The command line: finds its commands, is quick to help, and explains errors in one line."""

import subprocess
import sys

import pytest

from vlkd_pl import __version__
from vlkd_pl.cli import main


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
