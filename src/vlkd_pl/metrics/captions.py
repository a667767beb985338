"""Scores of captions against what people wrote."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Timer
from typing import IO, Generic, TypeVar

from vlkd_pl.metrics.pairing import check_pairing, first_few
from vlkd_pl.metrics.ptb import tokenize_all

Key = TypeVar("Key", bound=Hashable)
_Texts = Mapping[Key, list[str]]

CAPTION_METRICS = {
    "BLEU": ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"),
    "METEOR": ("METEOR",),
    "ROUGE-L": ("ROUGE-L",),
    "CIDEr": ("CIDEr",),
    "SPICE": ("SPICE",),
}
"""For each metric the names of its scores."""

_MAX_ORDER = 4  # CIDEr's longest n-grams
_METEOR_PATIENCE_S = 120  # for one reply; the first takes seconds, as METEOR reads its tables of synonyms


class NotComputedError(Exception):
    """A metric cannot be computed on this machine; the message says why and what to do."""


@dataclass(frozen=True)
class CaptionScores(Generic[Key]):
    """Scores as fractions; tables print them times 100.

    Attributes:
        scores: Over all images, for ``BLEU-1`` to ``BLEU-4``, ``METEOR``, ``ROUGE-L``, ``CIDEr`` and ``SPICE``.
        per_image: The same for each image.
        not_computed: For each metric that is not among them the reason.
    """

    scores: dict[str, float]
    per_image: dict[Key, dict[str, float]]
    not_computed: dict[str, str]


def caption_scores(
    references: Mapping[Key, Sequence[str]],
    predictions: Mapping[Key, str],
    metrics: Collection[str] = tuple(CAPTION_METRICS),
    progress: bool = False,
) -> CaptionScores[Key]:
    """Scores captions as the COCO caption evaluation does, by ``pycocoevalcap``'s scorers.

    Document frequencies for CIDEr are those of the given references. METEOR needs Java; SPICE needs Java 8 to 11 and
    the models of Stanford CoreNLP, which are never downloaded from here. An empty caption scores 0, by METEOR too.

    Args:
        references: All captions of each image.
        predictions: One caption for each of the same images.
        metrics: Some of ``CAPTION_METRICS``.
        progress: Shows a bar, on stderr where that is a terminal.

    Raises:
        ValueError: An image has no prediction or no reference, a prediction no image, or there is no such metric.
    """
    from rich.console import Console
    from rich.progress import Progress

    unknown = [metric for metric in metrics if metric not in CAPTION_METRICS]
    if unknown:
        raise ValueError(f"no caption metric {unknown[0]!r}: choose from {', '.join(CAPTION_METRICS)}")
    with Progress(console=Console(stderr=True), transient=True, disable=not (progress and sys.stderr.isatty())) as bar:
        task = bar.add_task("tokenizing", total=(1 + len(metrics)) * len(predictions))
        truth, guess = _tokenized(references, predictions)
        scores: dict[str, float] = {}
        per_image: dict[Key, dict[str, float]] = {key: {} for key in truth}
        not_computed: dict[str, str] = {}
        for number, metric in enumerate(metrics, start=1):
            bar.update(task, description=metric, completed=number * len(predictions))
            try:
                for name, (score, each) in _score(metric, truth, guess, lambda: bar.advance(task)).items():
                    scores[name] = float(score)
                    for key, value in zip(truth, each, strict=True):
                        per_image[key][name] = float(value)
            except NotComputedError as error:
                not_computed |= dict.fromkeys(CAPTION_METRICS[metric], str(error))
    return CaptionScores(scores, per_image, not_computed)


def cider(references: Mapping[Key, Sequence[str]], predictions: Mapping[Key, str]) -> tuple[float, dict[Key, float]]:
    """CIDEr-D (Vedantam et al., 2015) as the COCO caption evaluation computes it, without Java.

    Args:
        references: All captions of each image.
        predictions: One caption for each of the same images.

    Returns:
        The mean score and that of each image; 1.0 is what tables print as 100.

    Raises:
        ValueError: An image has no prediction or no reference, or a prediction no image.
    """
    scored = caption_scores(references, predictions, ["CIDEr"])
    return scored.scores["CIDEr"], {key: scores["CIDEr"] for key, scores in scored.per_image.items()}


def cider_note(references: Mapping[Key, Sequence[str]]) -> str:
    """Says why CIDEr is 0 whatever the captions are: no n-gram tells one image's references from another's.

    CIDEr weighs an n-gram by the logarithm of the share of images in whose references it stands. That is 0 where all
    images have it: where there is one image alone, and where all have the same references.

    Args:
        references: All captions of each image.

    Returns:
        A line, or the empty string where CIDEr has a meaning.
    """
    if len(references) == 1:
        return "CIDEr is 0, since it compares images by what sets their references apart, and there is one image alone"
    first = None
    for texts in references.values():
        grams = {
            tuple(words[start : start + order])
            for words in map(str.split, tokenize_all(texts))
            for order in range(1, _MAX_ORDER + 1)
            for start in range(len(words) - order + 1)
        }
        first = grams if first is None else first
        if grams != first:
            return ""
    return f"CIDEr is 0, since the references of all {len(references)} images hold the same n-grams"


def _tokenized(
    references: Mapping[Key, Sequence[str]], predictions: Mapping[Key, str]
) -> tuple[_Texts[Key], _Texts[Key]]:
    """References and predictions in tokens with spaces between them, as the scorers take them, in the same order."""
    check_pairing(references.keys(), predictions.keys(), "image")
    bare = [key for key, texts in references.items() if not texts]
    if bare:
        raise ValueError(f"{len(bare)} of {len(references)} images have no reference caption ({first_few(bare)})")
    tokens = iter(tokenize_all([text for texts in references.values() for text in texts]))
    truth = {key: list(islice(tokens, len(texts))) for key, texts in references.items()}
    guess = dict(
        zip(references, ([text] for text in tokenize_all([predictions[key] for key in references])), strict=True)
    )
    if not any(text for texts in truth.values() for text in texts):
        raise ValueError("no reference caption holds a word")
    return truth, guess


def _score(
    metric: str, truth: _Texts[Key], guess: _Texts[Key], tick: Callable[[], None]
) -> dict[str, tuple[float, Sequence[float]]]:
    """The scores of one metric, each over all images and for each of them."""
    if metric == "BLEU":
        from pycocoevalcap.bleu.bleu import Bleu

        overall, each = Bleu().compute_score(truth, guess, verbose=0)  # louder, it prints to stdout
        return dict(zip(CAPTION_METRICS["BLEU"], zip(overall, each, strict=True), strict=True))
    if metric == "ROUGE-L":
        from pycocoevalcap.rouge.rouge import Rouge

        return {metric: Rouge().compute_score(truth, guess)}
    if metric == "CIDEr":
        from pycocoevalcap.cider.cider import Cider

        return {metric: Cider().compute_score(truth, guess)}
    if metric == "METEOR":
        return {metric: _meteor(truth, guess, tick)}
    return {metric: _spice(truth, guess)}


def _meteor(truth: _Texts[Key], guess: _Texts[Key], tick: Callable[[], None]) -> tuple[float, list[float]]:
    """METEOR 1.5 (Denkowski & Lavie, 2014), by the program in ``pycocoevalcap`` and with its options.

    The package's own class waits for ever where the program stops, and again when it is deleted.

    Raises:
        NotComputedError: There is no Java, or the program stops or does not answer.
    """
    _java_version()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as complaints:
        try:
            return _ask_meteor(truth, guess, complaints, tick)
        except (OSError, ValueError) as error:
            complaints.seek(0)
            last_words = [line.strip() for line in complaints if line.strip()][-1:]
            raise NotComputedError(f"METEOR's Java program failed: {': '.join([str(error), *last_words])}") from error


def _ask_meteor(
    truth: _Texts[Key], guess: _Texts[Key], complaints: IO[str], tick: Callable[[], None]
) -> tuple[float, list[float]]:
    """Runs the program: it gives statistics for each image, and scores for all statistics together."""
    options = ["-", "-", "-stdio", "-l", "en", "-norm"]
    command = ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", "meteor-1.5.jar", *options]
    with subprocess.Popen(
        command,
        cwd=_scorer_folder("meteor"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=complaints,
        encoding="utf-8",
    ) as process:

        def ask(fields: Sequence[str], num_replies: int) -> list[str]:
            assert process.stdin is not None
            assert process.stdout is not None
            watchdog = Timer(_METEOR_PATIENCE_S, process.kill)
            watchdog.start()
            try:
                process.stdin.write(" ||| ".join(fields) + "\n")
                process.stdin.flush()
                replies = [process.stdout.readline().strip() for _ in range(num_replies)]
            finally:
                watchdog.cancel()
            if not all(replies):
                raise OSError(f"it ended, or gave no answer for {_METEOR_PATIENCE_S} seconds")
            if replies[0].startswith("Error"):
                raise OSError(replies[0])
            return replies

        try:
            statistics = []
            for key, texts in truth.items():
                statistics += ask(["SCORE", *(text.replace("|||", "") for text in [*texts, *guess[key]])], 1)
                tick()
            *each, overall = map(float, ask(["EVAL", *statistics], len(truth) + 1))
        finally:
            process.kill()
    return overall, each


def _spice(truth: _Texts[Key], guess: _Texts[Key]) -> tuple[float, list[float]]:
    """SPICE (Anderson et al., 2016).

    Raises:
        NotComputedError: Java is missing or of another version than 8 to 11, CoreNLP is missing, or the program fails.
    """
    version = _java_version()
    if not 8 <= version <= 11:
        raise NotComputedError(f"SPICE runs on Java 8 to 11 and java is {version}: put one of those first on PATH")
    jars = [_scorer_folder("spice") / "lib" / f"stanford-corenlp-3.6.0{kind}.jar" for kind in ("", "-models")]
    missing = [jar.name for jar in jars if not jar.is_file()]
    if missing:
        raise NotComputedError(
            f"{' and '.join(missing)} of Stanford CoreNLP 3.6.0 missing in {jars[0].parent}: download them (384 MB) "
            "with python -m pycocoevalcap.spice.get_stanford_models"
        )
    from pycocoevalcap.spice.spice import Spice

    numbered = list(enumerate(truth))  # its input is JSON, which not every key fits into
    try:
        overall, each = Spice().compute_score(
            {number: truth[key] for number, key in numbered}, {number: guess[key] for number, key in numbered}
        )
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise NotComputedError(f"SPICE's Java program failed: {error}") from error
    return overall, [parts["All"]["f"] for parts in each]


def _scorer_folder(name: str) -> Path:
    """Where ``pycocoevalcap`` keeps the program of a scorer."""
    import pycocoevalcap

    return Path(next(iter(pycocoevalcap.__path__))) / name


def _java_version() -> int:
    """The major version of the ``java`` on PATH.

    Raises:
        NotComputedError: There is none, or it does not tell.
    """
    if shutil.which("java") is None:
        raise NotComputedError("java is not installed, or not on PATH")
    try:
        told = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=60).stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotComputedError(f"java does not run: {error}") from error
    found = re.search(r'version "(?:1\.)?(\d+)', told)
    if found is None:
        raise NotComputedError(f"java -version tells no version: {told.strip()[:100]!r}")
    return int(found[1])
