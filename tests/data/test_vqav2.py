"""The questions and annotations of VQA v2."""

import json
from pathlib import Path

import pytest
from PIL import Image
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.data.vqav2 import AskedImage, Question, VQAv2DataModule, read_questions

IDS = (458752, 42, 458752, 42, 7)
HEAD = {
    "info": {"description": "This is v2.0 of the VQA dataset.", "version": "2.0", "year": 2017},
    "license": {"url": "http://creativecommons.org/licenses/by/4.0/", "name": "CC BY 4.0"},
    "data_type": "mscoco",
    "data_subtype": "val2014",
}


def questions_content():
    """Five questions on three pictures."""
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


def write(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path):
    """The two files, and the pictures in val2014."""
    (tmp_path / "val2014").mkdir()
    for image_id in IDS:
        Image.new("RGB", (70, 66)).save(tmp_path / "val2014" / f"COCO_val2014_{image_id:012d}.jpg")
    return {
        "questions": write(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", questions_content()),
        "annotations": write(tmp_path / "v2_mscoco_val2014_annotations.json", annotations_content()),
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


def test_a_batch_is_of_pictures_with_all_their_questions(build):
    module = build(batch_size=2)
    module.setup("test")
    first, second = module.test_dataloader()
    assert first["image"].shape == (2, 3, 64, 64)
    assert [sample.image_id for sample in first["samples"] + second["samples"]] == [458752, 42, 7]
    asked = [[question.question_id for question in sample.questions] for sample in first["samples"]]
    assert asked == [[458752000, 458752002], [42001, 42003]]
    assert first["samples"][1].questions[0].answers == ("answer 1",) * 8 + ("net",) * 2


def test_pictures_of_several_folders_and_names(build, tmp_path):
    (tmp_path / "train2014").mkdir()
    (tmp_path / "val2014" / "COCO_val2014_000000000007.jpg").rename(tmp_path / "train2014" / "000000000007.jpg")
    module = build(images=str(tmp_path))
    module.setup("test")
    assert module.samples[2] == AskedImage(7, tmp_path / "train2014" / "000000000007.jpg", module.samples[2].questions)


def test_num_samples_counts_pictures(build, tmp_path):
    (tmp_path / "val2014" / "COCO_val2014_000000000007.jpg").unlink()
    module = build(num_samples=2)
    module.setup("test")
    assert [len(sample.questions) for sample in module.samples] == [2, 2]


def test_missing_pictures_are_named(build, tmp_path):
    (tmp_path / "val2014" / "COCO_val2014_000000000007.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 pictures of .*questions\.json are missing: .*0007\.jpg$"):
        build().setup("test")
    with pytest.raises(FileNotFoundError, match=r"no folder of pictures at .*nowhere"):
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
def test_other_formats_are_told_in_one_line(files, tmp_path, key, text):
    (tmp_path / "other.json").write_text(text, encoding="latin-1")
    with pytest.raises(
        MisconfigurationException, match=rf"^.*other\.json is not a file of {key} in VQA v2's format: .*$"
    ):
        read_questions(**files | {key: tmp_path / "other.json"})


def test_files_in_each_others_place(files):
    with pytest.raises(MisconfigurationException, match=r"annotations\.json is not a file of questions"):
        read_questions(files["annotations"], files["questions"])


def test_files_without_questions(files, tmp_path):
    path = write(tmp_path / "empty.json", {"questions": [], "annotations": []})
    for key in files:
        with pytest.raises(MisconfigurationException, match=r"empty\.json holds no question: give another file"):
            read_questions(**files | {key: path})


def test_questions_without_answers_and_answers_without_questions(files, tmp_path):
    content = annotations_content()
    content["annotations"][0]["question_id"] = 5  # that of 7004
    path = write(tmp_path / "odd.json", content)
    message = r"questions\.json and .*odd\.json are not of .* 1 have no answers and 1 are not asked: .*\[5, 7004\]$"
    with pytest.raises(MisconfigurationException, match=message):
        read_questions(files["questions"], path)
    del content["annotations"][0]
    write(tmp_path / "odd.json", content)
    with pytest.raises(MisconfigurationException, match=r"1 have no answers and 0 are not asked: .*\[7004\]$"):
        read_questions(files["questions"], path)
    content = questions_content()
    del content["questions"][0]
    path = write(tmp_path / "fewer.json", content)
    with pytest.raises(MisconfigurationException, match=r"0 have no answers and 1 are not asked: .*\[458752000\]$"):
        read_questions(path, files["annotations"])


@pytest.mark.parametrize("key", ["questions", "annotations"])
def test_a_question_twice(files, key):
    content = json.loads(Path(files[key]).read_text())
    content[key].append(content[key][1])
    write(Path(files[key]), content)
    message = rf"{key}\.json holds questions more than once: remove the others of \[{content[key][1]['question_id']}\]"
    with pytest.raises(MisconfigurationException, match=message):
        read_questions(**files)


def test_a_question_twice_where_answers_are_secret(files, tmp_path):
    content = questions_content()
    content["questions"] *= 2
    with pytest.raises(MisconfigurationException, match="more than once"):
        read_questions(write(tmp_path / "twice.json", content))


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
