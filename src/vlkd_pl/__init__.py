"""VLKD: vision-language knowledge distillation, as PyTorch Lightning modules.

Public names are imported on first use, so that ``import vlkd_pl`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.5.0"

_HOMES = {
    "CC3MDataModule": "vlkd_pl.datamodules.cc3m",
    "COCODataModule": "vlkd_pl.datamodules.coco",
    "CaptionFolderDataModule": "vlkd_pl.datamodules.image_folder",
    "CaptioningModule": "vlkd_pl.modules.captioning",
    "ClassFolderDataModule": "vlkd_pl.datamodules.image_folder",
    "ClassificationModule": "vlkd_pl.modules.classification",
    "Decoding": "vlkd_pl.models.decoding",
    "ExportModel": "vlkd_pl.training.export",
    "FSDP2Strategy": "vlkd_pl.training.fsdp",
    "FolderDataModule": "vlkd_pl.datamodules.image_folder",
    "FrozenCLIP": "vlkd_pl.clip.frozen",
    "GLUEDataModule": "vlkd_pl.datamodules.glue",
    "GLUEModule": "vlkd_pl.modules.glue",
    "NoCapsDataModule": "vlkd_pl.datamodules.nocaps",
    "OKVQADataModule": "vlkd_pl.datamodules.okvqa",
    "PredictionWriter": "vlkd_pl.training.prediction_writer",
    "QuestionFiles": "vlkd_pl.data.vqa_files",
    "RetrievalModule": "vlkd_pl.modules.retrieval",
    "SCSTModule": "vlkd_pl.modules.scst",
    "StepProgressBar": "vlkd_pl.training.progress_bar",
    "SummarizationModule": "vlkd_pl.modules.summarization",
    "SummaryDecoding": "vlkd_pl.models.summarize",
    "VLKD": "vlkd_pl.pipeline",
    "VLKDModel": "vlkd_pl.models.vlkd",
    "VLKDModule": "vlkd_pl.modules.vlkd",
    "VQAModule": "vlkd_pl.modules.vqa",
    "VQAv2DataModule": "vlkd_pl.datamodules.vqav2",
    "XSUMDataModule": "vlkd_pl.datamodules.xsum",
}

__all__ = [
    "VLKD",
    "CC3MDataModule",
    "COCODataModule",
    "CaptionFolderDataModule",
    "CaptioningModule",
    "ClassFolderDataModule",
    "ClassificationModule",
    "Decoding",
    "ExportModel",
    "FSDP2Strategy",
    "FolderDataModule",
    "FrozenCLIP",
    "GLUEDataModule",
    "GLUEModule",
    "NoCapsDataModule",
    "OKVQADataModule",
    "PredictionWriter",
    "QuestionFiles",
    "RetrievalModule",
    "SCSTModule",
    "StepProgressBar",
    "SummarizationModule",
    "SummaryDecoding",
    "VLKDModel",
    "VLKDModule",
    "VQAModule",
    "VQAv2DataModule",
    "XSUMDataModule",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vlkd_pl' has no attribute {name!r}")
