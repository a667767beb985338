"""The losses of Self-Critical Sequence Training."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from vlkd_pl.losses.precision import at_least_float32


def scst_loss(logits: Tensor, labels: Tensor, reward: Tensor, baseline: Tensor) -> Tensor:
    """Self-Critical Sequence Training (Rennie et al., 2017): REINFORCE with a baseline.

    Its gradient estimates that of the negative expected reward from S samples.

    Args:
        logits: Logits (S, M, V) of the decoder, teacher-forced on the samples.
        labels: Token ids (S, M) int64 of the samples with end tokens, -100 at padding and at forced tokens.
        reward: Rewards (S,) of the samples, without gradient.
        baseline: Baseline rewards (S,) that are subtracted, without gradient.

    Returns:
        Scalar: the mean over samples of (baseline - reward) times the sample's log-probability.

    Example:
        >>> import torch
        >>> logits, labels = torch.zeros(1, 2, 10), torch.tensor([[3, 2]])
        >>> scst_loss(logits, labels, reward=torch.tensor([1.0]), baseline=torch.tensor([0.0]))  # 2 ln 10
        tensor(4.6052)
    """
    token_loss = functional.cross_entropy(
        at_least_float32(logits).transpose(1, 2), labels, ignore_index=-100, reduction="none"
    )
    return ((reward - baseline).detach() * token_loss.sum(1)).mean()


def token_kl_loss(logits: Tensor, start_logits: Tensor, labels: Tensor) -> Tensor:
    """Kullback-Leibler divergence of a decoder from its start, over the tokens of samples.

    Args:
        logits: Logits (S, M, V) of the decoder, teacher-forced on the samples.
        start_logits: Logits (S, M, V) of the decoder at the start of training, without gradient.
        labels: Token ids (S, M) int64, -100 at positions that are ignored.

    Returns:
        Scalar in nats: KL(now ‖ start), summed over a sample's tokens and averaged over the S samples.

    Example:
        >>> import torch
        >>> logits = torch.zeros(1, 2, 10)
        >>> token_kl_loss(logits, logits, torch.tensor([[3, 2]]))
        tensor(0.)
    """
    now = at_least_float32(logits).log_softmax(-1)
    then = at_least_float32(start_logits.detach()).log_softmax(-1)
    divergence = functional.kl_div(then, now, reduction="none", log_target=True).sum(-1)
    return (divergence * (labels != -100)).sum(1).mean()
