"""VQAModule through the command line: VQA v2's and OK-VQA's files, training, accuracies and submissions."""

import csv
import json

import pytest
import torch
from evaluations import arguments, configs, written
from torch.nn.functional import cross_entropy

from vlkd_pl.cli import main
from vlkd_pl.commands.train import run
from vlkd_pl.data.vqa_files import read_questions
from vlkd_pl.metrics.vqa import answer_accuracy
from vlkd_pl.models.decoding import answer, caption
from vlkd_pl.modules.vqa import VQAModule, read_candidates


@pytest.fixture(scope="module")
def tested(world, model_folder, tmp_path_factory):
    """A finished test: its folder, and the command line object."""
    folder = tmp_path_factory.mktemp("vqa")
    return folder, run(arguments("zeroshot_vqav2", world, model_folder, folder))


def test_accuracy_equals_the_published_code(tested, world):
    folder, _ = tested
    questions = read_questions(world.folder / "vqa_questions_test.json", world.folder / "vqa_annotations_test.json")
    answers = {item["question_id"]: item["answer"] for item in written(folder, "predictions.json")}
    assert sorted(answers) == sorted(question.question_id for question in questions)
    accuracies = {q.question_id: 100 * answer_accuracy(answers[q.question_id], q.answers) for q in questions}
    scores = written(folder, "scores.json")["scores"]
    assert scores["accuracy/overall"] == pytest.approx(sum(accuracies.values()) / len(accuracies), abs=0.006)
    for kind in ("yes/no", "number", "other"):
        part = [accuracies[q.question_id] for q in questions if q.answer_type == kind]
        assert scores[f"accuracy/answer: {kind}"] == pytest.approx(sum(part) / len(part), abs=0.006)
    assert "accuracy/question: color" in scores
    units = {name: "fraction" if name == "off_prompt" else "percent" for name in scores}
    assert written(folder, "scores.json")["units"] == units
    for item in written(folder, "scores_per_question.json"):
        assert item["accuracy"] == pytest.approx(accuracies[item["question_id"]], abs=0.006)


def test_every_question_gets_the_models_own_answer(tested):
    folder, done = tested
    model, samples = done.model.model, done.datamodule.samples
    batch = next(iter(done.datamodule.test_dataloader()))
    answers = {item["question_id"]: item["answer"] for item in written(folder, "predictions.json")}
    tokens = model.clip.encode_image(batch["image"])
    for row, sample in enumerate(samples[:2]):
        for question in sample.questions[:3]:
            ((alone,),) = answer(model, tokens[row : row + 1], [question.text], done.model.decoding)
            assert alone.text.lower() == answers[question.question_id]


def test_each_image_is_encoded_once(world, model_folder, tmp_path, monkeypatch):
    from vlkd_pl.clip.frozen import FrozenCLIP

    counts, encode_image = [], FrozenCLIP.encode_image
    monkeypatch.setattr(
        FrozenCLIP, "encode_image", lambda self, image: counts.append(len(image)) or encode_image(self, image)
    )
    run(arguments("zeroshot_vqav2", world, model_folder, tmp_path, model__init_args__caption_first="true"))
    assert counts == [4, 2]


def test_the_control_asks_of_another_image(tested, world):
    folder, done = tested
    module, batch = done.model, next(iter(done.datamodule.test_dataloader()))
    results = module.evaluate(batch)
    first = batch["samples"][0].questions[0]
    tokens = module.model.clip.encode_image(batch["image"])
    ((other,),) = answer(module.model, tokens[-1:], [first.text], module.decoding)
    assert results[0].shuffled_image_answer == other.text.lower()
    assert "accuracy_shuffled_image/overall" in written(folder, "scores.json")["scores"]


def test_caption_then_answer(world, model_folder, tmp_path):
    done = run(arguments("zeroshot_vqav2", world, model_folder, tmp_path, model__init_args__caption_first="true"))
    module, batch = done.model, next(iter(done.datamodule.test_dataloader()))
    tokens = module.model.clip.encode_image(batch["image"])
    image_caption = caption(module.model, tokens, 3, module.caption_decoding)[0][0].text
    question = batch["samples"][0].questions[0]
    ((result,),) = answer(module.model, tokens[:1], [question.text], module.decoding, passages=[f"{image_caption}."])
    answers = {item["question_id"]: item["answer"] for item in written(tmp_path, "predictions.json")}
    assert answers[question.question_id] == result.text.lower()


