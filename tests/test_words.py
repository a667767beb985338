"""The code, the tests and the documentation are written in the field's words."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORDS = {
    r"\bpictures?\b(?! of)": "image",
    r"\btold\b": "labels, reported, passed: name the thing",
    r"\btells?\b(?!\()": "state, show, report",
    r"\bgo(es|ing)? on (with|where|after)\b": "resume, continue",
    r"\bfor ever\b": "nothing: frozen is frozen",
    r"\bwhole or not\b": "atomically",
    r"\blooks? whether\b": "check that",
    r"\bofficial\b": "benchmark files, published",
    r"\bways? to decode\b": "decoding strategies",
    r"\bwander(s|ed|ing)?\b": "off-prompt",
    r"\bown caption first\b": "caption-then-answer",
    r"\bfree reading\b": "free decoding",
    r"\bbeside\b": "next to, with, compared with",
    r"\b(is|are) (not )?there(?= ?[.,;:)]|$)": "exists, is missing",
    r"\bpaper's letter\b": "the paper-faithful configuration",
    r"\btaken? up to\b": "computed in at least",
    r"\blet go behind\b": "resharded after",
    r"\bpasses the tests\b": "runs the tests",
    r"(?<!there )\bis no (image|file|checkpoint)\b": "is not a readable image, is not a checkpoint",
    r"\bhyper-parameter": "hyperparameter",
    r"\bdata sets?\b": "dataset",
    r"\bbroken\b": "corrupt, invalid",
    r"\bSee the class\.": "a full phrase",
    r"(?m)^ +\w+: How\.$": "a full phrase",
}
"""Patterns that no line may match, and the words to write instead; see the style section of CONTRIBUTING.md."""

NAMES = {"told", "found", "given", "own", "each", "known", "said", "shown", "asked", "wanted", "kept"}
"""Participles and pronouns that are not names; a name says what the variable holds."""

PARTS = {"told", "tells", "official", "wandered", "wanders", "picture", "pictures", "beside", "broken"}
"""Words that no test's name may hold."""

SUFFIXES = {".py", ".md", ".rst", ".yaml", ".yml", ".cfg", ".toml", ".sh"}
PLACES = ["src", "tests", "docs", "configs", "benchmarks", "scripts", "README.md", "CHANGELOG.md"]


def written_files():
    for place in PLACES:
        path = ROOT / place
        files = [path] if path.is_file() else sorted(path.rglob("*"))
        yield from (file for file in files if file.suffix in SUFFIXES and file != Path(__file__))


FILES = [str(file.relative_to(ROOT)) for file in written_files()]


def text_of(name):
    """A file's text; of the CHANGELOG, the sections from 0.5.0 on without code, which may hold former names."""
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.sub("`[^`\n]*`", "", re.split(r"(?m)^## \[?0\.4", text)[0]) if name == "CHANGELOG.md" else text


@pytest.mark.parametrize("name", FILES)
def test_words(name):
    problems = []
    for number, line in enumerate(text_of(name).splitlines(), start=1):
        problems += [
            f"{name}:{number}: write {better!r} instead: {line.strip()}"
            for pattern, better in WORDS.items()
            if re.search(pattern, line)
        ]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith(".py")])
def test_names(name):
    problems = {
        f"{name}:{token.start[0]}: {token.string}"
        for token in tokenize.generate_tokens(io.StringIO(text_of(name)).readline)
        if token.string in NAMES or (token.string.startswith("test_") and PARTS & set(token.string.split("_")))
    }
    assert not problems, f"name what these hold: {sorted(problems)}"
