"""Label-smoothed cross-entropy, the loss of summarization."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from vlkd_pl.distributed import mean_over_ranks
from vlkd_pl.losses.precision import at_least_float32


def label_smoothed_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.1) -> Tensor:
    """Label-smoothed cross-entropy (Szegedy et al., 2016), as fairseq defines it.

    The right token's share of the target is 1 - ε; each of the V - 1 others has ε / (V - 1). PyTorch gives the right
    one ε / V too, so that its ε is V / (V - 1) times this one.

    Args:
        logits: (B, L, V) of the decoder.
        labels: Token ids (B, L), -100 at padding.
        smoothing: ε, in [0, 1).

    Returns:
        Scalar in nats: the mean over all tokens, as a mean over ranks over those of all ranks.
    """
    vocab_size, num_tokens = logits.shape[-1], (labels != -100).sum()
    loss = functional.cross_entropy(
        at_least_float32(logits).flatten(0, 1),
        labels.flatten(),
        ignore_index=-100,
        label_smoothing=smoothing * vocab_size / (vocab_size - 1),
    )
    return loss * (num_tokens / mean_over_ranks(num_tokens))  # 1 without ranks
