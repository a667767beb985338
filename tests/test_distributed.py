"""Two real processes compared with one on the joint batch."""

import pytest
import torch
import torch.distributed
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from ranks import run_ranks
from torch import nn
from torch.nn.functional import normalize
from torch.nn.parallel import DistributedDataParallel

from vlkd_pl.distributed import gather_objects, gather_on_first_rank, gather_with_gradient, mean_over_ranks
from vlkd_pl.losses import chunked_icti_loss, icti_loss, itcl_loss, label_smoothed_loss

WORLD_SIZE = 2


class Towers(nn.Module):
    """Stands in for the two encoders, with a temperature."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Linear(6, 5, dtype=torch.float64)
        self.text = nn.Linear(7, 5, dtype=torch.float64)
        self.logit_scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, image, text):
        return normalize(self.image(image), dim=-1), normalize(self.text(text), dim=-1), self.logit_scale.exp()


def inputs():
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(8, size, generator=generator, dtype=torch.float64) for size in (6, 7))


def gradients(module):
    return {name: parameter.grad.clone() for name, parameter in module.named_parameters()}


class Decoder(nn.Module):
    """Stands in for BART's decoder, with a loss that is a mean over tokens."""

    def __init__(self, name):
        super().__init__()
        torch.manual_seed(0)
        self.name, self.vocabulary = name, nn.Linear(6, 11, dtype=torch.float64)

    def forward(self, hidden, labels):
        if self.name == "chunked":
            bias = self.vocabulary.bias.detach()
            return (
                chunked_icti_loss(hidden, self.vocabulary.weight, bias, labels, 3, "mean")
                + 0 * self.vocabulary.bias.sum()
            )
        logits = self.vocabulary(hidden)
        return icti_loss(logits, labels, "mean") if self.name == "icti" else label_smoothed_loss(logits, labels)


def texts():
    """Equally many texts on each rank, with 4 and 17 tokens."""
    generator = torch.Generator().manual_seed(2)
    labels = torch.randint(11, (6, 7), generator=generator)
    for row, length in enumerate((1, 2, 1, 7, 4, 6)):
        labels[row, length:] = -100
    return torch.randn(6, 7, 6, generator=generator, dtype=torch.float64), labels


TOKEN_MEANS = ["icti", "chunked", "smoothed"]


def on_rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=WORLD_SIZE)
    image, text = (part.chunk(WORLD_SIZE)[rank] for part in inputs())
    parallel = DistributedDataParallel(Towers())
    loss = itcl_loss(*parallel(image, text))
    loss.backward()
    objects = gather_objects([f"{rank}a", f"{rank}b"])

    rows = torch.full((2, 1), float(rank + 1), requires_grad=True)
    gathered = gather_with_gradient(rows)
    (gathered * torch.arange(4.0)[:, None]).sum().backward()
    embedding = normalize(torch.ones(3 + rank, 5, requires_grad=True), dim=-1)
    with pytest.raises(MisconfigurationException) as unequal:
        itcl_loss(embedding, embedding, torch.tensor(1.0))
    on_first = gather_on_first_rank(torch.tensor([float(rank)]))
    token_means = {}
    for name in TOKEN_MEANS:
        decoder = DistributedDataParallel(Decoder(name))
        token_mean = decoder(*(part.chunk(WORLD_SIZE)[rank] for part in texts()))
        token_mean.backward()
        token_means[name] = token_mean.detach(), gradients(decoder.module)
    torch.save(
        {
            "token_means": token_means,
            "mean": mean_over_ranks(torch.tensor(rank)),
            "unequal": str(unequal.value),
            "on_first": on_first,
            "loss": loss.detach(),
            "gradients": gradients(parallel.module),
            "objects": objects,
            "gathered": gathered.detach(),
            "gathered_gradient": rows.grad,
        },
        f"{folder}/{rank}.pt",
    )
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(on_rank, str(folder), num=WORLD_SIZE)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD_SIZE)]


def test_itcl_of_two_ranks_is_that_of_the_joint_batch(ranks):
    towers = Towers()
    joint = itcl_loss(*towers(*inputs()))
    joint.backward()
    torch.testing.assert_close(sum(result["loss"] for result in ranks) / WORLD_SIZE, joint.detach(), rtol=1e-12, atol=0)
    for result in ranks:
        torch.testing.assert_close(result["gradients"], gradients(towers), rtol=1e-10, atol=1e-14)


def test_negatives_of_other_ranks_count(ranks):
    towers = Towers()
    image, text = inputs()
    alone = [itcl_loss(*towers(i, t)).item() for i, t in zip(image.chunk(2), text.chunk(2), strict=True)]
    assert all(result["loss"].item() > this + 0.1 for result, this in zip(ranks, alone, strict=True))


def test_gathering_keeps_the_order_and_returns_each_gradient(ranks):
    for rank, result in enumerate(ranks):
        assert result["gathered"].flatten().tolist() == [1, 1, 2, 2]
        # each of the two ranks adds its own gradient, 0..3 at the four rows
        assert result["gathered_gradient"].flatten().tolist() == [[0, 2], [4, 6]][rank]
        assert result["objects"] == ["0a", "0b", "1a", "1b"]


@pytest.mark.parametrize("name", TOKEN_MEANS)
def test_a_mean_over_tokens_is_over_those_of_all_ranks(ranks, name):
    decoder = Decoder(name)
    joint = decoder(*texts())
    joint.backward()
    losses, means = zip(*(result["token_means"][name] for result in ranks), strict=True)
    torch.testing.assert_close(sum(losses) / WORLD_SIZE, joint.detach(), rtol=1e-6, atol=0)
    for gradient in means:
        torch.testing.assert_close(gradient, gradients(decoder), rtol=1e-6, atol=1e-9)
    alone = [Decoder(name)(*(part.chunk(WORLD_SIZE)[rank] for part in texts())).item() for rank in range(WORLD_SIZE)]
    assert sum(alone) / WORLD_SIZE != pytest.approx(joint.item(), rel=1e-3)


def test_the_mean_of_counts(ranks):
    assert [result["mean"].item() for result in ranks] == [0.5, 0.5]
    count = torch.tensor(3)
    assert mean_over_ranks(count) is count


def test_batches_that_differ_are_refused_on_all_ranks(ranks):
    for result in ranks:
        assert "the ranks have batches of 3, 4 samples, but all must have the same size" in result["unequal"]


def test_the_first_rank_gets_all(ranks):
    assert [result["on_first"] if result["on_first"] is None else result["on_first"].tolist() for result in ranks] == [
        [[0.0], [1.0]],
        None,
    ]


def test_one_process_gathers_itself():
    tensor = torch.ones(2, 3)
    assert gather_with_gradient(tensor) is tensor
    assert gather_objects([1, 2]) == [1, 2]
    assert torch.equal(gather_on_first_rank(tensor), tensor[None])
