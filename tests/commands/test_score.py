"""vlkd-pl score: files of the benchmarks' formats, tables, JSON, and errors of one line."""

import json
import subprocess
import sys

import pytest

from vlkd_pl.cli import main

CAPTIONS = {1: ["A red fish.", "There is a red fish on the grass."], 2: ["Two blue boats at night."], 3: ["A tree."]}
METRICS = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr", "SPICE"]


@pytest.fixture(autouse=True)
def without_java(monkeypatch):
    """METEOR takes seconds to start."""
    monkeypatch.setenv("PATH", "")


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def coco(captions, domains=None):
    images = [{"id": key, "file_name": f"{key}.jpg"} for key in captions]
    if domains is not None:
        images = [image | {"domain": domains[image["id"]]} for image in images]
    annotations = [{"image_id": key, "caption": text} for key, texts in captions.items() for text in texts]
    return {"images": images, "annotations": [{"id": row} | annotation for row, annotation in enumerate(annotations)]}


def predicted(captions):
    return [{"image_id": key, "caption": text} for key, text in captions.items()]


def score_captions(folder, references, predictions, *options):
    """Runs the command; returns its status and what it wrote."""
    output = folder / "scores.json"
    files = ["--references", write(folder / "references.json", references)]
    files += ["--predictions", write(folder / "predictions.json", predictions), "--output", str(output)]
    status = main(["score", "captions", *files, *options])
    return status, json.loads(output.read_text()) if output.exists() else None


def test_captions(tmp_path, capsys):
    predictions = {1: "a red fish", 2: "two boats", 3: "a tree"}
    status, written = score_captions(tmp_path, coco(CAPTIONS), predicted(predictions))
    assert status == 0
    printed = capsys.readouterr()
    assert printed.out.splitlines()[:2] == [
        "3 images, 3 with reference captions",
        "in percent, CIDEr times 100 (JSON files hold fractions)",
    ]
    rows = dict(line.split() for line in printed.out.splitlines()[3:9])
    assert list(rows) == [name for name in METRICS if name not in ("METEOR", "SPICE")]
    assert [line.split(":")[0] for line in printed.out.splitlines()[9:]] == [
        "METEOR not computed",
        "SPICE not computed",
    ]
    assert list(written) == [*METRICS, "not_computed", "per_image", "units"]
    assert rows == {name: f"{100 * written[name]:.1f}" for name in rows}
    assert written["units"] == dict.fromkeys(METRICS, "fraction")
    assert [name for name in METRICS if not written[name]] == ["METEOR", "SPICE"]
    assert "java is not installed" in written["not_computed"]["METEOR"]
    assert list(written["per_image"]) == ["1", "2", "3"]
    assert written["CIDEr"] == pytest.approx(sum(scores["CIDEr"] for scores in written["per_image"].values()) / 3)
    assert 0 < written["BLEU-4"] < written["BLEU-1"] < 1
    assert printed.err == ""


def test_metrics_can_be_chosen(tmp_path, capsys):
    status, written = score_captions(
        tmp_path, coco(CAPTIONS), predicted({1: "a", 2: "b", 3: "c"}), "--metrics", "CIDEr", "ROUGE-L"
    )
    assert status == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[3:]] == ["CIDEr", "ROUGE-L"]
    assert [name for name in METRICS if written[name] is not None] == ["ROUGE-L", "CIDEr"]
    assert written["not_computed"]["BLEU-2"] == "not among --metrics CIDEr ROUGE-L"


def test_domains(tmp_path, capsys):
    domains = {1: "in-domain", 2: "out-domain", 3: "in-domain"}
    status, written = score_captions(
        tmp_path, coco(CAPTIONS, domains), predicted({1: "a red fish", 2: "x", 3: "a tree"}), "--metrics", "ROUGE-L"
    )
    assert status == 0
    assert capsys.readouterr().out.splitlines()[2].split() == ["all", "in-domain", "out-domain"]
    per_domain = {name: scores["ROUGE-L"] for name, scores in written["per_domain"].items()}
    assert per_domain == pytest.approx({"in-domain": 1, "out-domain": 0, "overall": 2 / 3})
    assert written["ROUGE-L"] == per_domain["overall"]


def test_karpathys_split(tmp_path):
    content = {
        "images": [
            {"cocoid": key, "filename": "a.jpg", "split": split, "sentences": [{"raw": text} for text in CAPTIONS[key]]}
            for key, split in ((1, "test"), (2, "test"), (3, "val"))
        ]
    }
    predictions = predicted({1: "A red fish", 2: "Two blue boats at night"})
    assert score_captions(tmp_path, content, predictions, "--split", "test")[1]["ROUGE-L"] == pytest.approx(1)
    assert score_captions(tmp_path, content, predictions, "--split", "val")[0] == 1


