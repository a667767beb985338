"""Scores of captions: CIDEr and ROUGE-L against their definitions, and what happens where Java is missing or fails."""

import math
import shutil
import subprocess
from collections import Counter

import pytest

from vlkd_pl.metrics import captions
from vlkd_pl.metrics.captions import caption_scores, cider, cider_note
from vlkd_pl.metrics.ptb import tokenize

REFERENCES = {
    1: ["a red fish on the grass", "there is a red fish"],
    2: ["two blue boats at night", "a pair of boats, both blue, at night"],
    3: ["a tree"],
}
PREDICTIONS = {1: "a red fish in the snow", 2: "two blue boats", 3: "a tree"}


def ngrams(text, n):
    parts = text.split()
    return Counter(tuple(parts[i : i + n]) for i in range(len(parts) - n + 1))


def cider_d(references, prediction, all_references):
    """CIDEr-D of one caption (Vedantam et al., 2015): clipped tf-idf cosine, length penalty with σ = 6, times 10."""
    num = len(all_references)
    score = 0.0
    for n in range(1, 5):
        frequency = Counter(gram for texts in all_references for gram in {g for t in texts for g in ngrams(t, n)})

        def vector(text, n=n, frequency=frequency):
            return {
                gram: count * (math.log(num) - math.log(max(1, frequency[gram])))
                for gram, count in ngrams(text, n).items()
            }

        guess = vector(prediction)
        for reference in references:
            truth = vector(reference)
            dot = sum(min(value, truth.get(gram, 0.0)) * truth.get(gram, 0.0) for gram, value in guess.items())
            norm = math.sqrt(sum(v * v for v in guess.values())) * math.sqrt(sum(v * v for v in truth.values()))
            # pycocoevalcap counts bigrams for the length
            delta = max(0, len(prediction.split()) - 1) - max(0, len(reference.split()) - 1)
            score += (dot / norm if norm else 0.0) * math.exp(-(delta**2) / 72) / len(references)
    return 10 * score / 4


def rouge_l(precision, recall):
    return (1 + 1.2**2) * precision * recall / (recall + 1.2**2 * precision)


def java(folder, monkeypatch, script, version="17.0.1"):
    """Puts a program called java first on PATH, which tells its version and otherwise runs a shell script."""
    told = f"""if [ "$1" = -version ]; then echo 'openjdk version "{version}"' >&2; exit; fi"""
    (folder / "java").write_text(f"#!/bin/sh\n{told}\n{script}\n")
    (folder / "java").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_cider_against_the_definition():
    plain = {key: [tokenize(text) for text in texts] for key, texts in REFERENCES.items()}
    score, per_image = cider(REFERENCES, PREDICTIONS)
    for key, prediction in PREDICTIONS.items():
        assert per_image[key] == pytest.approx(cider_d(plain[key], prediction, list(plain.values())), rel=1e-9)
    assert score == pytest.approx(sum(per_image.values()) / 3)
    assert per_image[2] > 0.5


def test_bleu_rouge_and_cider_without_java(monkeypatch):
    monkeypatch.setenv("PATH", "")
    scored = caption_scores(REFERENCES, PREDICTIONS, ["BLEU", "ROUGE-L", "CIDEr"])
    assert scored.not_computed == {}
    assert list(scored.scores) == ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"]
    assert all(scores.keys() == scored.scores.keys() for scores in scored.per_image.values())
    # of the 6, 3 and 2 words 4 ("a red fish ... the"), 3 and 2 are right; 11 words, as the closest references have 13
    assert scored.scores["BLEU-1"] == pytest.approx(9 / 11 * math.exp(1 - 13 / 11))
    # 4 of 6 words are in the order of the 6 of a reference, and 3 of 3 in that of 5
    assert scored.per_image[1]["ROUGE-L"] == pytest.approx(rouge_l(4 / 6, 4 / 6))
    assert scored.per_image[2]["ROUGE-L"] == pytest.approx(rouge_l(3 / 3, 3 / 5))
    assert scored.scores["CIDEr"] == cider(REFERENCES, PREDICTIONS)[0]


def test_case_and_punctuation_do_not_count():
    plain = cider(REFERENCES, {1: "a red fish", 2: "blue boats at night", 3: "a tree"})
    assert cider(REFERENCES, {1: "A red fish.", 2: "Blue boats, at night!", 3: "a  tree"}) == plain


def test_nothing_is_printed(capfd):
    caption_scores(REFERENCES, PREDICTIONS, ["BLEU", "ROUGE-L", "CIDEr"], progress=True)
    assert capfd.readouterr() == ("", "")


def test_missing_and_unknown_images_are_named():
    with pytest.raises(ValueError, match=r"1 of 3 images have no prediction \(first: 3\); 1 of 3 .* \(first: 7\)"):
        cider(REFERENCES, {1: "", 2: "", 7: ""})


def test_images_without_references_are_named():
    with pytest.raises(ValueError, match=r"1 of 2 images have no reference caption \(first: 5\)"):
        caption_scores({1: ["a tree"], 5: []}, {1: "a tree", 5: "a fish"}, ["BLEU"])
    with pytest.raises(ValueError, match="no reference caption holds a word"):
        cider({1: ["..."]}, {1: "a tree"})


def test_unknown_metrics_are_named():
    with pytest.raises(ValueError, match="no caption metric 'Bleu': choose from BLEU, METEOR"):
        caption_scores(REFERENCES, PREDICTIONS, ["CIDEr", "Bleu"])


