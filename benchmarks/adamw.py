"""AdamW's step on all weights of BART-large: fused, as in training, against PyTorch's two others.

python benchmarks/adamw.py
python benchmarks/adamw.py --device cuda

Weights and gradients are shared, each side has its moments; the sides run in turn.
"""

from __future__ import annotations

import argparse
import time

import torch
from real_size import BART_LARGE, Clock, machine, median
from transformers import BartForConditionalGeneration

from vlkd_pl.training.optim import make_optimizer

OTHERS = {"foreach": {"foreach": True}, "one by one": {"foreach": False}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--num-rounds", type=int, default=5, help="of all sides (default: %(default)s)")
    options = parser.parse_args()
    clock = Clock(options.device)
    with torch.device(options.device):
        weights = list(BartForConditionalGeneration(BART_LARGE).parameters())
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    rate, betas, eps = 5e-5, (0.99, 0.999), 1e-6
    fused = "fused"
    sides = {fused: make_optimizer("adamw", [{"params": weights}], rate, betas, eps)}
    for name, arguments in OTHERS.items():
        sides[name] = torch.optim.AdamW(weights, rate, betas, eps, **arguments)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(options.num_rounds + 1):
        for name, optimizer in sides.items():
            start = clock.now()
            optimizer.step()
            if round_number:  # behind a warm-up, which makes the moments
                seconds[name].append(clock.now() - start)
    print(
        f"{machine(options.device)}, {sum(map(torch.numel, weights)) / 1e6:.0f}M weights, {time.strftime('%Y-%m-%d')}"
    )
    for name in OTHERS:
        ratio = median([a / b for a, b in zip(seconds[name], seconds[fused], strict=True)])
        ours, other = median(seconds[fused]), median(seconds[name])
        print(f"fused is {ratio:.1f} times as fast as {name} ({ours:.2f} s and {other:.2f} s)")


if __name__ == "__main__":
    main()
