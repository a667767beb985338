"""The torchmetrics of this package: against the pure functions, on one process and on two, and in collections."""

import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from ranks import run_ranks
from torch.nn.functional import normalize
from torchmetrics import MetricCollection

from vlkd_pl import metrics
from vlkd_pl.metrics.captions import caption_scores
from vlkd_pl.metrics.glue import glue_scores
from vlkd_pl.metrics.retrieval import recall_at_k
from vlkd_pl.metrics.summaries import summary_scores
from vlkd_pl.metrics.vqa import vqa_scores

WORLD_SIZE = 2
REFERENCES = [
    ["A red fish on the grass.", "There is a red fish."],
    ["Two blue boats at night", "A pair of boats, both blue, at night", "boats"],
    ["a tree"],
    ["a dog's bone"],
    ["a man on a bike with a dog", "a man and his dog"],
    ["the sea", "the blue sea at night"],
    ["nothing to see"],
]
PREDICTIONS = ["a red fish in the snow", "two blue boats", "A tree.", "", "a man on a dog", "the sea the sea", "boats"]
IDS = [4, 9, 2, 7, 30, 21, 16]
ANSWERS = [[text.lower() for text in texts] * 3 + ["a"] for texts in REFERENCES]


class Question(NamedTuple):
    question_id: int
    answers: list
    question_type: str = ""
    answer_type: str = ""


def embeddings():
    """Seven images and their texts, with the image of each text."""
    generator = torch.Generator().manual_seed(0)
    index = torch.tensor([row for row, texts in enumerate(REFERENCES) for _ in texts])
    images = torch.randn(len(IDS), 6, generator=generator)
    texts = images[index] + 1.5 * torch.randn(len(index), 6, generator=generator)
    return normalize(images, dim=-1), normalize(texts, dim=-1), index


CLASSES, LABELS = [1, 0, 1, 1, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0]
SIMILARITIES, TARGETS = [0.5, 4.25, 2.0, 2.0, 3.1, 4.9, 0.1], [1.0, 4.0, 2.5, 1.0, 3.0, 5.0, 1.0]
CLASS_TASKS = ["cola", "sst2", "mrpc"]


def make_metrics():
    """The metrics by names."""
    return {
        "bleu": metrics.BLEU(),
        "rouge_l": metrics.ROUGEL(),
        "cider": metrics.CIDEr(),
        "cider_d": metrics.CIDErD(dict(zip(IDS, REFERENCES, strict=True))),
        "rouge": metrics.ROUGE(),
        "vqa": metrics.VQAAccuracy(),
        "retrieval": metrics.RetrievalRecall(ks=(1, 2)),
        "stsb": metrics.GLUEScore("stsb"),
        **{task: metrics.GLUEScore(task) for task in CLASS_TASKS},
    }


def update_all(of_name, rows):
    """Add the samples of these rows, as one batch."""

    def pick(column):
        return [column[row] for row in rows]

    ids, predictions = pick(IDS), pick(PREDICTIONS)
    for name in ("bleu", "rouge_l", "cider"):
        of_name[name].update(ids, predictions, pick(REFERENCES))
    of_name["cider_d"].update(ids, predictions)
    of_name["rouge"].update(ids, predictions, [texts[0] for texts in pick(REFERENCES)])
    of_name["vqa"].update(ids, predictions, pick(ANSWERS))
    images, texts, index = embeddings()
    chosen = [(number, text) for number, row in enumerate(rows) for text in torch.where(index == row)[0].tolist()]
    of_name["retrieval"].update(
        torch.tensor(ids), images[rows], texts[[t for _, t in chosen]], torch.tensor([n for n, _ in chosen])
    )
    of_name["stsb"].update(ids, pick(SIMILARITIES), torch.tensor(pick(TARGETS)))
    for task in CLASS_TASKS:
        of_name[task].update(ids, torch.tensor(pick(CLASSES)), pick(LABELS))


def compute_all(of_name):
    values = {name: metric.compute() for name, metric in of_name.items()}
    return {
        name: {key: float(score) for key, score in value.items()} if isinstance(value, dict) else float(value)
        for name, value in values.items()
    }


