"""VQAModule through the command line: VQA v2's and OK-VQA's files, accuracies and submissions."""

import json

import pytest
from modules.evaluations import arguments, written

from vlkd_pl.cli import main
from vlkd_pl.commands.train import run
from vlkd_pl.data.vqav2 import read_questions
from vlkd_pl.metrics.vqa import answer_accuracy
from vlkd_pl.models.decoding import answer, caption


@pytest.fixture(scope="module")
def tested(world, model_folder, tmp_path_factory):
    """A finished test: its folder, and the command line object."""
    folder = tmp_path_factory.mktemp("vqa")
    return folder, run(arguments("zeroshot_vqav2", world, model_folder, folder))


def test_accuracy_is_the_official_one(tested, world):
    folder, _ = tested
    questions = read_questions(world.folder / "vqa_questions_test.json", world.folder / "vqa_annotations_test.json")
    answers = {each["question_id"]: each["answer"] for each in written(folder, "predictions.json")}
    assert sorted(answers) == sorted(question.question_id for question in questions)
    accuracies = {q.question_id: 100 * answer_accuracy(answers[q.question_id], q.answers) for q in questions}
    scores = written(folder, "scores.json")["scores"]
    assert scores["accuracy/overall"] == pytest.approx(sum(accuracies.values()) / len(accuracies), abs=0.006)
    for kind in ("yes/no", "number", "other"):
        part = [accuracies[q.question_id] for q in questions if q.answer_type == kind]
        assert scores[f"accuracy/answer: {kind}"] == pytest.approx(sum(part) / len(part), abs=0.006)
    assert "accuracy/question: color" in scores
    for each in written(folder, "scores_per_question.json"):
        assert each["accuracy"] == pytest.approx(accuracies[each["question_id"]], abs=0.006)


def test_every_question_gets_the_models_own_answer(tested):
    folder, done = tested
    model, samples = done.model.model, done.datamodule.samples
    batch = next(iter(done.datamodule.test_dataloader()))
    answers = {each["question_id"]: each["answer"] for each in written(folder, "predictions.json")}
    tokens = model.clip.encode_image(batch["image"])
    for row, sample in enumerate(samples[:2]):
        for question in sample.questions[:3]:
            ((alone,),) = answer(model, tokens[row : row + 1], [question.text], done.model.decoding)
            assert alone.text.lower() == answers[question.question_id]


def test_each_picture_is_encoded_once(world, model_folder, tmp_path, monkeypatch):
    from vlkd_pl.models.clip import FrozenCLIP

    counts, encode_image = [], FrozenCLIP.encode_image
    monkeypatch.setattr(
        FrozenCLIP, "encode_image", lambda self, image: counts.append(len(image)) or encode_image(self, image)
    )
    run(arguments("zeroshot_vqav2", world, model_folder, tmp_path, model__init_args__caption_first="true"))
    assert counts == [4, 2]


def test_the_control_asks_of_another_picture(tested, world):
    folder, done = tested
    module, batch = done.model, next(iter(done.datamodule.test_dataloader()))
    items = module.evaluate(batch)
    first = batch["samples"][0].questions[0]
    tokens = module.model.clip.encode_image(batch["image"])
    ((other,),) = answer(module.model, tokens[-1:], [first.text], module.decoding)
    assert items[0]["answer_to_another"] == other.text.lower()
    assert "accuracy_of_another_picture/overall" in written(folder, "scores.json")["scores"]
    module.evaluated.clear()


def test_caption_then_answer(world, model_folder, tmp_path):
    done = run(arguments("zeroshot_vqav2", world, model_folder, tmp_path, model__init_args__caption_first="true"))
    module, batch = done.model, next(iter(done.datamodule.test_dataloader()))
    tokens = module.model.clip.encode_image(batch["image"])
    own = caption(module.model, tokens, 3, module.caption_decoding)[0][0].text
    question = batch["samples"][0].questions[0]
    ((told,),) = answer(module.model, tokens[:1], [question.text], module.decoding, passages=[f"{own}."])
    answers = {each["question_id"]: each["answer"] for each in written(tmp_path, "predictions.json")}
    assert answers[question.question_id] == told.text.lower()


def test_candidates(world, model_folder, tmp_path, capsys):
    (tmp_path / "answers.txt").write_text("yes\nno\n\nred\nyes\n")
    options = {"model__init_args__candidates": tmp_path / "answers.txt"}
    done = run(arguments("zeroshot_vqav2", world, model_folder, tmp_path, **options))
    assert done.model.candidates == ["yes", "no", "red"]
    assert {each["answer"] for each in written(tmp_path, "predictions.json")} <= {"yes", "no", "red"}
    options = {"model__init_args__candidates": "nowhere.txt"}
    assert main(arguments("zeroshot_vqav2", world, model_folder, tmp_path, **options)) == 1
    assert "no candidate answers in nowhere.txt" in capsys.readouterr().err


def test_okvqa(world, model_folder, tmp_path):
    run(arguments("zeroshot_okvqa", world, model_folder, tmp_path))
    scores = written(tmp_path, "scores.json")["scores"]
    assert {"accuracy/overall", "accuracy/answer: other", "accuracy/question: who likes it"} <= scores.keys()


def test_without_annotations_there_is_a_submission(world, model_folder, tmp_path, capsys):
    run(arguments("zeroshot_vqav2", world, model_folder, tmp_path, data__init_args__annotations="null"))
    questions = json.loads((world.folder / "vqa_questions_test.json").read_text())["questions"]
    results = written(tmp_path, "predictions.json")
    assert sorted(each["question_id"] for each in results) == sorted(each["question_id"] for each in questions)
    assert all(set(each) == {"question_id", "answer"} for each in results)
    assert set(written(tmp_path, "scores.json")["scores"]) == {"wandered"}
    assert "the answers are not known" in capsys.readouterr().out


def test_free_reading_counts_what_wanders(world, model_folder, tmp_path):
    options = {"model__init_args__decoding__reading": "free", "data__init_args__num_samples": 1}
    run(arguments("zeroshot_vqav2", world, model_folder, tmp_path, **options))
    assert written(tmp_path, "scores.json")["scores"]["wandered"] == 1.0  # random weights reconstruct nothing
