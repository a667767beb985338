"""The training step with cached CLIP outputs, with CLIP, and in a plain implementation with transformers.

python benchmarks/training_step.py
python benchmarks/training_step.py --device cuda --precision bf16-mixed --batch-size 512
python benchmarks/training_step.py --variants cached cached_default --options '{"num_length_groups": 4}'

A step is forward, backward, clipping and the optimizer; that of vlkd_pl runs in Lightning's trainer, with its logging.
Each variant runs in a process of its own, in turn with the others. On the CPU these processes keep memory that is free
again for the next step: glibc would give it back, and get it anew page by page. A step's floor is the time that its
matrix products, as PyTorch counts them, would take at the rate of one large product measured right after it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

warnings.filterwarnings("ignore")

import pytorch_lightning as pl  # noqa: E402
import torch  # noqa: E402
from real_size import BART_LARGE, Clock, MatrixRate, caption_lengths, machine, median, model_folder, precision_of  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.nn.functional import cross_entropy, normalize  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from transformers import BartForConditionalGeneration, CLIPConfig, CLIPModel  # noqa: E402
from transformers.modeling_outputs import BaseModelOutput  # noqa: E402
from transformers.models.bart.modeling_bart import shift_tokens_right  # noqa: E402

from vlkd_pl.modules.vlkd import Execution, VLKDModule  # noqa: E402
from vlkd_pl.training.optim import Optimization  # noqa: E402

VARIANTS = {
    "cached": "vlkd_pl, cached CLIP",
    "cached_default": "vlkd_pl, cached CLIP, without the options",
    "online": "vlkd_pl, CLIP online",
    "plain": "plain, padded to 64",
    "plain_longest": "plain, padded to the longest",
}
DEFAULT_VARIANTS = ["cached", "online", "plain", "plain_longest"]
MAX_LENGTH = 64
OPTIMIZER = {"betas": (0.99, 0.999), "eps": 1e-6, "weight_decay": 0.01}
CLIP_NORM = 5.0
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="32-true", help="of the trainer (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="pairs (default: %(default)s)")
    parser.add_argument("--num-rounds", type=int, default=3, help="of all variants (default: %(default)s)")
    parser.add_argument("--num-steps", type=int, default=2, help="measured in a round (default: %(default)s)")
    parser.add_argument("--num-warmup-steps", type=int, default=1, help="before them (default: %(default)s)")
    parser.add_argument("--variants", nargs="+", default=DEFAULT_VARIANTS, choices=VARIANTS, metavar="VARIANT")
    parser.add_argument("--options", type=json.loads, default={}, help="of Execution, as JSON; not for cached_default")
    parser.add_argument("--models", type=Path, default=Path("runs/benchmarks/real_size"), help="where they are kept")
    # options of the process that measures one variant
    parser.add_argument("--one", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--count", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options)))
        return
    model_folder(options.models)
    results: dict[str, list[dict[str, Any]]] = {variant: [] for variant in options.variants}
    for number in range(options.num_rounds):
        for variant in options.variants:
            command = [sys.executable, *sys.argv, "--one", variant, *(["--count"] if number == 0 else [])]
            environment = os.environ | (KEEP_MEMORY if options.device == "cpu" else {})
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            results[variant].append(json.loads(done.stdout.splitlines()[-1]))
            print(
                f"round {number + 1}: {VARIANTS[variant]}: {median(results[variant][-1]['seconds']):.2f} s a step",
                flush=True,
            )
    report(results, options)


def report(results: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    seconds = {name: median([value for run in runs for value in run["seconds"]]) for name, runs in results.items()}
    print(f"\n{machine(options.device)}, {options.precision}, {options.batch_size} pairs, {time.strftime('%Y-%m-%d')}")
    for ours in ("cached", "online"):
        for other in ("cached_default", "online", "plain", "plain_longest"):
            if ours != other and {ours, other} <= results.keys():
                item = [
                    median(theirs["seconds"]) / median(mine["seconds"])
                    for mine, theirs in zip(results[ours], results[other], strict=True)
                ]
                print(f"ratio: {VARIANTS[ours]} is {median(item):.2f} times as fast as {VARIANTS[other]}")
    for name, runs in results.items():
        flops = runs[0]["flops"]
        floor = median(
            [value * rate / flops for run in runs for value, rate in zip(run["seconds"], run["rates"], strict=True)]
        )
        rate = median([rate for run in runs for rate in run["rates"]])
        print(
            f"{VARIANTS[name]}: {floor:.2f} × the floor of {flops / rate:.3f} s, that is {100 / floor:.0f}% of the "
            f"matrix rate; {options.batch_size / seconds[name]:.1f} pairs a second, {seconds[name]:.3f} s a step; "
            f"{flops / 1e12:.2f} TFLOP; peak memory {max(run['memory'] for run in runs) / 2**30:.1f} GiB"
        )


# One variant in its own process


def measure(variant: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each step, the matrix rate after it, FLOPs of a step (0 uncounted), and the most memory in bytes."""
    clock = Clock(options.device)
    rate = MatrixRate(options.device, precision_of(options.device, options.precision), clock)
    num_steps = options.num_warmup_steps + options.num_steps
    torch.manual_seed(0)
    batches = [batch_of(variant, options.batch_size) for _ in range(num_steps)]
    if variant.startswith("plain"):
        seconds, rates, losses = plain_steps(batches, options, clock, rate)
    else:
        arguments = {} if variant == "cached_default" else options.options
        seconds, rates, losses = lightning_steps(batches, arguments, options, clock, rate)
    if options.device == "cuda":
        memory = torch.cuda.max_memory_allocated()
    else:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # attention as plain products, which are counted on every device
    counter = FlopCounterMode(display=False)
    if options.count:
        with counter, sdpa_kernel(SDPBackend.MATH), autocast(options):
            losses(on_device(batches[0], options.device)).backward()
    first = options.num_warmup_steps
    return {"seconds": seconds[first:], "rates": rates[first:], "flops": counter.get_total_flops(), "memory": memory}


