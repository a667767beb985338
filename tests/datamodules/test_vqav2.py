"""The questions and annotations of VQA v2."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from file_contents import write_json
from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.data.questions import target_answer
from vlkd_pl.data.vqa_files import AskedImage, Question, QuestionFiles, read_questions, read_split, uniform_subset
from vlkd_pl.datamodules.vqav2 import VQAv2DataModule

IDS = (458752, 42, 458752, 42, 7)
HEAD = {
    "info": {"description": "This is v2.0 of the VQA dataset.", "version": "2.0", "year": 2017},
    "license": {"url": "http://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"},
    "data_type": "mscoco",
    "data_subtype": "val2014",
}


def questions_content():
    """Five questions on three images."""
    return {
        "task_type": "Open-Ended",
        "questions": [
            {"image_id": image_id, "question": f"What is number {index}?", "question_id": 1000 * image_id + index}
            for index, image_id in enumerate(IDS)
        ],
    } | HEAD


def annotations_content():
    """Ten answers to each of them, in another order."""
    return {
        "annotations": [
            {
                "question_type": "what is",
                "multiple_choice_answer": f"answer {index}",
                "answers": [
                    {
                        "answer": f"answer {index}" if number < 9 else "net",
                        "answer_confidence": "yes",
                        "answer_id": number,
                    }
                    for number in range(1, 11)
                ],
                "image_id": image_id,
                "answer_type": "other",
                "question_id": 1000 * image_id + index,
            }
            for index, image_id in reversed(list(enumerate(IDS)))
        ]
    } | HEAD


@pytest.fixture
def files(tmp_path):
    """The two files, and the images in val2014."""
    (tmp_path / "val2014").mkdir()
    for image_id in IDS:
        Image.new("RGB", (70, 66)).save(tmp_path / "val2014" / f"COCO_val2014_{image_id:012d}.jpg")
    return {
        "questions": write_json(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", questions_content()),
        "annotations": write_json(tmp_path / "v2_mscoco_val2014_annotations.json", annotations_content()),
    }


@pytest.fixture
def build(files, tmp_path, clip_folder):
    def build_module(**options):
        settings = {"images": str(tmp_path / "val2014"), "clip": str(clip_folder), "num_workers": 0}
        return VQAv2DataModule(**files | settings | options)

    return build_module


def test_questions_with_their_answers(files):
    read = read_questions(**files)
    assert [question.question_id for question in read] == [458752000, 42001, 458752002, 42003, 7004]
    assert read[1] == Question(42001, 42, "What is number 1?", ("answer 1",) * 8 + ("net",) * 2, "other", "what is")


def test_questions_whose_answers_are_secret(files):
    read = read_questions(files["questions"])
    assert read[4] == Question(7004, 7, "What is number 4?")
    assert read[4].answers == ()


def test_a_batch_is_of_images_with_all_their_questions(build):
    module = build(batch_size=2)
    module.setup("test")
    first, second = module.test_dataloader()
    assert first["image"].shape == (2, 3, 64, 64)
    assert [sample.image_id for sample in first["samples"] + second["samples"]] == [458752, 42, 7]
    question_ids = [[question.question_id for question in sample.questions] for sample in first["samples"]]
    assert question_ids == [[458752000, 458752002], [42001, 42003]]
    assert first["samples"][1].questions[0].answers == ("answer 1",) * 8 + ("net",) * 2


def test_images_of_several_folders_and_names(build, tmp_path):
    (tmp_path / "train2014").mkdir()
    (tmp_path / "val2014" / "COCO_val2014_000000000007.jpg").rename(tmp_path / "train2014" / "000000000007.jpg")
    module = build(images=str(tmp_path))
    module.setup("test")
    assert module.samples[2] == AskedImage(7, tmp_path / "train2014" / "000000000007.jpg", module.samples[2].questions)


def test_num_samples_counts_images(build, tmp_path):
    (tmp_path / "val2014" / "COCO_val2014_000000000007.jpg").unlink()
    module = build(num_samples=2)
    module.setup("test")
    assert [len(sample.questions) for sample in module.samples] == [2, 2]


def test_missing_images_are_named(build, tmp_path):
    (tmp_path / "val2014" / "COCO_val2014_000000000007.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images of .*questions\.json are missing: .*0007\.jpg$"):
        build().setup("test")
    with pytest.raises(FileNotFoundError, match=r"no folder of images at .*nowhere"):
        build(images=str(tmp_path / "nowhere")).setup("test")


@pytest.mark.parametrize("key", ["questions", "annotations"])
def test_missing_files_are_named(build, tmp_path, key):
    with pytest.raises(FileNotFoundError, match=rf"no file at .*nowhere\.json: give one with the {key} in VQA v2's"):
        build(**{key: str(tmp_path / "nowhere.json")}).setup("test")


@pytest.mark.parametrize("key", ["questions", "annotations"])
@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"questions": [1], "annotations": [1]}',
        '{"questions": [{}], "annotations": [{}]}',
        '{"questions": [{"question_id": "a"}], "annotations": [{"question_id": "a"}]}',
        '{"questions": [{"question_id": 1, "image_id": "a", "question": "b"}], "annotations": [{"question_id": 1}]}',
        '{"questions": 5, "annotations": [{"question_id": 1, "answers": [{"answer": 5}]}]}',
        b"\xff\xfe".decode("latin-1"),
    ],
)
def test_other_formats_are_reported_in_one_line(files, tmp_path, key, text):
    (tmp_path / "other.json").write_text(text, encoding="latin-1")
    with pytest.raises(
        MisconfigurationException, match=rf"^.*other\.json is not a file of {key} in VQA v2's format: .*$"
    ):
        read_questions(**files | {key: tmp_path / "other.json"})


def test_files_in_each_others_place(files):
    with pytest.raises(MisconfigurationException, match=r"annotations\.json is not a file of questions"):
        read_questions(files["annotations"], files["questions"])


def test_files_without_questions(files, tmp_path):
    path = write_json(tmp_path / "empty.json", {"questions": [], "annotations": []})
    for key in files:
        with pytest.raises(MisconfigurationException, match=r"empty\.json holds no question: give another file"):
            read_questions(**files | {key: path})


def test_questions_without_answers_and_answers_without_questions(files, tmp_path):
    content = annotations_content()
    content["annotations"][0]["question_id"] = 5  # that of 7004
    path = write_json(tmp_path / "odd.json", content)
    message = r"questions\.json and .*odd\.json are not of .* 1 have no answers and 1 are not asked: .*\[5, 7004\]$"
    with pytest.raises(MisconfigurationException, match=message):
        read_questions(files["questions"], path)
    del content["annotations"][0]
    write_json(tmp_path / "odd.json", content)
    with pytest.raises(MisconfigurationException, match=r"1 have no answers and 0 are not asked: .*\[7004\]$"):
        read_questions(files["questions"], path)
    content = questions_content()
    del content["questions"][0]
    path = write_json(tmp_path / "fewer.json", content)
    with pytest.raises(MisconfigurationException, match=r"0 have no answers and 1 are not asked: .*\[458752000\]$"):
        read_questions(path, files["annotations"])


@pytest.mark.parametrize("key", ["questions", "annotations"])
def test_a_question_twice(files, key):
    content = json.loads(Path(files[key]).read_text())
    content[key].append(content[key][1])
    write_json(Path(files[key]), content)
    message = rf"{key}\.json holds questions more than once: remove the others of \[{content[key][1]['question_id']}\]"
    with pytest.raises(MisconfigurationException, match=message):
        read_questions(**files)


def test_a_question_twice_where_answers_are_secret(files, tmp_path):
    content = questions_content()
    content["questions"] *= 2
    with pytest.raises(MisconfigurationException, match="more than once"):
        read_questions(write_json(tmp_path / "twice.json", content))


def test_setup_twice_reads_once(build, files):
    module = build()
    module.setup("validate")
    for path in files.values():
        Path(path).unlink()
    module.setup("test")
    assert len(module.samples) == 3


def test_answers_given_often_are_kept_once(files):
    read = read_questions(**files)
    first, *others = [answer for question in read for answer in question.answers if answer == "net"]
    assert len(others) == 9
    assert all(other is first for other in others)


# Several files, and VL-T5's split of them


@pytest.fixture
def parts(files, tmp_path):
    """The questions and the annotations in two files each."""
    parts = {}
    for key, path in files.items():
        content = json.loads(Path(path).read_text())
        parts[key] = [
            write_json(tmp_path / f"{number}_{key}.json", content | {key: content[key][number::2]}) for number in (0, 1)
        ]
    return parts


def split_entry(question_id, **more):
    """An entry of VL-T5's files; an answer may be called \"answer\"."""
    return {
        "answer_type": "other",
        "img_id": f"COCO_val2014_{question_id // 1000:012d}",
        "label": {"answer": 1, "net": 0.3},
        "question_id": question_id,
        "question_type": "what is",
        "sent": "What?",
    } | more


