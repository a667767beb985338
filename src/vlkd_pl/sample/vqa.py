"""Writing of the sample world's questions in the formats of VQA v2, OK-VQA and VL-T5's split."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vlkd_pl.sample.language import FACTS, NUMBERS, Question, plural, questions
from vlkd_pl.sample.scenes import COLORS, OBJECTS, PLACES, SIZES, Scene

NUM_ANNOTATORS = 10
"""Number of answers to each question, as in both benchmarks."""

DATE = "2022-01-01 00:00:00"
"""Constant date for the files whose format requires one."""

FACT_TYPES = {"one": "who likes it", "two": "what it is made of", "three": "where it is kept"}
"""OK-VQA's codes of question types, one for each column of ``FACTS``."""

RARE_ANSWERS = frozenset({"pink", "brown", "hat", "hats", "bell", "bells"})
"""The answers of the out-of-domain questions, which few of the split's training questions have."""

TAUGHT_OBJECTS = frozenset({"fish", "tree", "cup", "star", "ball", "bell"})
"""The objects whose facts most of the knowledge questions of training ask for; those of other splits are about the
others. Each half holds one object with a rare name, and four of an unseen combination of color and object."""

_LABEL_SCORES = {1: 0.3, 2: 0.6, 3: 0.9}  # VL-T5's scores by the number of annotators; 1 for more

_FACT_COLUMNS = tuple(zip(*FACTS.values(), strict=True))
_TAUGHT_FACTS = frozenset(fact for name in TAUGHT_OBJECTS for fact in FACTS[name])
_UNTAUGHT_FACTS = frozenset(fact for facts in FACTS.values() for fact in facts) - _TAUGHT_FACTS
_ALTERNATIVES: tuple[tuple[str, ...], ...] = (
    COLORS,
    OBJECTS,
    tuple(plural(name) for name in OBJECTS),
    tuple(NUMBERS.values()),
    SIZES,
    PLACES,
    ("left", "right"),
    ("above", "below"),
    ("yes", "no"),
    # apart, so that no annotator of a question about a taught fact gives a fact that other splits ask for
    *(
        tuple(fact for fact in column if fact in facts)
        for facts in (_TAUGHT_FACTS, _UNTAUGHT_FACTS)
        for column in _FACT_COLUMNS
    ),
)
_DISAGREEMENT = 0.25
_KNOWLEDGE_SHARE = 0.5
"""Share of the training split's knowledge questions that VQA's file holds, too: about 7% of its questions."""
_UNTAUGHT_SHARE = 0.2
"""Share of the questions for untaught facts that VQA's training file holds: about 3% of its questions. Without any, a
fine-tuned model never gives such an answer again."""
_RARE_SHARE = 0.02
"""Share of the out-of-domain questions that the training file of VL-T5's split holds."""
_TRIVIAL_QUESTIONS = ("how many things are there?", "when is it?")
"""Questions that have the same answer in every scene: three, and night."""


