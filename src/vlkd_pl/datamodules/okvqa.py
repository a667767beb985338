"""OK-VQA (Marino et al., 2019): questions whose answers need knowledge from outside the image."""

from __future__ import annotations

from vlkd_pl.datamodules.vqav2 import VQAv2DataModule


class OKVQADataModule(VQAv2DataModule):
    """OK-VQA's questions on COCO's images; its files are of VQA v2's format.

    The paper never trains on it. The official test set is ``OpenEnded_mscoco_val2014_questions.json`` with
    ``mscoco_val2014_annotations.json``; the field ``answer`` of each annotation, which the authors brought to word
    stems, is the ground truth.
    """
