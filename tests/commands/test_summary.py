"""The ten lines at the end of make distill, of files of scores as tests write them."""

import json
import re
import shlex
from pathlib import Path

import pytest

from vlkd_pl.cli import main
from vlkd_pl.evaluation.report import Report
from vlkd_pl.evaluation.vqa import AnswerPrediction, Question, VQAEvaluator

ROOT = Path(__file__).parents[2]
PANEL = "runs/sample/after/panels/test_captions_001800.png"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What make distill leaves in its folder, which is named as from the checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [".venv/bin/vlkd-pl"])
    monkeypatch.setenv("PATH", "")
    folder = Path("runs/sample")
    (folder / "distill/model").mkdir(parents=True)
    (folder / "distill/model/config.json").write_text("{}")
    for name, cider, recall in (("before", 0.294, 0.0025), ("after", 6.361, 0.9975)):
        scores = {
            "clip_text_to_image_r1": 1.0,
            "bart_text_to_image_r1": recall,
            "cider": cider,
            "cider_shuffled": 0.488,
        }
        Report(scores).write(folder / name, Path(PANEL))
    evaluator = VQAEvaluator()
    question = Question(7, 1, "what color is it?", ("red",) * 10, "other")
    answers = [AnswerPrediction(question, "red", shuffled_image_answer="blue")]
    answers.append(AnswerPrediction(question._replace(question_id=8), "pink", shuffled_image_answer="blue"))
    evaluator.update(answers)
    evaluator.compute().write(folder / "zeroshot_vqav2")
    return folder


def printed(folder, capsys):
    assert main(["summary", str(folder)]) == 0
    return capsys.readouterr().out.splitlines()


def test_ten_lines(folder, capsys):
    lines = printed(folder, capsys)
    assert lines == [
        "model  runs/sample/distill/model",
        "                                 before  distilled  shuffled control",
        "       captions, CIDEr             29.4      636.1              48.8",
        "       answers, VQA accuracy          -       50.0               0.0",
        "       recall@1, text to image      0.2       99.8                 -",
        f"panel  {PANEL}",
        "next   .venv/bin/vlkd-pl caption docs/images/scene.jpg --num-masks 3 \\",
        "         --model runs/sample/distill/model",
        "       .venv/bin/vlkd-pl ask IMAGE QUESTION --model runs/sample/distill/model",
        "       make demo, make zeroshot, make finetune; docs/tutorial.md",
    ]
    assert max(map(len, lines)) <= 80


def test_what_to_run_next_exists(folder, capsys):
    *_, caption, model, ask, targets = (line.removeprefix("next").strip() for line in printed(folder, capsys))
    for line in (f"{caption[:-1]} {model}", ask):
        program, command, *arguments = shlex.split(line)
        assert program == ".venv/bin/vlkd-pl"
        with pytest.raises(SystemExit, match="0"):
            main([command, *arguments, "--help"])
    assert (ROOT / caption.split()[2]).is_file()
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    assert set(re.findall(r"make (\w+)", targets)) == {"demo", "zeroshot", "finetune"} <= set(phony)
    assert (ROOT / targets.split("; ")[1]).is_file()


def test_missing_scores_are_stated(folder, capsys):
    (folder / "zeroshot_vqav2/scores.json").unlink()
    (folder / "after/scores.json").write_text(json.dumps({"scores": {"cider": 6.361}}))
    lines = printed(folder, capsys)
    assert lines[2].split()[2:] == ["29.4", "636.1", "missing"]
    assert lines[3].split()[3:] == ["-", "missing", "missing"]
    assert lines[4].split()[4:] == ["0.2", "missing", "-"]
    assert lines[5].split() == ["panel", "missing"]
    (folder / "distill/model/config.json").unlink()
    lines = printed(folder, capsys)
    assert (lines[0].split(), lines[6:]) == (["model", "missing"], ["next   make distill, which writes the model"])


def test_a_file_of_another_format_is_refused_in_one_line(folder, capsys):
    (folder / "before/scores.json").write_text("{}")
    assert main(["summary", str(folder)]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    start = "vlkd-pl summary: runs/sample/before/scores.json is not a file of scores that vlkd-pl test writes: "
    assert output.err == f"{start}it has no scores: it must be an object\n"


def test_it_ends_make_distill():
    makefile = (ROOT / "Makefile").read_text()
    *_, last = re.search(r"^distill:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)[1].splitlines()
    assert last == "\t$(BIN)/vlkd-pl summary $(RUN)"