def test_candidates(world, model_folder, tmp_path, capsys):
    (tmp_path / "answers.txt").write_text("yes\nno\n\nred\nyes\n")
    options = {"model__init_args__candidates": tmp_path / "answers.txt"}
    done = run(arguments("zeroshot_vqav2", world, model_folder, tmp_path, **options))
    assert done.model.candidates == ["yes", "no", "red"]
    assert {item["answer"] for item in written(tmp_path, "predictions.json")} <= {"yes", "no", "red"}
    options = {"model__init_args__candidates": "nowhere.txt"}
    assert main(arguments("zeroshot_vqav2", world, model_folder, tmp_path, **options)) == 1
    assert "no candidate answers in nowhere.txt" in capsys.readouterr().err
    (tmp_path / "answers.txt").write_bytes("\ufeffred\u2028fish\r\nblue\x0cboat\n".encode())
    assert read_candidates(tmp_path / "answers.txt") == ["red\u2028fish", "blue\x0cboat"]
    (tmp_path / "answers.txt").write_bytes(b"red\ncaf\xe9\n")
    options = {"model__init_args__candidates": tmp_path / "answers.txt"}
    assert main(arguments("zeroshot_vqav2", world, model_folder, tmp_path, **options)) == 1
    printed = capsys.readouterr().err
    assert printed.endswith("answers.txt is not UTF-8 at byte 7 (0xe9, invalid continuation byte): save it as UTF-8\n")
    assert printed.count("\n") == 1


def test_few_answers_are_warned_of(world, model_folder, tmp_path):
    content = json.loads((world.folder / "vqa_annotations_test.json").read_text())
    for annotation in content["annotations"]:
        annotation["answers"] = annotation["answers"][:3]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    options = {"data__init_args__annotations": tmp_path / "annotations.json"}
    with pytest.warns(
        UserWarning, match=r"(\d+) of \1 questions have fewer than the 10 answers .*; \1 have fewer than 4"
    ):
        run(arguments("zeroshot_vqav2", world, model_folder, tmp_path, **options))
    assert "score at most 66.7" in written(tmp_path, "scores.json")["notes"][0]


def test_okvqa(world, model_folder, tmp_path):
    run(arguments("zeroshot_okvqa", world, model_folder, tmp_path))
    scores = written(tmp_path, "scores.json")["scores"]
    assert {"accuracy/overall", "accuracy/answer: other", "accuracy/question: who likes it"} <= scores.keys()


def test_without_annotations_there_is_a_submission(world, model_folder, tmp_path, capsys):
    run(arguments("zeroshot_vqav2", world, model_folder, tmp_path, data__init_args__annotations="null"))
    questions = json.loads((world.folder / "vqa_questions_test.json").read_text())["questions"]
    results = written(tmp_path, "predictions.json")
    assert sorted(result["question_id"] for result in results) == sorted(
        question["question_id"] for question in questions
    )
    assert all(set(result) == {"question_id", "answer"} for result in results)
    assert set(written(tmp_path, "scores.json")["scores"]) == {"off_prompt"}
    assert "the answers are secret" in capsys.readouterr().out


def test_free_reading_counts_what_goes_off_prompt(world, model_folder, tmp_path):
    options = {"model__init_args__decoding__reading": "free", "data__init_args__num_samples": 1}
    run(arguments("zeroshot_vqav2", world, model_folder, tmp_path, **options))
    assert written(tmp_path, "scores.json")["scores"]["off_prompt"] == 1.0  # random weights reconstruct nothing


# By domain, as VL-T5 splits questions


def test_accuracy_by_domain(world, model_folder, tmp_path):
    questions = read_questions(world.folder / "vqa_questions_test.json", world.folder / "vqa_annotations_test.json")
    rare = {question.question_id: question.answer_type == "other" for question in questions[::2]}
    split = tmp_path / "karpathy_test.json"
    split.write_text(json.dumps([{"question_id": key, "is_topk_optimal": not value} for key, value in rare.items()]))
    (tmp_path / "answers.txt").write_text("yes\n")  # right in-domain alone
    options = {"data__init_args__split": split, "model__init_args__candidates": tmp_path / "answers.txt"}
    run(arguments("zeroshot_vqav2", world, model_folder, tmp_path, **options))
    answers = {item["question_id"]: item["answer"] for item in written(tmp_path, "predictions.json")}
    assert answers.keys() == rare.keys()
    accuracies = {
        question.question_id: 100 * answer_accuracy(answers[question.question_id], question.answers)
        for question in questions
        if question.question_id in rare
    }
    scores = written(tmp_path, "scores.json")["scores"]
    means = []
    for domain, is_rare in (("in-domain", False), ("out-of-domain", True)):
        part = [accuracies[key] for key in rare if rare[key] == is_rare]
        assert scores[f"accuracy/{domain}"] == pytest.approx(sum(part) / len(part), abs=0.006)
        assert f"accuracy_shuffled_image/{domain}" in scores
        means.append(scores[f"accuracy/{domain}"])
    assert means[0] != means[1]


