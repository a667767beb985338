"""Ways to train that must not change what is trained: cached CLIP outputs, length groups, chunks, compilation, ..."""

import pytest
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from vlkd_pl.modules.vlkd import Execution, VLKDModule


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


def test_cached_clip_outputs_give_the_losses_of_images(world):
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
    torch.testing.assert_close(
        trained(world, execution=Execution(activation_checkpointing=True)), expected, rtol=1e-6, atol=1e-7
    )
    assert num_calls == num_before + 2 + 3  # the norms of one layer of each kind, once more


def losses_and_gradients(module, batch):
    module.zero_grad()
    losses = module.compute_losses(batch)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: value.grad.clone() for name, value in module.named_parameters() if value.grad is not None}
    return {name: loss.detach() for name, loss in losses.items()}, gradients


def longer_batch_of(module):
    """Five pairs of five lengths, with text without images, and text as image."""
    clean, corrupted = (
        module.model.tokenizer(rows, padding=True, return_tensors="pt")
        for rows in (
            ["a red fish", "two blue boats on the grass", "a fish", "a tree left of a house at night", "a boat at sea"],
            ["a <mask>", "<mask> boats", "a <mask> fish in a tree", "<mask> of a house at night", "<mask>"],
        )
    )
    infilling = {
        "corrupted_ids": corrupted["input_ids"],
        "corrupted_mask": corrupted["attention_mask"],
        "labels": clean["input_ids"].masked_fill(clean["attention_mask"] == 0, -100),
    }
    generator = torch.Generator().manual_seed(0)
    return infilling | {
        "image_tokens": nn.functional.normalize(torch.randn(5, 5, 32, generator=generator), dim=-1),
        "clip_text_embedding": nn.functional.normalize(torch.randn(5, 32, generator=generator), dim=-1),
        "bart_text_ids": clean["input_ids"],
        "bart_text_mask": clean["attention_mask"],
        "text_infilling": {name: value.flip(0) for name, value in infilling.items()},
        "text_as_image": {name: value[1:4] for name, value in infilling.items()}
        | {"clip_text_ids": torch.tensor([[653, 5, 654, 0], [653, 9, 8, 654], [653, 654, 0, 0]])},
    }


@pytest.mark.parametrize("icti_reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "execution",
    [
        Execution(num_length_groups=3),
        Execution(num_length_groups=100),
        Execution(vocabulary_chunk_size=7),
        Execution(num_length_groups=2, vocabulary_chunk_size=7, activation_checkpointing=True),
    ],
)
def test_groups_and_chunks_change_rounding_alone(world, execution, icti_reduction):
    """In training mode, for checkpointing, but with no dropout, which draws other numbers for groups."""
    results = []
    for setting in (Execution(), execution):
        torch.manual_seed(0)
        module = VLKDModule(world.clip, world.bart, "patches", icti_reduction=icti_reduction, execution=setting).train()
        for part in module.model.bart.modules():
            for name in ("dropout", "activation_dropout"):
                if isinstance(getattr(part, name, None), float):
                    setattr(part, name, 0.0)
        torch.manual_seed(1)  # for the noise of text as image
        results.append(losses_and_gradients(module, longer_batch_of(module)))
    assert results[1][0].keys() == {"ttdm", "itcl", "icti", "text_infilling", "text_as_image"}
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=0)
    assert results[1][1].keys() == results[0][1].keys()
    for name, expected in results[0][1].items():
        assert (results[1][1][name] - expected).norm() <= 1e-4 * expected.norm() + 1e-5, name


def test_groups_are_cut_to_their_lengths(world):
    """The encoder and the decoder see less than the whole batch with its padding."""
    module = VLKDModule(world.clip, world.bart, "patches", execution=Execution(num_length_groups=5)).eval()
    batch = longer_batch_of(module)
    seen = {"encode_text": [], "decode_features": []}
    for name, calls in seen.items():
        function = getattr(module.model, name)
        setattr(
            module.model, name, lambda *inputs, f=function, c=calls: (c.append(tuple(inputs[-1].shape)), f(*inputs))[1]
        )
    module.compute_losses(batch)
    parts = (batch, batch["text_as_image"], batch["text_infilling"])
    decoded = torch.cat([(part["labels"] != -100).sum(1) for part in parts])
    texts = [part["corrupted_mask"].sum(1) for part in parts]
    num_image_tokens = (module.model.clip.num_patches, 1, 0)
    conditions = torch.cat([lengths + more for lengths, more in zip(texts, num_image_tokens, strict=True)])
    encoded = torch.cat([batch["bart_text_mask"].sum(1), *texts])
    for name, lengths, order in (
        ("decode_features", decoded, decoded + conditions),
        ("encode_text", encoded, encoded),
    ):
        groups = lengths[order.argsort(stable=True)].tensor_split(5)
        assert seen[name] == [(len(group), int(group.max())) for group in groups]


@pytest.mark.parametrize("option", ["num_length_groups", "vocabulary_chunk_size"])
def test_no_group_or_chunk_at_all_is_refused(option):
    with pytest.raises(MisconfigurationException, match=f"{option} is 0: give 1 or more"):
        Execution(**{option: 0})


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"num_length_groups": 2, "vocabulary_chunk_size": 7}])
def test_compilation_changes_rounding_alone(world, options):
    """Without dropout, for which compiled code draws other numbers."""
    plain = VLKDModule(world.clip, world.bart, "patches").eval()
    compiled = VLKDModule(world.clip, world.bart, "patches", execution=Execution(compile=True, **options)).eval()
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    compiled.load_state_dict(plain.state_dict())
    results = [losses_and_gradients(module, batch_of(module)) for module in (plain, compiled)]
    torch.testing.assert_close(results[1], results[0], rtol=1e-3, atol=1e-5)
