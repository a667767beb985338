"""The command line: finds its commands, is quick to help, and explains errors in one line."""

import json
import subprocess
import sys

import pytest

from vlkd_pl import __version__
from vlkd_pl.cli import main


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    for command in ("fit", "validate", "test", "sample", "prepare", "caption", "scores", "summary"):
        assert f"\n  {command} " in printed


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vlkd-pl {__version__}\n"


def test_unknown_command(capsys):
    assert main(["distil"]) == 2
    assert "no command 'distil'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        *([name, "--help"] for name in ("sample", "prepare", "scores", "summary", "caption", "grid", "cache")),
    ],
)
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys\nfrom vlkd_pl.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers', 'pytorch_lightning', 'clip') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def write_scores(folder, **content):
    folder.mkdir()
    (folder / "scores.json").write_text(json.dumps(content))
    return str(folder)


def test_scores_prints_runs_side_by_side_in_percent(tmp_path, capsys):
    runs = [
        write_scores(tmp_path / name, scores={"cider": cider}, units={"cider": "fraction"}, caption_panel=f"{name}.png")
        for name, cider in (("after", 5.5), ("before", 0.25))
    ]
    assert main(["scores", *runs]) == 0
    scale, header, row, *panels = capsys.readouterr().out.splitlines()
    assert scale == "in percent, CIDEr times 100 (JSON files hold fractions)"
    assert header.split() == runs
    assert row.split() == ["cider", "550.00", "25.00"]
    assert [line.split()[-1] for line in panels] == ["after.png", "before.png"]


def test_scores_knows_what_is_in_percent(tmp_path, capsys):
    old = write_scores(tmp_path / "old", scores={"accuracy/overall": 58.2, "off_prompt": 0.5, "rouge-l": 31.5})
    units = {"accuracy/overall": "percent", "off_prompt": "fraction"}
    new = write_scores(tmp_path / "new", scores={"accuracy/overall": 60.1, "off_prompt": 0.25}, units=units)
    assert main(["scores", old, new]) == 0
    scale, _, *rows = capsys.readouterr().out.splitlines()
    assert scale == "in percent (JSON files name the units)"
    assert [row.split() for row in rows] == [
        ["accuracy/overall", "58.20", "60.10"],
        ["off_prompt", "50.00", "25.00"],
        ["rouge-l", "31.50"],
    ]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("{", "Expecting"),
        ("[]", "it is a list of 0: it must be an object"),
        ("{}", "it has no scores"),
        ('{"scores": null}', "it has null as scores"),
        ('{"scores": {"cider": "1"}}', 'scores: it has "1" as cider: it must be a number'),
        (
            '{"scores": {"cider": 1}, "units": {"cider": "metres"}}',
            "the unit of cider must be one of fraction, percent",
        ),
        ('{"scores": {"cider": 1}, "units": {"cider": []}}', "the unit of cider"),
        ('{"scores": {"cider": 1}, "caption_panel": 5}', "it has 5 as caption_panel"),
    ],
)
def test_scores_of_another_format(tmp_path, capsys, content, error):
    (tmp_path / "scores.json").write_text(content)
    assert main(["scores", str(tmp_path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"vlkd-pl scores: {tmp_path}/scores.json is not a file of scores")
    assert error in printed.err
    assert printed.err.count("\n") == 1


def test_scores_of_an_unfinished_test(tmp_path, capsys):
    assert main(["scores", str(tmp_path)]) == 1
    assert f"no scores.json in {tmp_path}" in capsys.readouterr().err