def test_subset_is_scored_as_if_it_were_all(tmp_path):
    two = {key: CAPTIONS[key] for key in (1, 2)}
    predictions = predicted({1: "a red fish", 2: "two boats"})
    _, alone = score_captions(tmp_path, coco(two), predictions)
    _, subset = score_captions(tmp_path, coco(CAPTIONS), predictions, "--subset")
    assert subset == alone


@pytest.mark.parametrize(
    ("predictions", "error"),
    [
        (predicted({2: "x"}), "2 of 3 images have no prediction (first: 1, 3); --subset scores only the images that"),
        (predicted({1: "x", 2: "x", 3: "x", 9: "x"}), "1 of 4 predictions are for an unknown image (first: 9)"),
        (predicted({" 1": "x", 2: "x", 3: "x"}), "1 of 3 predictions are for an unknown image (first: ' 1')"),
        (predicted({"1": "x", 1: "x", 2: "x", 3: "x"}), "has several predictions for 1 image_ids (first: 1)"),
        (predicted({1: "x", 2: "x", 3: "x"}) * 2, "has several predictions for 3 image_ids (first: 1, 2, 3)"),
        ([{"image_id": 1, "caption": "x"}, {"image_id": 2}], "entry 2 has no caption: it must be a text"),
        ([{"image_id": 1, "caption": None}], "entry 1 has null as caption: it must be a text"),
        ([{"image_id": 1.5, "caption": "x"}], "entry 1 has 1.5 as image_id: it must be a number or a text"),
        ([{"image_id": True, "caption": "x"}], "entry 1 has true as image_id"),
        ([["image_id", 1]], "entry 1 is a list of 2: it must be an object"),
        ('[{"image_id": 1, "caption": "x", "caption": "y"}]', "entry 1 has two values as caption"),
        ('[{"image_id": 1, "caption": "half of \\ud83d"}]', "entry 1 has"),
        ("[" * 100_000, "are nested too deeply"),
        ({"1": "x"}, "is not a list of"),
        ("nothing", "is not a JSON file"),
    ],
)
def test_mismatched_predictions_are_one_line(tmp_path, capsys, predictions, error):
    assert score_captions(tmp_path, coco(CAPTIONS), predictions) == (1, None)
    printed = capsys.readouterr()
    assert error in printed.err
    assert printed.err.startswith("vlkd-pl score captions: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""


def test_ids_match_as_numbers_or_texts(tmp_path):
    predictions = {1: "a red fish", 2: "two boats", 3: "a tree"}
    _, written = score_captions(tmp_path, coco(CAPTIONS), predicted(predictions))
    texts = {str(key): text for key, text in predictions.items()}
    assert score_captions(tmp_path, coco(CAPTIONS), predicted(texts)) == (0, written)
    references = coco(CAPTIONS)
    for annotation in references["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
    assert score_captions(tmp_path, references, predicted(predictions)) == (0, written)


def test_cider_of_one_image_is_explained(tmp_path, capsys):
    one = score_captions(tmp_path, coco({1: ["a fish"]}), predicted({1: "a fish"}), "--metrics", "CIDEr")
    assert one[1]["CIDEr"] == 0
    printed = capsys.readouterr().err
    assert printed.startswith("vlkd-pl score captions: CIDEr is 0, since")
    assert printed.count("\n") == 1
    domains = {1: "in-domain", 2: "out-domain", 3: "out-domain"}
    everything = predicted({1: "a", 2: "b", 3: "c"})
    score_captions(tmp_path, coco(CAPTIONS, domains), everything, "--metrics", "CIDEr", "BLEU")
    printed = capsys.readouterr().err
    assert printed.startswith("vlkd-pl score captions: in-domain: CIDEr is 0")
    assert printed.count("\n") == 1
    score_captions(tmp_path, coco({1: ["a fish"]}), predicted({1: "a fish"}), "--metrics", "BLEU")
    assert capsys.readouterr().err == ""


def test_unknown_images_are_an_error_in_a_subset_too(tmp_path, capsys):
    assert score_captions(tmp_path, coco(CAPTIONS), predicted({1: "x", 9: "x"}), "--subset")[0] == 1
    assert "unknown image (first: 9)" in capsys.readouterr().err


def test_images_without_captions_cannot_be_scored(tmp_path, capsys):
    everything = {1: "a", 2: "b", 3: "c", 4: "d"}
    assert score_captions(tmp_path, coco(CAPTIONS | {4: []}), predicted(everything))[0] == 1
    assert "1 of 4 images have no reference caption (first: 4)" in capsys.readouterr().err
    del everything[4]
    assert score_captions(tmp_path, coco(CAPTIONS | {4: []}), predicted(everything))[0] == 0


def test_missing_or_invalid_files_are_one_line(tmp_path, capsys):
    predictions = write(tmp_path / "predictions.json", predicted({1: "x"}))
    for references in (str(tmp_path / "nothing.json"), write(tmp_path / "bad.json", "{"), predictions):
        assert main(["score", "captions", "--references", references, "--predictions", predictions]) == 1
        printed = capsys.readouterr().err
        assert references in printed
        assert printed.count("\n") == 1
    references = write(tmp_path / "references.json", coco(CAPTIONS))
    assert main(["score", "captions", "--references", references, "--predictions", str(tmp_path / "no.json")]) == 1
    assert "no.json" in capsys.readouterr().err


def vqa_files(folder, answers_of):
    questions = [{"question_id": key, "image_id": 5, "question": "?"} for key in (1, 2, 3)]
    people = {1: ["yes"] * 3 + ["no"] * 7, 2: ["2"] * 9 + ["3"], 3: ["red"] + ["blue"] * 9}
    kinds = {1: ("is the", "yes/no"), 2: ("how many", "number"), 3: ("what color", "other")}
    annotations = [
        {
            "question_id": key,
            "image_id": 5,
            "question_type": kinds[key][0],
            "answer_type": kinds[key][1],
            "answers": [{"answer": text, "answer_id": row} for row, text in enumerate(answers, start=1)],
        }
        for key, answers in people.items()
    ]
    predictions = [{"question_id": key, "answer": text} for key, text in answers_of.items()]
    return [
        *("--questions", write(folder / "questions.json", {"questions": questions})),
        *("--annotations", write(folder / "annotations.json", {"annotations": annotations})),
        *("--predictions", write(folder / "predictions.json", predictions)),
    ]


def test_vqa(tmp_path, capsys):
    files = vqa_files(tmp_path, {1: "Yes", 2: "two", 3: "red"})
    assert main(["score", "vqa", *files, "--output", str(tmp_path / "scores.json")]) == 0
    assert json.loads((tmp_path / "scores.json").read_text()) == {
        "overall": 73.33,
        "perAnswerType": {"yes/no": 90, "number": 100, "other": 30},
        "perQuestionType": {"is the": 90, "how many": 100, "what color": 30},
        "per_question": {"1": 90, "2": 100, "3": 30},
        "units": dict.fromkeys(["overall", "perAnswerType", "perQuestionType", "per_question"], "percent"),
    }
    output = capsys.readouterr()
    assert output.err == ""
    printed = output.out.splitlines()
    assert printed[:2] == ["3 questions", "in percent (JSON files hold the same)"]
    assert printed[3].split() == ["overall", "73.33"]
    assert [line.split()[-1] for line in printed if line.startswith("answer: ")] == ["100.00", "30.00", "90.00"]


def test_mismatched_vqa_predictions_are_one_line(tmp_path, capsys):
    assert main(["score", "vqa", *vqa_files(tmp_path, {1: "yes", 7: "no"})]) == 1
    printed = capsys.readouterr().err
    assert "2 of 3 questions have no prediction (first: 2, 3)" in printed
    assert "1 of 2 predictions are for an unknown question (first: 7)" in printed
    assert main(["score", "vqa", *vqa_files(tmp_path, {1: "yes"}), "--subset"]) == 0
    assert "90.00" in capsys.readouterr().out


def test_summaries(tmp_path, capsys):
    files = ["--references", write(tmp_path / "references.txt", "A dog barked. Two cats slept.\n\u2028a fish\n")]
    files += ["--predictions", write(tmp_path / "predictions.txt", "Two cats slept. A dog barked.\n\n")]
    assert main(["score", "summaries", *files, "--output", str(tmp_path / "scores.json")]) == 0
    written = json.loads((tmp_path / "scores.json").read_text())
    units = written.pop("units")
    assert units == dict.fromkeys(written, "percent")
    assert written == pytest.approx({"ROUGE-1": 50, "ROUGE-2": 40, "ROUGE-L": 25, "ROUGE-Lsum": 50})
    assert capsys.readouterr().out.splitlines()[-1].split() == ["ROUGE-Lsum", "50.00"]


def test_few_answers_are_noted_once(tmp_path, capsys):
    files = vqa_files(tmp_path, {1: "yes", 2: "2", 3: "red"})
    content = json.loads((tmp_path / "annotations.json").read_text())
    for annotation, number in zip(content["annotations"], (2, 3, 9), strict=True):
        annotation["answers"] = [{"answer": "red", "answer_id": 1}] * number
    write(tmp_path / "annotations.json", content)
    write(tmp_path / "predictions.json", [{"question_id": str(key), "answer": "red"} for key in (1, 2, 3)])
    assert main(["score", "vqa", *files, "--output", str(tmp_path / "scores.json")]) == 0
    per_question = json.loads((tmp_path / "scores.json").read_text())["per_question"]
    assert per_question == {"1": 33.33, "2": 66.67, "3": 100}
    printed = capsys.readouterr().err
    assert printed.startswith("vlkd-pl score vqa: 3 of 3 questions have fewer than the 10 answers")
    assert "2 have fewer than 4, and score at most 66.7" in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("file", "change", "error"),
    [
        ("annotations", {"answers": []}, "has no answers to 1 questions (first: 2)"),
        ("questions", {"question": None}, "questions, entry 2 has null as question: it must be a text"),
        ("questions", {"question": " "}, "the question 2 has no text"),
        ("questions", {"question_id": None}, "questions, entry 2 has null as question_id"),
        ("questions", {"image_id": 1.5}, "questions, entry 2 has 1.5 as image_id"),
        ("annotations", {"answers": None}, "annotations, entry 2 has null as answers: it must be a list"),
        (
            "annotations",
            {"answers": [{"answer": "2"}, {"answer": None}]},
            "entry 2: answers, entry 2 has null as answer",
        ),
        ("annotations", {"answers": [{"answer": "2"}, 5]}, "entry 2: answers, entry 2 is 5: it must be an object"),
        ("annotations", {"answers": [{}]}, "entry 2: answers, entry 1 has no answer"),
        ("annotations", {"answers": [{"answer": "\ud83d"}]}, "entry 2: answers, entry 1 has"),
        ("annotations", {"answer_type": 1}, "annotations, entry 2 has 1 as answer_type"),
        ("annotations", {"question_type": []}, "annotations, entry 2 has a list of 0 as question_type"),
    ],
)
def test_fields_of_another_type_are_one_line(tmp_path, capsys, file, change, error):
    files = vqa_files(tmp_path, {1: "yes", 2: "2", 3: "red"})
    content = json.loads((tmp_path / f"{file}.json").read_text())
    content[file][1] |= change
    write(tmp_path / f"{file}.json", content)
    assert main(["score", "vqa", *files]) == 1
    printed = capsys.readouterr().err
    assert f"{file}.json" in printed
    assert error in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(("content", "byte"), [(b"caf\xe9\n", "byte 3"), ("a\n".encode("utf-16"), "byte 0")])
def test_summaries_in_another_encoding(tmp_path, capsys, content, byte):
    (tmp_path / "references.txt").write_bytes(content)
    files = ["--references", str(tmp_path / "references.txt"), "--predictions", write(tmp_path / "p.txt", "a\n")]
    assert main(["score", "summaries", *files]) == 1
    printed = capsys.readouterr().err
    assert f"{tmp_path / 'references.txt'} is not UTF-8 at {byte}" in printed
    assert printed.count("\n") == 1


def test_summaries_of_unequal_number(tmp_path, capsys):
    files = ["--references", write(tmp_path / "references.txt", "a\nb\n")]
    files += ["--predictions", write(tmp_path / "predictions.txt", "a\n")]
    assert main(["score", "summaries", *files]) == 1
    assert "references.txt has 2 lines" in capsys.readouterr().err
    write(tmp_path / "references.txt", "")
    write(tmp_path / "predictions.txt", "")
    assert main(["score", "summaries", *files]) == 1
    assert "references.txt is empty" in capsys.readouterr().err
    assert main(["score", "summaries", files[0], str(tmp_path / "no.txt"), *files[2:]]) == 1
    assert "no.txt" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["captiones"], ["captions"], ["captions", "--metrics", "ROUGE"]])
def test_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["score", *arguments])
    assert stopped.value.code == 2
    assert "usage: vlkd-pl score" in capsys.readouterr().err


def test_help_names_the_subset(capsys):
    with pytest.raises(SystemExit):
        main(["score", "captions", "--help"])
    assert "--subset" in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom vlkd_pl.cli import main\ntry:\n    main(['score', '--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'pytorch_lightning', 'pycocoevalcap', 'nltk') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
