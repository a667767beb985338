"""Ways to train that must not change what is trained: cached CLIP outputs, checkpointed activations, compilation."""

import pytest
import torch
from torch import nn

from vlkd_pl.modules.vlkd import VLKDModule


def batch_of(module):
    """Two pairs of other lengths."""
    texts = ["a red fish", "two blue boats on the grass"]
    clean, corrupted = (
        module.model.tokenizer(rows, padding=True, return_tensors="pt")
        for rows in (texts, ["a <mask>", "<mask> boats"])
    )
    return {
        "image": torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
        "clip_text_ids": torch.tensor([[653, 5, 654, 0], [653, 9, 8, 654]]),
        "bart_text_ids": clean["input_ids"],
        "bart_text_mask": clean["attention_mask"],
        "corrupted_ids": corrupted["input_ids"],
        "corrupted_mask": corrupted["attention_mask"],
        "labels": clean["input_ids"].masked_fill(clean["attention_mask"] == 0, -100),
    }


def trained(world, batch=None, **options):
    """Losses and gradients of one batch, with dropout."""
    torch.manual_seed(0)
    module = VLKDModule(world.clip, world.bart, "patches", **options).train()
    torch.manual_seed(1)
    losses = module.compute_losses(batch_of(module) if batch is None else batch)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: value.grad for name, value in module.named_parameters() if value.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def test_cached_clip_outputs_give_the_losses_of_pictures(world):
    module = VLKDModule(world.clip, world.bart, "patches")
    cached = batch_of(module)
    cached["image_tokens"] = module.model.clip.encode_image(cached.pop("image"))
    cached["clip_text_embedding"] = module.model.clip.encode_text(cached.pop("clip_text_ids"))
    torch.testing.assert_close(trained(world, cached), trained(world), rtol=0, atol=0)


def test_checkpointed_activations_change_nothing_but_memory(world, monkeypatch):
    expected = trained(world)
    num_calls = 0
    forward = nn.LayerNorm.forward

    def counted(*arguments):
        nonlocal num_calls
        num_calls += 1
        return forward(*arguments)

    monkeypatch.setattr(nn.LayerNorm, "forward", counted)
    trained(world)
    num_before, num_calls = num_calls, 0
    torch.testing.assert_close(trained(world, activation_checkpointing=True), expected, rtol=1e-6, atol=1e-7)
    assert num_calls == num_before + 2 + 3  # the norms of one layer of each kind, once more


@pytest.mark.slow
def test_compilation_changes_rounding_alone(world):
    """Without dropout, for which compiled code draws other numbers."""
    plain, compiled = (VLKDModule(world.clip, world.bart, "patches", compile=way).eval() for way in (False, True))
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    compiled.load_state_dict(plain.state_dict())
    found = []
    for module in (plain, compiled):
        losses = module.compute_losses(batch_of(module))
        torch.stack(list(losses.values())).sum().backward()
        gradients = {name: value.grad for name, value in module.named_parameters() if value.grad is not None}
        found.append((losses, gradients))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)
