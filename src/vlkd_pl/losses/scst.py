"""The losses of Self-Critical Sequence Training."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from vlkd_pl.losses.precision import at_least_float32


def scst_loss(logits: Tensor, labels: Tensor, reward: Tensor, baseline: Tensor) -> Tensor:
    """Self-Critical Sequence Training (Rennie et al., 2017): REINFORCE with a baseline.

    Its gradient is that of the negative expected reward, as the samples estimate it.

    Args:
        logits: (S, M, V) of the decoder, given the samples.
        labels: Token ids (S, M) of the samples with their end tokens, -100 at padding and at what was given to them.
        reward: (S,) of the samples; no gradient flows into it.
        baseline: (S,), what the reward is compared with; neither here.

    Returns:
        Scalar: the mean over samples of (baseline - reward) times the log-probability of the whole sample.
    """
    token_loss = functional.cross_entropy(
        at_least_float32(logits).transpose(1, 2), labels, ignore_index=-100, reduction="none"
    )
    return ((reward - baseline).detach() * token_loss.sum(1)).mean()


def token_kl_loss(logits: Tensor, start_logits: Tensor, labels: Tensor) -> Tensor:
    """Kullback-Leibler divergence of a decoder from an earlier one, over the tokens of samples.

    Args:
        logits: (S, M, V) of the decoder, given the samples.
        start_logits: (S, M, V) of the earlier one; no gradient flows into it.
        labels: (S, M), -100 at the positions that do not count.

    Returns:
        Scalar in nats: the sum over a sample's tokens of KL(now ‖ then), as the mean over the S samples.
    """
    now = at_least_float32(logits).log_softmax(-1)
    then = at_least_float32(start_logits.detach()).log_softmax(-1)
    divergence = functional.kl_div(then, now, reduction="none", log_target=True).sum(-1)
    return (divergence * (labels != -100)).sum(1).mean()
