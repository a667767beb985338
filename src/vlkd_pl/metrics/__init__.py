"""Metrics of captions, answers, retrieval, GLUE and summaries, as ``torchmetrics.Metric`` on pure functions.

Public names are imported on first use: torchmetrics takes seconds to import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlkd_pl.metrics.bleu import BLEU
    from vlkd_pl.metrics.captions import CaptionScores, caption_scores
    from vlkd_pl.metrics.cider import CIDEr, CIDErD, CIDErDReward
    from vlkd_pl.metrics.glue import GLUEScore, glue_scores
    from vlkd_pl.metrics.ptb import tokenize
    from vlkd_pl.metrics.retrieval import RetrievalRecall, recall_at_k
    from vlkd_pl.metrics.rouge_l import ROUGEL
    from vlkd_pl.metrics.summaries import ROUGE, summary_scores
    from vlkd_pl.metrics.vqa import VQAAccuracy, VQAScores, answer_accuracy, vqa_scores

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

__all__ = [
    "BLEU",
    "ROUGE",
    "ROUGEL",
    "CIDEr",
    "CIDErD",
    "CIDErDReward",
    "CaptionScores",
    "GLUEScore",
    "RetrievalRecall",
    "VQAAccuracy",
    "VQAScores",
    "answer_accuracy",
    "caption_scores",
    "glue_scores",
    "recall_at_k",
    "summary_scores",
    "tokenize",
    "vqa_scores",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"vlkd_pl.metrics.{_MODULES[name]}"), name)
    raise AttributeError(f"module 'vlkd_pl.metrics' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