def test_files_of_one_set_are_joined(files, parts):
    assert sorted(read_questions(**parts)) == sorted(read_questions(**files))
    message = (
        r"0_questions\.json and .*1_questions\.json and .*0_annotations\.json are not .* 2 have no answers and 0 are"
    )
    with pytest.raises(MisconfigurationException, match=message):
        read_questions(parts["questions"], parts["annotations"][0])


def test_a_question_in_two_files(parts):
    with pytest.raises(MisconfigurationException, match=r"json and .*json holds questions more than once"):
        read_questions(parts["questions"][:1] * 2)


def test_a_split_takes_its_questions_with_their_domains(files, tmp_path):
    entries = [split_entry(7004, is_topk_optimal=False), split_entry(458752000, is_topk_optimal=True)]
    read = read_questions(**files, split=write_json(tmp_path / "karpathy_test.json", entries))
    assert [(question.question_id, question.domain) for question in read] == [
        (458752000, "in-domain"),
        (7004, "out-of-domain"),
    ]
    assert read[1].answers == ("answer 4",) * 8 + ("net",) * 2


def test_a_split_may_tell_no_domain(files, tmp_path):
    read = read_questions(**files, split=write_json(tmp_path / "karpathy_train.json", [split_entry(7004)]))
    assert [(question.question_id, question.domain) for question in read] == [(7004, "")]