@pytest.fixture(scope="module")
def expected():
    """The values of the pure functions."""
    scored = caption_scores(
        dict(zip(IDS, REFERENCES, strict=True)),
        dict(zip(IDS, PREDICTIONS, strict=True)),
        ["BLEU", "ROUGE-L", "CIDEr"],
    ).scores
    questions = [Question(*pair) for pair in zip(IDS, ANSWERS, strict=True)]
    values = {
        "bleu": {name: scored[name] for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")},
        "rouge_l": scored["ROUGE-L"],
        "cider": scored["CIDEr"],
        "cider_d": scored["CIDEr"],
        "rouge": summary_scores([texts[0] for texts in REFERENCES], PREDICTIONS),
        "vqa": vqa_scores(questions, dict(zip(IDS, PREDICTIONS, strict=True))).overall,
        "retrieval": recall_at_k(*embeddings(), ks=(1, 2)),
        "stsb": glue_scores("stsb", SIMILARITIES, TARGETS),
        **{task: glue_scores(task, CLASSES, LABELS) for task in CLASS_TASKS},
    }
    assert all(value > 0 for value in values.values() if isinstance(value, float))
    return {name: pytest.approx(value, rel=1e-9, abs=1e-12) for name, value in values.items()}


BATCHES = {
    "one batch": [[0, 1, 2, 3, 4, 5, 6]],
    "uneven batches": [[4, 2], [6, 5, 0, 3], [1]],
    "repeated samples": [[0, 1, 2, 2], [3, 4, 5], [6, 0, 1]],
}


@pytest.mark.parametrize("batches", BATCHES.values(), ids=BATCHES)
def test_equal_to_the_pure_functions(batches, expected):
    of_name = make_metrics()
    for rows in batches:
        update_all(of_name, rows)
    assert compute_all(of_name) == expected
    assert compute_all(of_name) == expected


RANKS = {
    "uneven and repeated": [[[0, 1, 2], [3]], [[4, 5], [6, 0, 1]]],
    "a rank without samples": [[[0, 1, 2, 3], [4, 5, 6]], []],
}


def on_rank(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=WORLD_SIZE)
    results = {}
    for name, ranks in RANKS.items():
        of_name = make_metrics()
        for rows in ranks[rank]:
            update_all(of_name, rows)
        results[name] = compute_all(of_name)
        if all(ranks):  # a process without new samples returns the value that it has
            for rows in ranks[rank]:
                update_all(of_name, rows)
            assert compute_all(of_name) == results[name]
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_processes(tmp_path, expected):
    run_ranks(on_rank, str(tmp_path), num=WORLD_SIZE)
    for rank in range(WORLD_SIZE):
        results = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert results == dict.fromkeys(RANKS, expected)


def test_collection(expected):
    """Metrics of a collection that agree after one batch must not share their states."""
    collection = MetricCollection([metrics.BLEU(), metrics.ROUGEL(), metrics.CIDEr()])
    collection.add_metrics(metrics.VQAAccuracy())
    first = {"ids": IDS[2:3], "predictions": ["a tree"], "references": REFERENCES[2:3], "answers": [["a tree"] * 4]}
    collection.update(**first)
    collection.update(ids=IDS, predictions=PREDICTIONS, references=REFERENCES, answers=ANSWERS)
    scores = {name: float(score) for name, score in collection.compute().items()}
    assert {name: scores[name] for name in ("BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4")} == expected["bleu"]
    assert scores["ROUGEL"] == expected["rouge_l"]
    assert scores["CIDEr"] == expected["cider"]
    assert scores["VQAAccuracy"] == expected["vqa"]
    collection.reset()
    with pytest.raises(ValueError, match="has no samples to score"), pytest.warns(match="before the ``update``"):
        collection["ROUGEL"].compute()


def test_forward_returns_the_score_of_the_batch():
    metric = metrics.ROUGEL()
    metric.update([1], [""], [["a fish"]])
    assert float(metric([2], ["a tree"], [["a tree"]])) == 1.0
    assert float(metric.compute()) == 0.5


def test_ids_may_be_texts_or_tuples():
    metric = metrics.GLUEScore("sst2")
    for _ in range(2):
        metric.update(["1", 1, ("matched", 1), 2**70], [1, 0, 1, 1], [1, 1, 1, 1])
    assert float(metric.compute()["accuracy"]) == 0.75


def test_unequal_numbers():
    with pytest.raises(ValueError, match="2 ids, 1 predictions, 2 references"):
        metrics.BLEU().update([1, 2], ["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match=r"1 of 2 images have no reference caption \(first: 2\)"):
        metrics.CIDEr().update([1, 2], ["a", "b"], [["a"], []])


def test_public_names_are_lazy():
    assert set(metrics.__all__) <= set(dir(metrics))
    assert all(getattr(metrics, name) for name in metrics.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Meteor'"):
        metrics.Meteor  # noqa: B018
    code = "import sys, vlkd_pl.metrics, vlkd_pl.metrics.captions; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