def batch_of(variant: str, batch_size: int) -> dict[str, Tensor]:
    """Random texts of the lengths of captions, the same in every batch, and images or CLIP's outputs."""
    lengths = caption_lengths(batch_size, torch.Generator().manual_seed(0))
    longest = MAX_LENGTH if variant == "plain" else None
    clean_ids, clean_mask = texts(lengths, longest, 1, 50_000)
    corrupted_ids, corrupted_mask = texts([max(4, length - 1) for length in lengths], longest, 1, 50_000)
    clip_text_ids, _ = texts(lengths, longest, 0, 49_000)
    clip_text_ids[range(batch_size), [length - 1 for length in lengths]] = 49_407
    batch = {
        "bart_text_ids": clean_ids,
        "bart_text_mask": clean_mask,
        "corrupted_ids": corrupted_ids,
        "corrupted_mask": corrupted_mask,
        "labels": clean_ids.masked_fill(clean_mask == 0, -100),
    }
    if variant.startswith("cached"):
        outputs = {"image_tokens": (batch_size, 1, 512), "clip_text_embedding": (batch_size, 512)}
        return batch | {name: normalize(torch.randn(shape), dim=-1) for name, shape in outputs.items()}
    return batch | {"clip_text_ids": clip_text_ids, "image": torch.randn(batch_size, 3, 224, 224)}


def texts(lengths: list[int], longest: int | None, pad_id: int, vocab_size: int) -> tuple[Tensor, Tensor]:
    """Token ids and mask, both (B, L) int64."""
    mask = torch.arange(longest or max(lengths)).expand(len(lengths), -1) < torch.tensor(lengths)[:, None]
    return torch.randint(3, vocab_size, mask.shape).masked_fill(~mask, pad_id), mask.long()


def on_device(batch: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in batch.items()}


def autocast(options: argparse.Namespace) -> torch.autocast:
    dtype = precision_of(options.device, options.precision)
    return torch.autocast(
        options.device, dtype if dtype != torch.float32 else None, enabled=dtype != torch.float32, cache_enabled=False
    )


Measured = tuple[list[float], list[float], Callable[[Any], Tensor]]
"""Seconds of each step, the matrix rate after each, and what gives a batch's loss."""


def lightning_steps(
    batches: list[dict[str, Tensor]],
    arguments: dict[str, Any],
    options: argparse.Namespace,
    clock: Clock,
    rate: MatrixRate,
) -> Measured:
    """The steps of VLKDModule in Lightning's trainer."""
    timer = StepTimer(clock, rate)
    # full rate from the first step: a rate of 0 would be no less work, but no training either
    optimization = Optimization(warmup_steps=1, total_steps=1000)
    execution = Execution(**arguments)
    module = VLKDModule(init_from=str(options.models), optimization=optimization, execution=execution)
    trainer = pl.Trainer(
        accelerator="gpu" if options.device == "cuda" else "cpu",
        devices=1,
        precision=options.precision,
        max_steps=len(batches),
        gradient_clip_val=CLIP_NORM,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[timer],
    )
    trainer.fit(module, torch.utils.data.DataLoader(batches, batch_size=None))
    module.to(options.device).train()

    def loss(batch: Any) -> Tensor:
        return torch.stack(
            [module.loss_weights[name] * value for name, value in module.compute_losses(batch).items()]
        ).sum()

    return timer.seconds, timer.rates, loss


