"""The sample world's question files."""

import json
import random
from collections import Counter

import pytest

from vlkd_pl.data.vqa_files import read_questions
from vlkd_pl.sample.language import FACTS, questions
from vlkd_pl.sample.scenes import OBJECTS, distinct_scenes
from vlkd_pl.sample.vqa import FACT_TYPES, RARE_ANSWERS, TAUGHT_OBJECTS, write_questions

FIRST_ID = 7
SCENES = distinct_scenes(random.Random(0), "test", 150)
TAUGHT_FACTS = {fact for name in TAUGHT_OBJECTS for fact in FACTS[name]}
UNTAUGHT_FACTS = {fact for facts in FACTS.values() for fact in facts} - TAUGHT_FACTS


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    write_questions(folder, "test", SCENES, FIRST_ID, random.Random(0))
    return {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}


def right(annotation):
    """The most frequent answer, and the number of annotators who gave it."""
    return Counter(answer["answer"] for answer in annotation["answers"]).most_common(1)[0]


def test_vqa_files_are_in_the_benchmark_layout(files):
    question_file, answered = files["vqa_questions_test"], files["vqa_annotations_test"]
    head = {"info", "license", "data_type", "data_subtype"}
    assert question_file.keys() == head | {"task_type", "questions"}
    assert answered.keys() == head | {"annotations"}
    assert all(question.keys() == {"image_id", "question", "question_id"} for question in question_file["questions"])
    for annotation in answered["annotations"]:
        assert annotation.keys() == {
            "question_id",
            "image_id",
            "question_type",
            "answer_type",
            "multiple_choice_answer",
            "answers",
        }
        assert all(answer.keys() == {"answer", "answer_confidence", "answer_id"} for answer in annotation["answers"])


def test_okvqa_files_are_in_the_benchmark_layout(files):
    question_file, answered = files["okvqa_questions_test"], files["okvqa_annotations_test"]
    head = {"info", "license", "data_type", "data_subtype"}
    assert question_file.keys() == head | {"task_type", "questions"}
    assert answered.keys() == head | {"question_types", "annotations"}
    assert answered["question_types"] == FACT_TYPES
    assert all(question.keys() == {"image_id", "question", "question_id"} for question in question_file["questions"])
    for annotation in answered["annotations"]:
        assert annotation.keys() == {
            "question_id",
            "image_id",
            "question_type",
            "answer_type",
            "answers",
            "confidence",
        }
        assert annotation["answer_type"] == "other"
        assert 1 <= annotation["confidence"] <= 5
        for answer in annotation["answers"]:
            assert answer.keys() == {"answer", "raw_answer", "answer_confidence", "answer_id"}
            assert answer["answer"] == answer["raw_answer"]


@pytest.mark.parametrize("name", ["vqa", "okvqa"])
def test_every_question_has_an_id_of_its_own_and_ten_answers(files, name):
    question_file, annotations = (
        files[f"{name}_questions_test"]["questions"],
        files[f"{name}_annotations_test"]["annotations"],
    )
    ids = [question["question_id"] for question in question_file]
    assert len(set(ids)) == len(ids)
    assert ids == [annotation["question_id"] for annotation in annotations]
    for item in (*question_file, *annotations):
        assert item["image_id"] == item["question_id"] // 1000
        assert FIRST_ID <= item["image_id"] < FIRST_ID + len(SCENES)
    for annotation in annotations:
        assert [answer["answer_id"] for answer in annotation["answers"]] == list(range(1, 11))
        assert {answer["answer_confidence"] for answer in annotation["answers"]} <= {"yes", "maybe", "no"}


@pytest.mark.parametrize("name", ["vqa", "okvqa"])
def test_at_least_eight_give_the_right_answer_and_a_quarter_of_the_questions_has_others(files, name):
    rng = random.Random(0)
    trivial = ("how many things are there?", "when is it?")  # three and night, whatever the image
    drawn = [[q for q in questions(scene, rng) if q.text not in trivial] for scene in SCENES]
    targets = [q.answer for every in drawn for q in every if (q.kind == "fact") == (name == "okvqa")]
    targets = [answer for answer in targets if answer not in TAUGHT_FACTS]
    annotations = files[f"{name}_annotations_test"]["annotations"]
    votes = [right(annotation) for annotation in annotations]
    assert [answer for answer, _ in votes] == targets
    assert {number for _, number in votes} == {8, 9, 10}
    for annotation, answer in zip(annotations, targets, strict=True):
        assert all((item["answer"] == answer) == (item["answer_confidence"] == "yes") for item in annotation["answers"])
    assert sum(number < 10 for _, number in votes) / len(votes) == pytest.approx(0.25, abs=0.07)
    if name == "vqa":
        assert [annotation["multiple_choice_answer"] for annotation in annotations] == targets


def test_other_answers_are_of_the_same_kind(files):
    trivial = {
        annotation["multiple_choice_answer"]: set() for annotation in files["vqa_annotations_test"]["annotations"]
    }
    for annotation in files["vqa_annotations_test"]["annotations"]:
        trivial[annotation["multiple_choice_answer"]] |= {answer["answer"] for answer in annotation["answers"]}
    assert trivial["yes"] == trivial["no"] == {"yes", "no"}
    assert trivial["small"] | trivial["big"] <= {"small", "big"}
    assert trivial["one"] | trivial["two"] | trivial["three"] <= {"one", "two", "three"}
    assert trivial["left"] | trivial["right"] <= {"left", "right"}
    assert trivial["above"] | trivial["below"] <= {"above", "below"}
    assert all(trivial.get(name, {name}) <= set(OBJECTS) for name in OBJECTS)
    columns = [set(column) for column in zip(*FACTS.values(), strict=True)]
    for annotation in files["okvqa_annotations_test"]["annotations"]:
        column = columns[list(FACT_TYPES).index(annotation["question_type"])]
        assert {answer["answer"] for answer in annotation["answers"]} <= column