def test_a_split_of_other_questions(files, tmp_path):
    path = write_json(tmp_path / "split.json", [split_entry(7004), split_entry(5001), split_entry(5000)])
    message = (
        r"2 of 3 questions of .*split\.json are not in .*questions\.json: .*train2014 and val2014; .*\[5000, 5001\]$"
    )
    with pytest.raises(MisconfigurationException, match=message):
        read_questions(**files, split=path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{"img_id": "COCO_val2014_000000000007"}], r"split\.json is not a file of questions in VL-T5's format"),
        ({"questions": []}, "VL-T5's format"),
        ([split_entry(1, is_topk_optimal="maybe")], "VL-T5's format"),
        ([], "holds no question"),
        ([split_entry(1), split_entry(1)], r"more than once: remove the others of \[1\]"),
        (
            [split_entry(1, is_topk_optimal=True), split_entry(2), split_entry(3)],
            "has is_topk_optimal for 1 questions but not for 2",
        ),
    ],
)
def test_splits_that_are_none(tmp_path, content, message):
    with pytest.raises(MisconfigurationException, match=message):
        read_split(write_json(tmp_path / "split.json", content))


# Training


def test_targets_are_drawn_by_their_share():
    question = Question(12, 1, "what?", ("red",) * 6 + ("blue",) * 3 + ("green",))
    drawn = Counter(target_answer(question, "drawn", epoch) for epoch in range(2000))
    assert {answer: count / 2000 for answer, count in drawn.items()} == pytest.approx(
        {"red": 0.6, "blue": 0.3, "green": 0.1}, abs=0.03
    )
    of_questions = Counter(target_answer(question._replace(question_id=number), "drawn", 0) for number in range(2000))
    assert of_questions["red"] / 2000 == pytest.approx(0.6, abs=0.03)


def test_targets_are_decided_by_seed_epoch_and_question():
    questions = [Question(number, 1, "what?", tuple("abcdefghij")) for number in range(30)]

    def drawn(questions, *how):
        return {question.question_id: target_answer(question, "drawn", *how) for question in questions}

    assert drawn(questions[::-1], 3, 1) == drawn(questions, 3, 1)
    assert drawn(questions, 3, 1) != drawn(questions, 4, 1)
    assert drawn(questions, 3, 1) != drawn(questions, 3, 2)


def test_the_most_common_target():
    question = Question(1, 1, "what?", ("b", "a", "c", "a", "c"))
    assert {target_answer(question, "most_common", epoch) for epoch in range(9)} == {"a"}


