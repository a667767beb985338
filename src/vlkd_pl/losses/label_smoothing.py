"""Label-smoothed cross-entropy, the loss of summarization."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from vlkd_pl.distributed import mean_over_ranks
from vlkd_pl.losses.precision import at_least_float32


def label_smoothed_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Label-smoothed cross-entropy (Szegedy et al., 2016), as fairseq defines it.

    The target probability of the label is 1 - ε, and ε / (V - 1) for each of the V - 1 other tokens. PyTorch adds
    ε / V to the label's probability as well, so that its ε is V / (V - 1) times this one.

    Args:
        logits: Logits (B, L, V) of the decoder.
        labels: Token ids (B, L) int64, -100 at padding.
        smoothing: ε, in [0, 1).

    Returns:
        Scalar in nats: the mean over all tokens; averaged over ranks, the mean over the tokens of all ranks.

    Example:
        >>> import torch
        >>> label_smoothed_loss(torch.zeros(1, 2, 10), torch.tensor([[3, -100]]))  # ln 10
        tensor(2.3026)
    """
    vocab_size, num_tokens = logits.shape[-1], (labels != -100).sum()
    loss = functional.cross_entropy(
        at_least_float32(logits).flatten(0, 1),
        labels.flatten(),
        ignore_index=-100,
        label_smoothing=smoothing * vocab_size / (vocab_size - 1),
    )
    return loss * (num_tokens / mean_over_ranks(num_tokens))  # 1 without ranks