class StepTimer(pl.Callback):
    """Takes the time of each step, and the matrix rate after it.

    Args:
        clock: Measures the steps.
        rate: Measures the rate.
    """

    def __init__(self, clock: Clock, rate: MatrixRate) -> None:
        self.clock, self.rate = clock, rate
        self.seconds: list[float] = []
        self.rates: list[float] = []
        self.start = 0.0

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock."""
        self.start = self.clock.now()

    def on_train_batch_end(self, *_: Any) -> None:
        """Stop the clock."""
        self.seconds.append(self.clock.now() - self.start)
        self.rates.append(self.rate())


class PlainVLKD(nn.Module):
    """The paper's losses as written with transformers: its CLIP, two passes of the encoder, one of the decoder."""

    def __init__(self) -> None:
        super().__init__()
        text = {"vocab_size": 49_408, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8}
        vision = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "patch_size": 16}
        self.clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=512))
        self.clip.eval().requires_grad_(False)
        self.bart = BartForConditionalGeneration(BART_LARGE)
        self.text_projection = nn.Linear(1024, 512, bias=False)
        self.image_projection = nn.Linear(512, 1024, bias=False)
        self.text_back_projection = nn.Linear(512, 1024, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(2.66))

    def train(self, mode: bool = True) -> PlainVLKD:
        """CLIP stays in evaluation."""
        super().train(mode)
        self.clip.eval()
        return self

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """The weighted sum of the losses."""
        with torch.no_grad():
            image = features(self.clip.get_image_features(pixel_values=batch["image"]))
            clip_mask = (batch["clip_text_ids"] != 0).long()
            text = features(self.clip.get_text_features(input_ids=batch["clip_text_ids"], attention_mask=clip_mask))
        encoder, mask = self.bart.model.encoder, batch["bart_text_mask"]
        clean = encoder(input_ids=batch["bart_text_ids"], attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1)
        embedding = normalize(self.text_projection((clean * weight).sum(1) / weight.sum(1)).float(), dim=-1)
        ttdm = (embedding - text).square().mean()
        logits = self.logit_scale.exp() * image @ embedding.T
        positions = torch.arange(len(logits), device=logits.device)
        itcl = (cross_entropy(logits, positions) + cross_entropy(logits.T, positions)) / 2
        corrupted = encoder(input_ids=batch["corrupted_ids"], attention_mask=batch["corrupted_mask"]).last_hidden_state
        condition = torch.cat(
            [
                self.image_projection(image).unsqueeze(1),
                self.text_back_projection(self.text_projection(corrupted)),
            ],
            1,
        )
        labels = batch["labels"]
        output = self.bart(
            encoder_outputs=BaseModelOutput(last_hidden_state=condition),
            attention_mask=nn.functional.pad(batch["corrupted_mask"], (1, 0), value=1),
            decoder_input_ids=shift_tokens_right(labels, 1, 2),
            use_cache=False,
        ).logits
        icti = cross_entropy(output.flatten(0, 1).float(), labels.flatten(), reduction="sum") / len(labels)
        return 1e3 * ttdm + itcl + icti


def features(output: Any) -> Tensor:
    """The normalised embedding (B, 512) float32: transformers 5 returns it within an output."""
    return normalize(getattr(output, "pooler_output", output).float(), dim=-1)


def plain_steps(
    batches: list[dict[str, Tensor]], options: argparse.Namespace, clock: Clock, rate: MatrixRate
) -> Measured:
    """The steps of a plain loop."""
    module = PlainVLKD().to(options.device).train()
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=5e-5, **OPTIMIZER)
    scaler = torch.amp.GradScaler(options.device, enabled=options.precision == "16-mixed")
    seconds, rates = [], []
    for batch in batches_on(batches, options.device):
        start = clock.now()
        optimizer.zero_grad()
        with autocast(options):
            loss = module(batch)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(trainable, CLIP_NORM)
        scaler.step(optimizer)
        scaler.update()
        seconds.append(clock.now() - start)
        rates.append(rate())
    return seconds, rates, module


def batches_on(batches: list[dict[str, Tensor]], device: str) -> Iterator[dict[str, Tensor]]:
    return (on_device(batch, device) for batch in batches)


if __name__ == "__main__":
    main()
