"""METEOR and SPICE of captions: the Java programs in ``pycocoevalcap``."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from threading import Timer
from typing import IO, TypeVar

Key = TypeVar("Key", bound=Hashable)

_METEOR_TIMEOUT_S = 120  # for one reply; the first takes seconds, as METEOR reads its tables of synonyms


class NotComputedError(Exception):
    """A metric cannot be computed on this machine; the message says why and what to do."""


def meteor(
    references: Mapping[Key, Sequence[str]], predictions: Mapping[Key, str], on_image: Callable[[], None]
) -> tuple[float, list[float]]:
    """Compute METEOR 1.5 (Denkowski & Lavie, 2014) with the options of ``pycocoevalcap``.

    The package's own class hangs where the program stops, and again when it is deleted.

    Args:
        references: The reference captions of each image, as tokens with spaces between them.
        predictions: One caption for each of the same images, likewise.
        on_image: Called after each image, to show progress.

    Returns:
        The score over all images and that of each image, in [0, 1].

    Raises:
        NotComputedError: Java is missing, or the program stops or does not answer.
    """
    _java_version()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as stderr:
        try:
            return _run_meteor(references, predictions, stderr, on_image)
        except (OSError, ValueError) as error:
            stderr.seek(0)
            last_line = [line.strip() for line in stderr if line.strip()][-1:]
            raise NotComputedError(f"METEOR's Java program failed: {': '.join([str(error), *last_line])}") from error


def _run_meteor(
    references: Mapping[Key, Sequence[str]],
    predictions: Mapping[Key, str],
    stderr: IO[str],
    on_image: Callable[[], None],
) -> tuple[float, list[float]]:
    """Run the program: it answers with statistics for each image, then with scores for all statistics together."""
    options = ["-", "-", "-stdio", "-l", "en", "-norm"]
    command = ["java", "-Xmx2G", "-Dfile.encoding=UTF-8", "-jar", "meteor-1.5.jar", *options]
    with subprocess.Popen(
        command,
        cwd=_scorer_folder("meteor"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        encoding="utf-8",
    ) as process:

        def ask(fields: Sequence[str], num_replies: int) -> list[str]:
            assert process.stdin is not None
            assert process.stdout is not None
            watchdog = Timer(_METEOR_TIMEOUT_S, process.kill)
            watchdog.start()
            try:
                process.stdin.write(" ||| ".join(fields) + "\n")
                process.stdin.flush()
                replies = [process.stdout.readline().strip() for _ in range(num_replies)]
            finally:
                watchdog.cancel()
            if not all(replies):
                raise OSError(f"it ended, or gave no answer for {_METEOR_TIMEOUT_S} seconds")
            if replies[0].startswith("Error"):
                raise OSError(replies[0])
            return replies

        try:
            statistics = []
            for key, texts in references.items():
                statistics += ask(["SCORE", *(text.replace("|||", "") for text in [*texts, predictions[key]])], 1)
                on_image()
            *per_image, overall = map(float, ask(["EVAL", *statistics], len(references) + 1))
        finally:
            process.kill()
    return overall, per_image


def spice(references: Mapping[Key, Sequence[str]], predictions: Mapping[Key, str]) -> tuple[float, list[float]]:
    """Compute SPICE (Anderson et al., 2016).

    Args:
        references: The reference captions of each image, as tokens with spaces between them.
        predictions: One caption for each of the same images, likewise.

    Returns:
        The score over all images and that of each image, in [0, 1].

    Raises:
        NotComputedError: Java is missing or its version is not 8 to 11, CoreNLP is missing, or the program fails.
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

    numbered = list(enumerate(references))  # its input is JSON, which not every key fits into
    try:
        overall, per_image = Spice().compute_score(
            {number: references[key] for number, key in numbered},
            {number: [predictions[key]] for number, key in numbered},
        )
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise NotComputedError(f"SPICE's Java program failed: {error}") from error
    return overall, [parts["All"]["f"] for parts in per_image]


def _scorer_folder(name: str) -> Path:
    """Return the folder of a scorer's program in ``pycocoevalcap``."""
    import pycocoevalcap

    return Path(next(iter(pycocoevalcap.__path__))) / name


def _java_version() -> int:
    """Return the major version of the ``java`` on PATH.

    Raises:
        NotComputedError: Java is missing, does not run, or prints no version.
    """
    if not shutil.which("java"):
        raise NotComputedError("java is not installed, or not on PATH")
    try:
        output = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=60).stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotComputedError(f"java does not run: {error}") from error
    version = re.search(r'version "(?:1\.)?(\d+)', output)
    if not version:
        raise NotComputedError(f"java -version prints no version: {output.strip()[:100]!r}")
    return int(version[1])