def test_without_a_split_there_is_no_domain(tested):
    assert not [name for name in written(tested[0], "scores.json")["scores"] if "domain" in name]


# Training


def fit_arguments(name, world, model_folder, folder, command="fit", **options):
    """The command line of ``configs/{name}.yaml`` and its sample overlay, in miniature: four steps an epoch."""
    split = {
        part: {
            "questions": str(world.folder / f"vqa_questions_{part}.json"),
            "annotations": str(world.folder / f"vqa_annotations_{part}.json"),
            "images": str(world.folder / "images" / part),
        }
        for part in ("val", "test")
    }
    settings = {
        "model.init_args.init_from": str(model_folder),
        "model.init_args.decoding.max_new_tokens": 5,
        **{f"data.init_args.{key}": value for key, value in split["test"].items()},
        "data.init_args.val": json.dumps(split["val"]),
        "data.init_args.train": json.dumps(split["val"]),
        "data.init_args.num_workers": 0,
        "data.init_args.batch_size": 3,
        "data.init_args.num_samples": 3,
        "data.init_args.train_share": 0.4,
        "data.init_args.train_batch_size": 4,
        "trainer.max_epochs": 2,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.log_every_n_steps": 1,
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "trainer.default_root_dir": str(folder),
        "trainer.logger": json.dumps(
            [
                {"class_path": "CSVLogger", "init_args": {"save_dir": str(folder), "name": None, "version": ""}},
            ]
        ),
        "trainer.callbacks": json.dumps(
            [
                {"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 1, "save_top_k": -1}},
                {"class_path": "vlkd_pl.ExportModel"},
            ]
        ),
    } | {key.replace("__", "."): value for key, value in options.items()}
    return [command, *configs(name), *(f"--{key}={value}" for key, value in settings.items())]


@pytest.fixture(scope="module")
def trained(world, model_folder, tmp_path_factory):
    """A finished training: its folder, and the command line object."""
    folder = tmp_path_factory.mktemp("vqa_fit")
    return folder, run(fit_arguments("vqa_vqav2", world, model_folder, folder))


def weights(command_line):
    return {name: value.clone() for name, value in command_line.model.state_dict().items()}


def column(folder, name):
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_the_loss_is_that_of_single_questions(world, model_folder):
    module = VQAModule(num_masks=2, clip=world.clip, bart=world.bart, image_features="all", init_from=str(model_folder))
    module.eval()
    model, tokenizer = module.model, module.model.tokenizer
    batch = {
        "image": torch.randn(2, 3, 64, 64),
        "image_index": torch.tensor([1, 0, 1]),
        "questions": ["what color is the fish?", "is there a boat? ", "where is it?"],
        "labels": ["red", "yes", "left of the house"],
        "unreadable": [],
    }
    expected = []
    for row, question, label in zip(batch["image_index"], batch["questions"], batch["labels"], strict=True):
        prompt = tokenizer(f"{question.strip()} Answer: <mask><mask>.", return_tensors="pt")
        labels = tokenizer(f"{question.strip()} Answer: {label}.", return_tensors="pt")["input_ids"]
        features = model.encode_text(prompt["input_ids"], prompt["attention_mask"])
        image_tokens = model.clip.encode_image(batch["image"][row : row + 1])
        logits = model.decode(*model.condition(features, prompt["attention_mask"], image_tokens), labels)
        expected.append(cross_entropy(logits[0], labels[0], reduction="sum"))
    losses = module.compute_losses(batch)
    assert set(losses) == {"icti"}
    torch.testing.assert_close(losses["icti"], sum(expected) / 3, rtol=1e-4, atol=1e-4)


def test_training_moves_all_but_clip_and_the_temperature(trained, world, model_folder):
    after = trained[1].model
    before = VQAModule(clip=world.clip, bart=world.bart, image_features="all", init_from=str(model_folder))
    after_values = dict(after.named_parameters())
    for name, value in before.named_parameters():
        if "embed_positions" in name or "k_proj.bias" in name:
            continue
        is_frozen = name.startswith("model.clip.") or name == "logit_scale"
        assert torch.equal(value, after_values[name]) == is_frozen, name
        assert after_values[name].requires_grad != is_frozen, name


def test_training_logs_and_learns_in_warmup_and_decay(trained):
    folder, done = trained
    steps = done.trainer.global_step
    num_questions = len(done.datamodule.training)
    assert steps == 2 * (num_questions // 4)
    rates = column(folder, "train/learning_rate")
    assert len(column(folder, "train/icti_loss")) == len(rates) == steps
    assert rates[: steps // 2] == sorted(rates[: steps // 2])  # the first epoch
    assert max(rates) == pytest.approx(5e-4)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    assert len(column(folder, "val/accuracy/overall")) == 2


@pytest.mark.parametrize("name", ["vqa_vqav2_1percent", "vqa_karpathy"])
def test_fit_test_and_test_of_the_written_model(name, world, model_folder, tmp_path):
    """What is tested after a training is what is tested from its folder, whichever config it is of."""
    options = {"trainer__max_epochs": 1}
    if name == "vqa_karpathy":
        splits = {part: world.folder / f"vqa_karpathy_{part}.json" for part in ("val", "test")}
        options |= {f"data__init_args__{part}__split": splits["val"] for part in ("train", "val")}
        options |= {"data__init_args__split": splits["test"]}
    assert main(fit_arguments(name, world, model_folder, tmp_path / "fit", **options)) == 0
    last = max((tmp_path / "fit" / "checkpoints").iterdir(), key=lambda path: path.stat().st_mtime)
    results = []
    for folder, more in (
        ("folder", {"model__init_args__init_from": tmp_path / "fit" / "model"}),
        ("again", {"model__init_args__init_from": tmp_path / "fit" / "model"}),
        ("checkpoint", {"ckpt_path": last}),
    ):
        command = fit_arguments(name, world, model_folder, tmp_path / folder, "test", **options | more)
        assert main(command) == 0
        results.append(
            (written(tmp_path / folder, "scores.json")["scores"], written(tmp_path / folder, "predictions.json"))
        )
    assert results[0] == results[1] == results[2]
    assert ("accuracy/out-of-domain" in results[0][0]) == (name == "vqa_karpathy")


# within an epoch, at the end of one, within the next
@pytest.mark.parametrize(("share_done", "num_workers"), [(0.3, 0), (0.5, 0), (0.5, 1), (0.75, 1)])
def test_a_resumed_training_ends_as_the_uncut_one(trained, world, model_folder, tmp_path, share_done, num_workers):
    folder, done = trained
    num_steps = done.trainer.global_step
    (path,) = (folder / "checkpoints").glob(f"*step={round(share_done * num_steps)}.ckpt")
    options = {"ckpt_path": path, "data__init_args__num_workers": num_workers}
    resumed = run(fit_arguments("vqa_vqav2", world, model_folder, tmp_path, **options))
    assert resumed.trainer.global_step == num_steps
    losses = column(folder, "train/loss")
    assert column(tmp_path, "train/loss") == losses[-len(column(tmp_path, "train/loss")) :]
    torch.testing.assert_close(weights(resumed), weights(done), rtol=0, atol=0)


def test_all_that_is_trained_has_a_gradient(trained):
    """DistributedDataParallel would wait for a parameter that has none."""
    module, data = trained[1].model, trained[1].datamodule
    module.zero_grad()
    module.compute_losses(next(iter(data.train_dataloader())))["icti"].backward()
    assert [name for name, value in module.named_parameters() if value.requires_grad != (value.grad is not None)] == []


def test_a_damaged_training_image_stops_in_one_line(world, model_folder, tmp_path, capsys):
    images = tmp_path / "images"
    images.mkdir()
    for path in (world.folder / "images" / "val").iterdir():
        (images / path.name).write_bytes(b"no image")
    options = {"data__init_args__train__images": images}
    assert main(fit_arguments("vqa_vqav2", world, model_folder, tmp_path, **options)) == 1
    assert "cannot be read" in capsys.readouterr().err.strip().splitlines()[-1]
