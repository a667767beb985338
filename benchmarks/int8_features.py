"""Precision of cached features: the losses on features in float16 and int8, compared with CLIP's.

python benchmarks/int8_features.py --model runs/sample/distill/model --shards 'runs/sample/world/shards/*.tar'

The model is one that ``vlkd-pl fit`` wrote. The difference of a loss is printed next to its spread over batches, and
must be small compared with it. Gradients are those of the weighted sum, with respect to all trained parameters.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from vlkd_pl.batch import ImageTextBatch
from vlkd_pl.data.infilling import Masking
from vlkd_pl.datamodules.cc3m import CC3MDataModule
from vlkd_pl.features.format import quantized
from vlkd_pl.modules.vlkd import VLKDModule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--shards", required=True)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--num-batches", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    module = VLKDModule(init_from=options.model, icti_reduction="mean").eval()
    size = module.model.clip.image_size
    data = CC3MDataModule(
        options.shards,
        f"{options.model}/clip",
        f"{options.model}/bart",
        options.batch_size,
        num_workers=0,
        image_size=size,
        masking=Masking([0.3, 0.8, 1.0]),
    )
    data.setup("fit")
    losses: dict[str, list[Tensor]] = {"clip": [], "float16": [], "int8": []}
    distances: dict[str, list[float]] = {"float16": [], "int8": []}
    errors: dict[str, list[float]] = {"float16": [], "int8": []}
    for _, batch in zip(range(options.num_batches), data.train_dataloader(), strict=False):
        tokens = module.model.clip.encode_image(batch["image"])
        text = module.model.clip.encode_text(batch["clip_text_ids"])
        steps, scales = quantized(tokens)
        errors_by_name = {
            "clip": with_features(batch, tokens, text),
            "float16": with_features(batch, tokens.half(), text.half()),
            "int8": with_features(batch, steps, text.half(), scales),
        }
        errors["float16"].append((tokens.half().float() - tokens).norm(dim=-1).mean().item())
        errors["int8"].append((steps * scales.float().unsqueeze(-1) - tokens).norm(dim=-1).mean().item())
        gradients = {}
        for name, features in errors_by_name.items():
            values, gradients[name] = losses_and_gradient(module, features)
            losses[name].append(values)
        for name, values in distances.items():
            values.append(((gradients[name] - gradients["clip"]).norm() / gradients["clip"].norm()).item())
    print(f"{options.num_batches} batches of {options.batch_size}")
    stacked = {name: torch.stack(values) for name, values in losses.items()}
    for column, loss in enumerate(("ttdm", "itcl", "icti")):
        target = stacked["clip"][:, column]
        spread = target.std() / target.mean()
        print(f"{loss}: {target.mean():.4g} with CLIP's features, {spread:.1%} spread of batches")
        for name in ("float16", "int8"):
            difference = stacked[name][:, column] - target
            print(
                f"  {name:<8} mean {difference.mean() / target.mean():+.1e}, largest of a batch "
                f"{(difference.abs() / target).max():.1e}, relative"
            )
    for name in ("float16", "int8"):
        error, distance = (sum(original[name]) / options.num_batches for original in (errors, distances))
        print(f"{name}: a token is off by {error:.1e} of its length, the gradient by {distance:.1e} of its own")


def with_features(batch: ImageTextBatch, tokens: Tensor, text: Tensor, scales: Tensor | None = None) -> ImageTextBatch:
    """The batch with features in place of its images."""
    replaced: ImageTextBatch = {**batch, "image_tokens": tokens, "clip_text_embedding": text}
    if scales is not None:
        replaced["image_scales"] = scales
    return replaced


def losses_and_gradient(module: VLKDModule, batch: ImageTextBatch) -> tuple[Tensor, Tensor]:
    """TTDM, ITCL and ICTI, and the gradient of their weighted sum as one vector."""
    module.zero_grad()
    losses = module.compute_losses(batch)
    torch.stack([module.loss_weights[name] * loss for name, loss in losses.items()]).sum().backward()
    gradient = [parameter.grad.flatten() for parameter in module.parameters() if parameter.grad is not None]
    return torch.stack([losses[name].detach() for name in ("ttdm", "itcl", "icti")]), torch.cat(gradient)


if __name__ == "__main__":
    main()
