"""METEOR and SPICE: what is computed where Java runs, and the reason where it is missing or fails."""

import shutil
import subprocess

import pytest

from vlkd_pl.metrics import java
from vlkd_pl.metrics.captions import caption_scores

REFERENCES = {1: ["a red fish on the grass", "there is a red fish"], 2: ["two blue boats at night"], 3: ["a tree"]}
PREDICTIONS = {1: "a red fish in the snow", 2: "two blue boats", 3: "a tree"}


def fake_java(folder, monkeypatch, script, version="17.0.1"):
    """Put a program called java first on PATH, which prints its version and otherwise runs a shell script."""
    print_version = f"""if [ "$1" = -version ]; then echo 'openjdk version "{version}"' >&2; exit; fi"""
    (folder / "java").write_text(f"#!/bin/sh\n{print_version}\n{script}\n")
    (folder / "java").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


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
def test_failing_meteor_is_explained_and_killed(tmp_path, monkeypatch, script, why):
    fake_java(tmp_path, monkeypatch, script)
    monkeypatch.setattr(java, "_METEOR_TIMEOUT_S", 1)
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


def test_meteor_receives_one_line_for_each_image(tmp_path, monkeypatch):
    """Line breaks and separators in captions are removed; the last score is the overall one."""
    answer = """case "$line" in SCORE*) echo "s$n" ;; *) printf '0.1\\n0.2\\n0.3\\n' ;; esac"""
    fake_java(tmp_path, monkeypatch, f'while read -r line; do echo "$line" >>"$LINES"; n=$((n+1)); {answer}; done')
    monkeypatch.setenv("LINES", str(tmp_path / "lines"))
    scored = caption_scores({1: ["a ||| b", "c\nd"], 2: ["e"]}, {1: "", 2: "f ||| g"}, ["METEOR"])
    lines = (tmp_path / "lines").read_text().splitlines()
    assert lines[2:] == ["EVAL ||| s1 ||| s2"]
    assert [line.count("|||") for line in lines[:2]] == [3, 2]
    assert scored.scores == {"METEOR": 0.3}
    assert scored.per_image == {1: {"METEOR": 0.1}, 2: {"METEOR": 0.2}}


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("java"), reason="METEOR is a Java program")
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
    fake_java(tmp_path, monkeypatch, "exit 1", version)
    monkeypatch.setattr("urllib.request.urlretrieve", lambda *_, **__: pytest.fail("a download was started"))
    monkeypatch.setattr(java, "_scorer_folder", lambda name: tmp_path / name)
    assert why in caption_scores(REFERENCES, PREDICTIONS, ["SPICE"]).not_computed["SPICE"]


def test_spice(tmp_path, monkeypatch):
    from pycocoevalcap.spice import spice

    fake_java(tmp_path, monkeypatch, "exit 1", "11.0.2")
    monkeypatch.setattr(java, "_scorer_folder", lambda name: tmp_path / name)
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