def test_a_subset_is_of_its_size_and_depends_on_numbers_alone():
    questions = [Question(number, number // 3, f"{number}?") for number in range(1000, 3037)]
    one_percent = uniform_subset(questions, 0.01)
    assert len(one_percent) == 20
    assert one_percent == sorted(one_percent)
    shuffled = random.Random(0).sample(questions, len(questions))
    assert sorted(uniform_subset(shuffled, 0.01)) == one_percent
    assert set(one_percent) < set(uniform_subset(questions, 0.1))
    assert uniform_subset(questions, 0.01, seed=1) != one_percent
    assert uniform_subset(questions, 1.0) == questions
    assert len(uniform_subset(questions[:5], 0.01)) == 1
    # the same on every machine and version
    assert [question.question_id for question in one_percent[:3]] == [1044, 1065, 1312]


@pytest.fixture
def train(files, tmp_path):
    return QuestionFiles(images=str(tmp_path / "val2014"), **files)


def test_a_training_batch_has_each_image_once(build, train):
    module = build(train=train, train_batch_size=5, target="most_common")
    module.setup("fit")
    (batch,) = module.train_dataloader()
    assert batch["image"].shape == (3, 3, 64, 64)
    assert len(batch["questions"]) == len(batch["labels"]) == len(batch["image_index"]) == 5
    images = {}
    for row, question, answer in zip(batch["image_index"].tolist(), batch["questions"], batch["labels"], strict=True):
        number = question.removeprefix("What is number ").removesuffix("?")
        assert answer == f"answer {number}"
        images.setdefault(row, set()).add(int(number))
    assert sorted(map(sorted, images.values())) == [[0, 2], [1, 3], [4]]


def test_the_rows_are_those_of_the_questions_images(build, train, tmp_path):
    Image.new("RGB", (70, 66), "red").save(tmp_path / "val2014" / "COCO_val2014_000000000007.jpg")
    module = build(train=train, train_batch_size=5)
    module.setup("fit")
    (batch,) = module.train_dataloader()
    red = module.images.transform(Image.open(tmp_path / "val2014" / "COCO_val2014_000000000007.jpg"))
    for row, question in zip(batch["image_index"], batch["questions"], strict=True):
        assert torch.equal(batch["image"][row], red) == (question == "What is number 4?")


def test_epochs_differ_and_runs_do_not(build, train):
    def answers(num_done):
        module = build(train=train, train_batch_size=5)
        module.setup("fit")
        module.load_state_dict({"num_trained_batches": num_done})
        (batch,) = module.train_dataloader()
        return list(zip(batch["questions"], batch["labels"], strict=True))

    assert answers(0) == answers(0)
    assert answers(0) != answers(1)
    assert sorted(question for question, _ in answers(0)) == sorted(question for question, _ in answers(1))


def test_workers_do_not_change_batches(build, train):
    batches = []
    for num_workers in (0, 2):
        module = build(train=train, train_batch_size=2, num_workers=num_workers)
        module.setup("fit")
        batches.append([(batch["questions"], batch["labels"]) for batch in module.train_dataloader()])
    assert batches[0] == batches[1]
    assert len(batches[0]) == 2


def test_validation_has_questions_of_its_own(build, train, files, tmp_path):
    split = write_json(tmp_path / "karpathy_val.json", [split_entry(7004)])
    module = build(train=train, val=QuestionFiles(images=str(tmp_path), **files, split=split))
    module.setup("fit")
    assert [sample.image_id for sample in module.samples] == [7]
    module.setup("test")
    assert [sample.image_id for sample in module.samples] == [458752, 42, 7]


def test_training_images_that_are_missing_or_damaged(build, train, tmp_path):
    path = tmp_path / "val2014" / "COCO_val2014_000000000007.jpg"
    path.write_bytes(b"no image")
    with pytest.raises(
        MisconfigurationException, match=r"1 of 3 images cannot be read, .*0007\.jpg: it is not a readable"
    ):
        build(train=train).setup("fit")
    module = build(train=train, train_batch_size=5, num_samples=2)  # of the others
    module.setup("fit")
    (batch,) = module.train_dataloader()
    assert len(batch["labels"]) == len(batch["image_index"]) == 4
    assert "0007.jpg: it is not a readable image" in batch["unreadable"][0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images of .*questions\.json are missing: .*0007\.jpg$"):
        build(train=train, num_samples=2).setup("fit")


@pytest.mark.parametrize("share", [0, 1.5, -0.1])
def test_a_share_that_is_none(build, share):
    with pytest.raises(
        MisconfigurationException, match=rf"data\.train_share is {share}: give more than 0 and at most 1"
    ):
        build(train_share=share)


def test_nothing_to_train_on(build, files, tmp_path):
    with pytest.raises(MisconfigurationException, match=r"nothing to train on: give data\.train$"):
        build().setup("fit")
    secret = QuestionFiles(files["questions"], str(tmp_path))
    with pytest.raises(MisconfigurationException, match=r"nothing to train on: give data\.train\.annotations$"):
        build(train=secret).setup("fit")


def test_a_question_without_answers_cannot_be_trained_on(build, files, tmp_path):
    content = json.loads(Path(files["annotations"]).read_text())
    content["annotations"][0]["answers"] = []
    Path(files["annotations"]).write_text(json.dumps(content))
    train = QuestionFiles(images=str(tmp_path), **files)
    with pytest.raises(MisconfigurationException, match=r"holds no answer to 1 of \d+ questions to train on"):
        build(train=train).setup("fit")


def test_ids_may_be_texts_in_one_file(files):
    expected = read_questions(**files)
    content = json.loads(Path(files["annotations"]).read_text())
    for annotation in content["annotations"]:
        annotation["question_id"] = str(annotation["question_id"])
    Path(files["annotations"]).write_text(json.dumps(content))
    assert read_questions(**files) == expected
