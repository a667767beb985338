"""VLKD: vision-language knowledge distillation, as PyTorch Lightning modules.

Public names are imported on first use, so that ``import vlkd_pl`` is quick; type checkers see the imports below.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlkd_pl.clip.frozen import FrozenCLIP as FrozenCLIP
    from vlkd_pl.data.vqa_files import QuestionFiles as QuestionFiles
    from vlkd_pl.datamodules.cc3m import CC3MDataModule as CC3MDataModule
    from vlkd_pl.datamodules.coco import COCODataModule as COCODataModule
    from vlkd_pl.datamodules.glue import GLUEDataModule as GLUEDataModule
    from vlkd_pl.datamodules.image_folder import CaptionFolderDataModule as CaptionFolderDataModule
    from vlkd_pl.datamodules.image_folder import ClassFolderDataModule as ClassFolderDataModule
    from vlkd_pl.datamodules.image_folder import FolderDataModule as FolderDataModule
    from vlkd_pl.datamodules.nocaps import NoCapsDataModule as NoCapsDataModule
    from vlkd_pl.datamodules.okvqa import OKVQADataModule as OKVQADataModule
    from vlkd_pl.datamodules.vqav2 import VQAv2DataModule as VQAv2DataModule
    from vlkd_pl.datamodules.xsum import XSUMDataModule as XSUMDataModule
    from vlkd_pl.models.decoding import Decoding as Decoding
    from vlkd_pl.models.summarize import SummaryDecoding as SummaryDecoding
    from vlkd_pl.models.vlkd import VLKDModel as VLKDModel
    from vlkd_pl.modules.captioning import CaptioningModule as CaptioningModule
    from vlkd_pl.modules.classification import ClassificationModule as ClassificationModule
    from vlkd_pl.modules.glue import GLUEModule as GLUEModule
    from vlkd_pl.modules.retrieval import RetrievalModule as RetrievalModule
    from vlkd_pl.modules.scst import SCSTModule as SCSTModule
    from vlkd_pl.modules.summarization import SummarizationModule as SummarizationModule
    from vlkd_pl.modules.vlkd import Execution as Execution
    from vlkd_pl.modules.vlkd import VLKDModule as VLKDModule
    from vlkd_pl.modules.vqa import VQAModule as VQAModule
    from vlkd_pl.pipeline import VLKD as VLKD
    from vlkd_pl.training.export import ExportModel as ExportModel
    from vlkd_pl.training.fsdp import FSDP2Strategy as FSDP2Strategy
    from vlkd_pl.training.optim import Optimization as Optimization
    from vlkd_pl.training.prediction_writer import PredictionWriter as PredictionWriter
    from vlkd_pl.training.progress_bar import StepProgressBar as StepProgressBar

__version__ = "0.5.0"

_MODULES = {
    "CC3MDataModule": "vlkd_pl.datamodules.cc3m",
    "COCODataModule": "vlkd_pl.datamodules.coco",
    "CaptionFolderDataModule": "vlkd_pl.datamodules.image_folder",
    "CaptioningModule": "vlkd_pl.modules.captioning",
    "ClassFolderDataModule": "vlkd_pl.datamodules.image_folder",
    "ClassificationModule": "vlkd_pl.modules.classification",
    "Decoding": "vlkd_pl.models.decoding",
    "Execution": "vlkd_pl.modules.vlkd",
    "ExportModel": "vlkd_pl.training.export",
    "FSDP2Strategy": "vlkd_pl.training.fsdp",
    "FolderDataModule": "vlkd_pl.datamodules.image_folder",
    "FrozenCLIP": "vlkd_pl.clip.frozen",
    "GLUEDataModule": "vlkd_pl.datamodules.glue",
    "GLUEModule": "vlkd_pl.modules.glue",
    "NoCapsDataModule": "vlkd_pl.datamodules.nocaps",
    "OKVQADataModule": "vlkd_pl.datamodules.okvqa",
    "Optimization": "vlkd_pl.training.optim",
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
"""The module of each public name; the same as the imports above."""

__all__ = ["__version__", *_MODULES]


if not TYPE_CHECKING:  # or any name would be right for a checker

    def __getattr__(name: str) -> Any:
        if name in _MODULES:
            return getattr(import_module(_MODULES[name]), name)
        raise AttributeError(f"module 'vlkd_pl' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