def test_without_java_the_others_are_computed(monkeypatch):
    monkeypatch.setenv("PATH", "")
    scored = caption_scores(REFERENCES, PREDICTIONS)
    assert list(scored.not_computed) == ["METEOR", "SPICE"]
    assert all("java is not installed" in why for why in scored.not_computed.values())
    assert "CIDEr" in scored.scores


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("echo 'no room for the heap' >&2; exit 1", "no room for the heap"),
        ("read line; echo 1.0; exit 0", "failed"),
        ("exec sleep 60", "gave no answer for 1 seconds"),
        ("while read line; do echo Error: bad line; done", "Error: bad line"),
    ],
    ids=["stops", "stops later", "hangs", "complains"],
)
def test_meteor_that_fails_is_explained_and_ended(tmp_path, monkeypatch, script, why):
    java(tmp_path, monkeypatch, script)
    monkeypatch.setattr(captions, "_METEOR_PATIENCE_S", 1)
    started, start = [], subprocess.Popen
    monkeypatch.setattr(
        subprocess, "Popen", lambda *args, **kwargs: started.append(start(*args, **kwargs)) or started[-1]
    )
    scored = caption_scores(REFERENCES, PREDICTIONS, ["METEOR", "CIDEr"])
    assert scored.not_computed["METEOR"].startswith("METEOR's Java program failed: ")
    assert why in scored.not_computed["METEOR"]
    assert list(scored.scores) == ["CIDEr"]
    assert started
    assert all(process.returncode is not None for process in started)


def test_meteor_is_asked_line_by_line(tmp_path, monkeypatch):
    """A caption is one line, whatever is in it, and the last of the scores is that of all."""
    answer = """case "$line" in SCORE*) echo "s$n" ;; *) printf '0.1\\n0.2\\n0.3\\n' ;; esac"""
    java(tmp_path, monkeypatch, f'while read -r line; do echo "$line" >>"$LINES"; n=$((n+1)); {answer}; done')
    monkeypatch.setenv("LINES", str(tmp_path / "lines"))
    scored = caption_scores({1: ["a ||| b", "c\nd"], 2: ["e"]}, {1: "", 2: "f ||| g"}, ["METEOR"])
    lines = (tmp_path / "lines").read_text().splitlines()
    assert lines[2:] == ["EVAL ||| s1 ||| s2"]
    assert [line.count("|||") for line in lines[:2]] == [3, 2]
    assert scored.scores == {"METEOR": 0.3}
    assert scored.per_image == {1: {"METEOR": 0.1}, 2: {"METEOR": 0.2}}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("java") is None, reason="METEOR is a Java program")
def test_meteor():
    scored = caption_scores(REFERENCES | {4: ["a fish"]}, PREDICTIONS | {4: ""}, ["METEOR"])
    assert scored.not_computed == {}
    assert scored.per_image[4]["METEOR"] == 0
    assert scored.per_image[3]["METEOR"] == pytest.approx(1.0)
    assert 0.2 < scored.per_image[1]["METEOR"] < scored.per_image[3]["METEOR"]


@pytest.mark.parametrize(
    ("version", "why"),
    [
        ("17.0.1", "Java 8 to 11 and java is 17"),
        ("1.7.0_80", "java is 7"),
        ("11.0.2", "download them"),
        ("1.8.0_392", "download them"),
    ],
)
def test_spice_never_downloads(tmp_path, monkeypatch, version, why):
    java(tmp_path, monkeypatch, "exit 1", version)
    monkeypatch.setattr("urllib.request.urlretrieve", lambda *_, **__: pytest.fail("a download was started"))
    monkeypatch.setattr(captions, "_scorer_folder", lambda name: tmp_path / name)
    assert why in caption_scores(REFERENCES, PREDICTIONS, ["SPICE"]).not_computed["SPICE"]


def test_spice_where_everything_is_there(tmp_path, monkeypatch):
    from pycocoevalcap.spice import spice

    java(tmp_path, monkeypatch, "exit 1", "11.0.2")
    monkeypatch.setattr(captions, "_scorer_folder", lambda name: tmp_path / name)
    (tmp_path / "spice" / "lib").mkdir(parents=True)
    for kind in ("", "-models"):
        (tmp_path / "spice" / "lib" / f"stanford-corenlp-3.6.0{kind}.jar").touch()

    class Spice:
        def compute_score(self, truth, guess):
            return 0.25, [{"All": {"f": len(guess[number][0].split()) / 10}} for number in sorted(truth)]

    monkeypatch.setattr(spice, "Spice", Spice)
    scored = caption_scores({"b": ["a tree"], "a": ["a red fish"]}, {"b": "a tree", "a": "a red fish"}, ["SPICE"])
    assert scored.scores == {"SPICE": 0.25}
    assert scored.per_image == {"b": {"SPICE": 0.2}, "a": {"SPICE": 0.3}}


@pytest.mark.parametrize(
    ("references", "note"),
    [
        ({1: ["a fish", "a boat"]}, "there is one image alone"),
        ({1: ["a fish"], 2: ["A fish."]}, "the references of all 2 images hold the same n-grams"),
        ({1: ["a fish", "one"], 2: ["one", "a fish"], 3: ["one", "a fish", "one"]}, "of all 3 images"),
    ],
)
def test_why_cider_is_zero(references, note):
    assert note in cider_note(references)
    assert "\n" not in cider_note(references)
    assert cider(references, {key: texts[0] for key, texts in references.items()})[0] == 0


@pytest.mark.parametrize(
    "references", [REFERENCES, {1: ["a fish"], 2: ["fish a"]}, {1: ["a fish"], 2: ["a fish"], 3: ["a fish", "one"]}]
)
def test_cider_that_has_a_meaning(references):
    assert cider_note(references) == ""
    assert cider(references, {key: texts[-1] for key, texts in references.items()})[0] > 0
