"""Captions and answers per second, compared with transformers' BLIP-base and GIT-base at their image sizes.

python benchmarks/generation.py --batch-sizes 1 4
python benchmarks/generation.py --device cuda --dtype bfloat16

All have random weights and write the same number of tokens: six beams for captions, greedily for answers. The time
holds the encoding of the image and of the prompt, and for vlkd_pl the tokenizer; the models run in turn.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

warnings.filterwarnings("ignore")

import torch  # noqa: E402
import transformers  # noqa: E402
from real_size import Clock, machine, median, model_folder  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import (  # noqa: E402
    BlipConfig,
    BlipForConditionalGeneration,
    BlipForQuestionAnswering,
    GitConfig,
    GitForCausalLM,
)

from vlkd_pl.models.decoding import Decoding, answer, caption  # noqa: E402
from vlkd_pl.models.vlkd import VLKDModel  # noqa: E402

QUESTION = "what color is the fish?"
NUM_QUESTION_TOKENS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of autocast")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32], help="images (default: %(default)s)")
    parser.add_argument("--num-rounds", type=int, default=5, help="of all models (default: %(default)s)")
    parser.add_argument("--num-caption-tokens", type=int, default=12, help="in a caption (default: %(default)s)")
    parser.add_argument("--num-answer-tokens", type=int, default=4, help="in an answer (default: %(default)s)")
    parser.add_argument("--models", type=Path, default=Path("runs/benchmarks/real_size"), help="where they are kept")
    options = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    clock = Clock(options.device)
    print(f"{machine(options.device)}, {options.dtype}, {time.strftime('%Y-%m-%d')}")
    for task, num_tokens, num_beams in (
        ("captions", options.num_caption_tokens, 6),
        ("answers", options.num_answer_tokens, 1),
    ):
        writers = {
            "vlkd_pl": ours(task, num_tokens, num_beams, options),
            "BLIP-base": blip(task, num_tokens, num_beams, options.device),
            "GIT-base": git(task, num_tokens, num_beams, options.device),
        }
        for batch_size in options.batch_sizes:
            compare(task, writers, batch_size, options, clock)


Writer = Callable[[int], None]
"""Writes a text for each of so many images."""


def compare(task: str, writers: dict[str, Writer], batch_size: int, options: argparse.Namespace, clock: Clock) -> None:
    """Print the rates of one task and batch size."""
    dtype = getattr(torch, options.dtype)
    enabled = dtype != torch.float32
    seconds: dict[str, list[float]] = {name: [] for name in writers}
    with torch.no_grad(), torch.autocast(options.device, dtype if enabled else None, enabled=enabled):
        for number in range(1 + options.num_rounds):  # the first warms up
            for name, write in writers.items():
                start = clock.now()
                write(batch_size)
                if number > 0:
                    seconds[name].append(clock.now() - start)
    for name in ("BLIP-base", "GIT-base"):
        ratio = median([theirs / mine for mine, theirs in zip(seconds["vlkd_pl"], seconds[name], strict=True)])
        print(f"ratio: {task}, batch of {batch_size}: vlkd_pl is {ratio:.2f} times as fast as {name}")
    rates = ", ".join(f"{name} {batch_size / median(second):.2f}" for name, second in seconds.items())
    print(f"{task} a second, batch of {batch_size}: {rates}", flush=True)


def ours(task: str, num_tokens: int, num_beams: int, options: argparse.Namespace) -> Writer:
    """ViT-B/16 and BART-large, with the paper's prompts."""
    model = VLKDModel.from_pretrained(model_folder(options.models)).eval().to(options.device)
    model.bart.generation_config.min_new_tokens = num_tokens
    decoding = Decoding(num_beams=num_beams, max_new_tokens=num_tokens)

    def write(batch_size: int) -> None:
        image_tokens = model.clip.encode_image(images(batch_size, 224, options.device))
        if task == "captions":
            caption(model, image_tokens, 6, decoding)
        else:
            answer(model, image_tokens, [QUESTION] * batch_size, decoding)

    return write


def blip(task: str, num_tokens: int, num_beams: int, device: str) -> Writer:
    """Transformers' BLIP of Salesforce/blip-image-captioning-base and blip-vqa-base, whose sizes are its defaults."""
    kind = BlipForConditionalGeneration if task == "captions" else BlipForQuestionAnswering
    model = kind(BlipConfig()).eval().to(device)
    length = {"num_beams": num_beams, "min_new_tokens": num_tokens, "max_new_tokens": num_tokens}

    def write(batch_size: int) -> None:
        arguments = {} if task == "captions" else {"input_ids": question(batch_size, device)}
        model.generate(pixel_values=images(batch_size, 384, device), **arguments, **length)

    return write


def git(task: str, num_tokens: int, num_beams: int, device: str) -> Writer:
    """Transformers' GIT of microsoft/git-base, whose sizes are its defaults."""
    model = GitForCausalLM(GitConfig()).eval().to(device)
    length = {"num_beams": num_beams, "min_new_tokens": num_tokens, "max_new_tokens": num_tokens}

    def write(batch_size: int) -> None:
        arguments = {} if task == "captions" else {"input_ids": question(batch_size, device)}
        model.generate(pixel_values=images(batch_size, 224, device), **arguments, **length)

    return write


def images(batch_size: int, size: int, device: str) -> Tensor:
    return torch.randn(batch_size, 3, size, size, device=device)


def question(batch_size: int, device: str) -> Tensor:
    return torch.randint(1000, 20_000, (batch_size, NUM_QUESTION_TOKENS), device=device)


if __name__ == "__main__":
    main()
