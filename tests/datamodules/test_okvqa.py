"""OK-VQA's files, where they differ from VQA v2's."""

import json

import pytest
from PIL import Image

from vlkd_pl.data.vqa_files import Question
from vlkd_pl.datamodules.okvqa import OKVQADataModule

TYPES = {"one": "Vehicles and Transportation", "four": "Sports and Recreation", "other": "Other"}


@pytest.fixture
def module(tmp_path, clip_folder):
    """Two questions on an image, as OK-VQA publishes them."""
    head = {
        "info": {"description": "This is v1.0 of the OK-VQA dataset.", "version": "1.0", "year": 2019},
        "license": {"url": "http://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"},
        "data_type": "mscoco",
        "data_subtype": "val2014",
    }
    questions = [
        {"image_id": 297147, "question": "What sport can you use this for?", "question_id": 2971475},
        {"image_id": 297147, "question": "Who makes it?", "question_id": 2971476},
    ]
    annotations = [
        {
            "image_id": 297147,
            "answer_type": "other",
            "question_type": question_type,
            "question_id": question_id,
            "answers": [
                {"answer_id": number, "raw_answer": "racing", "answer_confidence": "yes", "answer": "race"}
                for number in range(1, 11)
            ],
            "confidence": 3,
        }
        for question_id, question_type in ((2971475, "four"), (2971476, "ten"))
    ]
    for name, content in (
        ("OpenEnded_mscoco_val2014_questions", {"task_type": "Open-Ended", "questions": questions}),
        ("mscoco_val2014_annotations", {"question_types": TYPES, "annotations": annotations}),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(head | content))
    Image.new("RGB", (8, 8)).save(tmp_path / "COCO_val2014_000000297147.jpg")
    return OKVQADataModule(
        str(tmp_path / "OpenEnded_mscoco_val2014_questions.json"),
        str(tmp_path),
        str(tmp_path / "mscoco_val2014_annotations.json"),
        clip=str(clip_folder),
    )


def test_truth_is_the_stemmed_answer_and_types_have_names(module):
    module.setup("test")
    (sample,) = module.samples
    assert sample.file.name == "COCO_val2014_000000297147.jpg"
    assert sample.questions[0] == Question(
        2971475, 297147, "What sport can you use this for?", ("race",) * 10, "other", "Sports and Recreation"
    )
    assert sample.questions[1].question_type == "ten"  # a code that the file gives no name for
