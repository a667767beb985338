"""Metrics of captions, answers, retrieval, GLUE and summaries, as ``torchmetrics.Metric`` on pure functions.

Public names are imported on first use: torchmetrics takes seconds to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlkd_pl.metrics.bleu import BLEU as BLEU
    from vlkd_pl.metrics.captions import CaptionScores as CaptionScores
    from vlkd_pl.metrics.captions import caption_scores as caption_scores
    from vlkd_pl.metrics.cider import CIDEr as CIDEr
    from vlkd_pl.metrics.cider import CIDErD as CIDErD
    from vlkd_pl.metrics.cider import CIDErDReward as CIDErDReward
    from vlkd_pl.metrics.glue import GLUEScore as GLUEScore
    from vlkd_pl.metrics.glue import glue_scores as glue_scores
    from vlkd_pl.metrics.ptb import tokenize as tokenize
    from vlkd_pl.metrics.retrieval import RetrievalRecall as RetrievalRecall
    from vlkd_pl.metrics.retrieval import recall_at_k as recall_at_k
    from vlkd_pl.metrics.rouge_l import ROUGEL as ROUGEL
    from vlkd_pl.metrics.summaries import ROUGE as ROUGE
    from vlkd_pl.metrics.summaries import summary_scores as summary_scores
    from vlkd_pl.metrics.vqa import VQAAccuracy as VQAAccuracy
    from vlkd_pl.metrics.vqa import VQAScores as VQAScores
    from vlkd_pl.metrics.vqa import answer_accuracy as answer_accuracy
    from vlkd_pl.metrics.vqa import vqa_scores as vqa_scores

_MODULES = {
    "BLEU": "bleu",
    "CIDEr": "cider",
    "CIDErD": "cider",
    "CIDErDReward": "cider",
    "CaptionScores": "captions",
    "GLUEScore": "glue",
    "ROUGE": "summaries",
    "ROUGEL": "rouge_l",
    "RetrievalRecall": "retrieval",
    "VQAAccuracy": "vqa",
    "VQAScores": "vqa",
    "answer_accuracy": "vqa",
    "caption_scores": "captions",
    "glue_scores": "glue",
    "recall_at_k": "retrieval",
    "summary_scores": "summaries",
    "tokenize": "ptb",
    "vqa_scores": "vqa",
}

__all__ = [*_MODULES]


if not TYPE_CHECKING:  # or any name would be right for a checker

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return getattr(import_module(f"vlkd_pl.metrics.{_MODULES[name]}"), name)
        raise AttributeError(f"module 'vlkd_pl.metrics' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