def test_all_kinds_are_asked(files):
    annotations = files["vqa_annotations_test"]["annotations"]
    answer_types = {annotation["question_type"]: annotation["answer_type"] for annotation in annotations}
    other = dict.fromkeys(("color", "object", "size", "relation", "place"), "other")
    assert answer_types == other | {"count": "number", "yes/no": "yes/no"}
    facts = Counter(annotation["question_type"] for annotation in files["okvqa_annotations_test"]["annotations"])
    assert facts.keys() == FACT_TYPES.keys()
    assert len(set(facts.values())) == 1


def test_yes_and_no_are_even_in_every_image(files):
    yes = Counter()
    for annotation in files["vqa_annotations_test"]["annotations"]:
        if annotation["answer_type"] == "yes/no":
            yes[annotation["image_id"]] += {"yes": 1, "no": -1}[annotation["multiple_choice_answer"]]
    assert set(yes.values()) == {0}
    assert len(yes) == len(SCENES)


def test_fact_types_say_what_the_questions_ask(files):
    question_file = {q["question_id"]: q["question"] for q in files["okvqa_questions_test"]["questions"]}
    starts = {"who likes it": "who likes", "what it is made of": "what is", "where it is kept": "where is"}
    for annotation in files["okvqa_annotations_test"]["annotations"]:
        assert question_file[annotation["question_id"]].startswith(starts[FACT_TYPES[annotation["question_type"]]])


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_split_by_rare_answers(tmp_path, split):
    write_questions(tmp_path, split, SCENES, FIRST_ID, random.Random(0))
    paths = [tmp_path / f"vqa_{name}_{split}.json" for name in ("questions", "annotations", "karpathy")]
    every, divided = read_questions(*paths[:2]), read_questions(*paths)
    rare = {item.question_id for item in every if Counter(item.answers).most_common(1)[0][0] in RARE_ANSWERS}
    assert 0.03 * len(every) < len(rare) < 0.3 * len(every)
    out_of_domain = {item.question_id for item in divided if item.domain == "out-of-domain"}
    assert out_of_domain <= rare
    assert len(out_of_domain) == (round(0.02 * len(rare)) if split == "train" else len(rare)) > 0
    in_domain = {item.question_id for item in divided if item.domain == "in-domain"}
    assert in_domain == {item.question_id for item in every} - rare


def test_the_split_has_the_scores_of_common_answers(files):
    annotations = {file["question_id"]: file for file in files["vqa_annotations_test"]["annotations"]}
    for entry in files["vqa_karpathy_test"]:
        counts = Counter(answer["answer"] for answer in annotations[entry["question_id"]]["answers"])
        expected = {answer: min(1, 0.3 * count) for answer, count in counts.items() if answer not in RARE_ANSWERS}
        assert entry["label"] == pytest.approx(expected)


@pytest.fixture(scope="module")
def training_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    write_questions(folder, "train", distinct_scenes(random.Random(1), "train", 400), FIRST_ID, random.Random(0))
    return {path.stem: json.loads(path.read_text()) for path in folder.iterdir()}


def answers_of(annotations):
    """All answers of all annotators."""
    return {answer["answer"] for annotation in annotations["annotations"] for answer in annotation["answers"]}


def test_half_of_the_objects_are_taught():
    assert len(TAUGHT_OBJECTS) == 6
    assert set(OBJECTS) > TAUGHT_OBJECTS


def test_training_questions_have_fewer_facts_of_the_objects_that_are_not_taught(files, training_files):
    annotations = training_files["vqa_annotations_train"]["annotations"]
    facts = [annotation for annotation in annotations if annotation["question_type"] == "fact"]
    assert 0.07 < len(facts) / len(annotations) < 0.11
    assert {annotation["answer_type"] for annotation in facts} == {"other"}
    correct = [annotation["multiple_choice_answer"] for annotation in facts]
    assert set(correct) >= TAUGHT_FACTS
    assert 0.2 < sum(answer in UNTAUGHT_FACTS for answer in correct) / len(correct) < 0.4
    taught = {
        "annotations": [annotation for annotation in facts if annotation["multiple_choice_answer"] in TAUGHT_FACTS]
    }
    assert answers_of(taught) == answers_of(training_files["okvqa_annotations_train"]) == TAUGHT_FACTS
    assert answers_of(files["okvqa_annotations_test"]) == UNTAUGHT_FACTS
    assert not (UNTAUGHT_FACTS | TAUGHT_FACTS) & answers_of(files["vqa_annotations_test"])


def test_the_training_file_of_the_split_asks_for_facts(training_files):
    labels = {answer for entry in training_files["vqa_karpathy_train"] for answer in entry["label"]}
    assert labels >= TAUGHT_FACTS
    assert {entry["is_topk_optimal"] for entry in training_files["vqa_karpathy_train"]} == {True, False}
