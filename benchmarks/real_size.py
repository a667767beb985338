"""The real geometry, ViT-B/16 and BART-large, with random weights; what the benchmarks of speed share."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration

import vlkd_pl
from vlkd_pl.clip.frozen import FrozenCLIP
from vlkd_pl.clip.openai import CLIP
from vlkd_pl.models.vlkd import VLKDModel

SAMPLE_BART = Path(vlkd_pl.__file__).parent / "sample" / "models" / "bart"
BART_LARGE = BartConfig(activation_dropout=0.1, attention_dropout=0.1)
"""The defaults of transformers are the sizes of facebook/bart-large; so is dropout."""

CAPTION_LENGTH, CAPTION_LENGTH_DEVIATION = 12, 4
"""Of CC3M's captions in BART's tokens, with the two at the ends; none has fewer than 5 or more than 64."""


def model_folder(folder: Path) -> Path:
    """A model folder with random weights, written where there is none yet.

    BART's tokenizer is the sample world's: what the benchmarks need of it is the special tokens, which are BART's own.
    """
    if not (folder / "config.json").is_file():
        torch.manual_seed(0)
        clip = FrozenCLIP(CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12))
        bart = BartForConditionalGeneration(BART_LARGE)
        VLKDModel(clip, bart, AutoTokenizer.from_pretrained(SAMPLE_BART), "pooled").save_pretrained(folder)
    return folder


def caption_lengths(num: int, generator: torch.Generator) -> list[int]:
    """Lengths of captions in BART's tokens."""
    drawn = CAPTION_LENGTH + CAPTION_LENGTH_DEVIATION * torch.randn(num, generator=generator)
    lengths: list[int] = drawn.round().clamp(5, 64).long().tolist()
    return lengths


def precision_of(device: str, name: str) -> torch.dtype:
    """The data type of matrix products under a precision of the trainer.

    Raises:
        SystemExit: The precision is none of the benchmarks'.
    """
    dtypes = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
    if name not in dtypes or (device == "cpu" and name == "16-mixed"):
        raise SystemExit(f"--precision {name} is not measured on {device}: give one of {', '.join(dtypes)}")
    return dtypes[name]


class Clock:
    """Measures seconds: of one thread's processor time on the CPU, so that other jobs do not count; else of the wall.

    Args:
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cpu":
            torch.set_num_threads(1)

    def now(self) -> float:
        """The time in seconds, when everything asked for has been computed."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


class MatrixRate:
    """The rate of one large matrix product, which no step can be faster than.

    Args:
        device: Where.
        dtype: Of the matrices.
        clock: Measures.
    """

    def __init__(self, device: str, dtype: torch.dtype, clock: Clock) -> None:
        self.size = 2048 if device == "cpu" else 8192
        self.left, self.right = torch.randn(2, self.size, self.size, device=device, dtype=dtype)
        self.repeats = 3 if device == "cpu" else 20
        self.clock = clock

    def __call__(self) -> float:
        """Floating-point operations per second, now."""
        torch.mm(self.left, self.right)
        start = self.clock.now()
        for _ in range(self.repeats):
            torch.mm(self.left, self.right)
        return self.repeats * 2 * self.size**3 / (self.clock.now() - start)


def median(values: Sequence[float]) -> float:
    """The median."""
    return float(statistics.median(values))


def machine(device: str) -> str:
    """Describe the machine that the figures were measured on."""
    if device == "cuda":
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'unknown'}, one thread, torch {torch.__version__}"
