"""Evaluators: repeated samples, ranks, and reports without a Trainer."""

import pytest
import torch
from ranks import run_ranks

from vlkd_pl.data.vqa_files import Question
from vlkd_pl.evaluation.captioning import CaptioningEvaluator, CaptionPrediction, scores_by_domain
from vlkd_pl.evaluation.retrieval import RetrievalEvaluator, RetrievalResult
from vlkd_pl.evaluation.vqa import AnswerPrediction, VQAEvaluator
from vlkd_pl.metrics.captions import caption_scores

CAPTIONS = {
    number: f"a {color} fish near a {thing}"
    for number, (color, thing) in enumerate(
        zip(("red", "blue", "green", "black", "white"), ("boat", "house", "tree", "rock", "cat"), strict=True)
    )
}
REFERENCES = {number: [f"a {text.split()[1]} fish by the sea", text] for number, text in CAPTIONS.items()}


def prediction(number, caption=None, **fields):
    return CaptionPrediction(number, caption or CAPTIONS[number], REFERENCES[number], **fields)


def test_the_last_of_several_results_with_one_id_counts():
    evaluator = CaptioningEvaluator(["CIDEr"])
    evaluator.update([prediction(1, "nothing"), prediction(0)])
    evaluator.update([prediction(1)])
    assert len(evaluator) == 2
    report = evaluator.compute()
    assert report.files["predictions.json"] == [{"image_id": n, "caption": CAPTIONS[n]} for n in (0, 1)]
    evaluator.reset()
    with pytest.raises(ValueError, match="no results to evaluate"):
        evaluator.compute()


def test_ids_that_are_numbers_come_before_names():
    evaluator = CaptioningEvaluator(["BLEU"])
    evaluator.update(CaptionPrediction(key, "a fish", ["a fish"]) for key in ("b", 10, "a", 9))
    assert [row["image_id"] for row in evaluator.compute().files["predictions.json"]] == [9, 10, "a", "b"]


def test_captions_score_as_by_the_pure_function():
    evaluator = CaptioningEvaluator(["BLEU", "CIDEr"])
    domains = ["in-domain", "in-domain", "out-domain", "out-domain", "out-domain"]
    captions = dict.fromkeys(CAPTIONS, "a red fish near a boat")
    predictions = [prediction(n, captions[n], domain=domain) for n, domain in enumerate(domains)]
    evaluator.update(predictions)
    report = evaluator.compute()
    expected = caption_scores(REFERENCES, captions, ["BLEU", "CIDEr"])
    assert report.scores["cider"] == expected.scores["CIDEr"]
    assert report.scores["bleu_1"] == expected.scores["BLEU-1"]
    part = caption_scores({n: REFERENCES[n] for n in (0, 1)}, {n: captions[n] for n in (0, 1)}, ["CIDEr"])
    assert report.scores["in-domain/cider"] == part.scores["CIDEr"]
    assert list(scores_by_domain(predictions, ["BLEU"])) == ["all", "in-domain", "out-domain"]


def test_the_shuffled_image_control_is_a_column_and_a_score():
    evaluator = VQAEvaluator()
    questions = [Question(n, 1, "what color is it?", ("red",) * 10, "other", "what color") for n in range(2)]
    evaluator.update(AnswerPrediction(question, "red", shuffled_image_answer="blue") for question in questions)
    report = evaluator.compute()
    assert report.scores["accuracy/overall"] == 100
    assert report.scores["accuracy_shuffled_image/overall"] == 0
    assert "shuffled image" in report.table


def retrieval_results():
    rows = torch.nn.functional.normalize(torch.arange(35.0).reshape(7, 5).cos())
    return [RetrievalResult(n, row, row.roll(1)[None], row[None]) for n, row in enumerate(rows)]


def evaluate_on_rank(rank, folder):
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    evaluator = RetrievalEvaluator(fold_size=3)
    results = retrieval_results()
    evaluator.update(results[rank::2] if rank == 0 else [*results[rank::2], results[0]])  # uneven, and one repeated
    evaluator.synchronize()
    torch.save(evaluator.compute().scores, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_with_uneven_batches_score_as_one(tmp_path):
    run_ranks(evaluate_on_rank, str(tmp_path))
    evaluator = RetrievalEvaluator(fold_size=3)
    evaluator.update(retrieval_results())
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == evaluator.compute().scores
