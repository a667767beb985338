"""Losses as pure functions on tensors."""

from vlkd_pl.losses.distillation import (
    MAX_LOGIT_SCALE,
    chunked_icti_loss,
    clamp_logit_scale_,
    icti_loss,
    itcl_loss,
    ttdm_loss,
)
from vlkd_pl.losses.label_smoothing import label_smoothed_loss
from vlkd_pl.losses.scst import scst_loss, token_kl_loss
from vlkd_pl.losses.vocabulary import chunked_cross_entropy

__all__ = [
    "MAX_LOGIT_SCALE",
    "chunked_cross_entropy",
    "chunked_icti_loss",
    "clamp_logit_scale_",
    "icti_loss",
    "itcl_loss",
    "label_smoothed_loss",
    "scst_loss",
    "token_kl_loss",
    "ttdm_loss",
]
