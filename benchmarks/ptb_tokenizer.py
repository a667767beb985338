"""The tokenizer of caption metrics against the Java one of pycocoevalcap, on all captions of COCO 2014.

python benchmarks/ptb_tokenizer.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pycocoevalcap
from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS, STANFORD_CORENLP_3_4_1_JAR

from vlkd_pl.metrics.ptb import tokenize, tokenize_all

FOLDER = Path(pycocoevalcap.__path__[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-shown", type=int, default=5, help="captions that differ to print")
    options = parser.parse_args()
    captions = coco_captions()
    start = time.perf_counter()
    expected = java_tokens(captions)
    java_rate = len(captions) / (time.perf_counter() - start)
    start = time.perf_counter()
    in_order = tokenize_all(captions)
    rate = len(captions) / (time.perf_counter() - start)
    print_differing("given the next caption", captions, expected, in_order, options.num_shown)
    alone = [tokenize(caption) for caption in captions]
    print_differing("by default", captions, expected, alone, options.num_shown)
    print(f"captions per second: {rate:,.0f}, Java {java_rate:,.0f} with its start, ratio {rate / java_rate:.2f}")


def coco_captions() -> list[str]:
    captions: list[str] = []
    with zipfile.ZipFile(FOLDER / "spice" / "spice-1.0.jar") as jar:
        for split in ("train", "val"):
            content = json.loads(jar.read(f"coco/annotations/captions_{split}2014.json"))
            captions += [row["caption"].replace("\n", " ") for row in content["annotations"]]
    return captions


def java_tokens(captions: Sequence[str]) -> list[str]:
    """Tokenize captions with pycocoevalcap's PTBTokenizer, in a file outside its installation."""
    command = ["java", "-cp", str(FOLDER / "tokenizer" / STANFORD_CORENLP_3_4_1_JAR)]
    command += ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    with tempfile.NamedTemporaryFile(suffix=".txt") as file:
        file.write("\n".join(captions).encode())
        file.flush()
        output = subprocess.run([*command, file.name], capture_output=True, check=True).stdout.decode()
    lines = output.split("\n")[: len(captions)]
    return [" ".join(word for word in line.rstrip().split(" ") if word not in PUNCTUATIONS) for line in lines]


def print_differing(
    title: str, captions: Sequence[str], expected: Sequence[str], actual: Sequence[str], num_shown: int
) -> None:
    rows = [row for row in zip(captions, expected, actual, strict=True) if row[1] != row[2]]
    print(f"{title}: {len(rows)} of {len(captions):,} captions differ")
    for caption, java, ours in rows[:num_shown]:
        print(f"  {caption!r}\n    Java: {java!r}\n    ours: {ours!r}")


if __name__ == "__main__":
    main()