def write_questions(folder: Path, split: str, scenes: list[Scene], first_id: int, rng: random.Random) -> None:
    """Write questions about a split's scenes, with ten answers each.

    Questions about the image go to ``vqa_questions_{split}.json`` and ``vqa_annotations_{split}.json`` (VQA v2's
    format, https://visualqa.org/download.html). Knowledge questions, whose answer is no part of the image, go to
    ``okvqa_questions_{split}.json`` and ``okvqa_annotations_{split}.json`` (OK-VQA's format,
    https://okvqa.allenai.org). Those of the split ``train`` are about ``TAUGHT_OBJECTS``, and half of them are in the
    first two files, too, as some of VQA v2's questions need knowledge. Those of other splits are about the other
    objects: their answers are in the text corpus; of the questions for these facts that images of ``train`` allow, the
    first two files hold a fifth, as VQA v2's training file has some of the answers to OK-VQA's questions.

    At least eight annotators give the correct answer, which thus has an accuracy of 100%; for about a quarter of the
    questions, one or two annotators give a wrong answer of the same kind.

    ``vqa_karpathy_{split}.json`` splits the questions about the image by their answer, in VL-T5's format (Cho et al.,
    2021): common answers are in-domain, ``RARE_ANSWERS`` out-of-domain. For the split ``train`` it holds 2% of
    the out-of-domain questions, as VL-T5's holds few of them, and all others.

    Args:
        folder: Folder that the five files are written to.
        split: Name of the split.
        scenes: Scenes of the split's images.
        first_id: Id of the first image; the others follow.
        rng: Random generator of the questions and the annotators' answers.
    """
    seen: dict[int, Question] = {}
    facts: dict[int, Question] = {}
    for image_id, scene in enumerate(scenes, start=first_id):
        drawn = [question for question in questions(scene, rng) if question.text not in _TRIVIAL_QUESTIONS]
        visual = [question for question in drawn if question.kind != "fact"]
        taught = [question for question in drawn if question.answer in _TAUGHT_FACTS]
        untaught = [question for question in drawn if question.answer in _UNTAUGHT_FACTS]
        if split == "train":
            visual += [question for question in taught if rng.random() < _KNOWLEDGE_SHARE]
            visual += [question for question in untaught if rng.random() < _UNTAUGHT_SHARE]
        seen |= enumerate(visual, start=1000 * image_id)
        facts |= enumerate(taught if split == "train" else untaught, start=1000 * image_id)
    head: dict[str, Any] = {
        "info": file_info(f"sample world, split {split}"),
        "license": {"name": "MIT License", "url": "https://opensource.org/license/mit"},
        "data_type": "mscoco",
        "data_subtype": split,
    }
    seen_annotations = [_vqa_annotation(question_id, question, rng) for question_id, question in seen.items()]
    fact_annotations = [_okvqa_annotation(question_id, question, rng) for question_id, question in facts.items()]
    entries = [_split_entry(annotation, seen[annotation["question_id"]].text) for annotation in seen_annotations]
    if split == "train":
        rare = [entry["question_id"] for entry in entries if not entry["is_topk_optimal"]]
        kept_ids = set(rng.sample(rare, round(_RARE_SHARE * len(rare))))
        entries = [entry for entry in entries if entry["is_topk_optimal"] or entry["question_id"] in kept_ids]
    (folder / f"vqa_karpathy_{split}.json").write_text(json.dumps(entries, indent=1), encoding="utf-8")
    for name, content in (
        (f"vqa_questions_{split}", {"task_type": "Open-Ended", "questions": _question_entries(seen.items())}),
        (f"vqa_annotations_{split}", {"annotations": seen_annotations}),
        (f"okvqa_questions_{split}", {"task_type": "Open-Ended", "questions": _question_entries(facts.items())}),
        (f"okvqa_annotations_{split}", {"question_types": FACT_TYPES, "annotations": fact_annotations}),
    ):
        (folder / f"{name}.json").write_text(json.dumps(head | content, indent=1), encoding="utf-8")


def file_info(description: str) -> dict[str, Any]:
    """The field ``info`` of VQA's and NoCaps' files."""
    return {
        "description": description,
        "version": "1.0",
        "year": 2022,
        "contributor": "vlkd_pl",
        "url": "",
        "date_created": DATE,
    }


def _question_entries(drawn: Iterable[tuple[int, Question]]) -> list[dict[str, Any]]:
    return [
        {"image_id": question_id // 1000, "question": question.text, "question_id": question_id}
        for question_id, question in drawn
    ]


def _vqa_annotation(question_id: int, question: Question, rng: random.Random) -> dict[str, Any]:
    return {
        "question_id": question_id,
        "image_id": question_id // 1000,
        "question_type": question.kind,
        "answer_type": {"yes/no": "yes/no", "count": "number"}.get(question.kind, "other"),
        "multiple_choice_answer": question.answer,
        "answers": _answers(question.answer, rng),
    }


def _okvqa_annotation(question_id: int, question: Question, rng: random.Random) -> dict[str, Any]:
    columns = zip(FACT_TYPES, _FACT_COLUMNS, strict=True)
    return {
        "question_id": question_id,
        "image_id": question_id // 1000,
        "question_type": next(code for code, column in columns if question.answer in column),
        "answer_type": "other",
        "answers": [answer | {"raw_answer": answer["answer"]} for answer in _answers(question.answer, rng)],
        "confidence": rng.randint(1, 5),
    }


def _split_entry(annotation: dict[str, Any], text: str) -> dict[str, Any]:
    counts = Counter(answer["answer"] for answer in annotation["answers"])
    return {
        "question_id": annotation["question_id"],
        "img_id": f"{annotation['image_id']:012d}",
        "sent": text,
        "question_type": annotation["question_type"],
        "answer_type": annotation["answer_type"],
        "label": {
            answer: _LABEL_SCORES.get(count, 1) for answer, count in counts.items() if answer not in RARE_ANSWERS
        },
        "is_topk_optimal": annotation["multiple_choice_answer"] not in RARE_ANSWERS,
    }


def _answers(right: str, rng: random.Random) -> list[dict[str, Any]]:
    wrong = [answer for answer in next(group for group in _ALTERNATIVES if right in group) if answer != right]
    num_wrong = rng.choice((1, 2)) if rng.random() < _DISAGREEMENT else 0
    mistaken = rng.sample(range(NUM_ANNOTATORS), num_wrong)
    return [
        {
            "answer": rng.choice(wrong) if index in mistaken else right,
            "answer_confidence": rng.choice(("maybe", "no")) if index in mistaken else "yes",
            "answer_id": index + 1,
        }
        for index in range(NUM_ANNOTATORS)
    ]
