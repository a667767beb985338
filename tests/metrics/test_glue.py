"""GLUE's scores against their formulas, scikit-learn's and SciPy's."""

import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from vlkd_pl.metrics.glue import glue_scores


@pytest.fixture
def classes():
    """Predictions and references that mostly agree."""
    rng = np.random.default_rng(0)
    references = rng.integers(0, 2, 200)
    return np.where(rng.random(200) < 0.7, references, 1 - references).tolist(), references.tolist()


def test_counted_by_hand():
    # two true positives, one false positive, one false negative, four true negatives
    predictions, references = [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0]
    assert glue_scores("mrpc", predictions, references) == {"accuracy": 6 / 8, "f1": pytest.approx(2 * 2 / (2 * 2 + 2))}
    expected = (2 * 4 - 1 * 1) / math.sqrt(3 * 3 * 5 * 5)
    assert glue_scores("cola", predictions, references) == {"matthews_correlation": pytest.approx(expected)}


def test_f1_is_of_the_references_class_1():
    # precision 1, recall 1/3; of class 0 it would be 2/3
    assert glue_scores("qqp", [1, 0, 0, 0, 0], [1, 1, 1, 0, 0])["f1"] == pytest.approx(0.5)


@pytest.mark.parametrize("task", ["cola", "sst2", "rte", "mrpc", "qqp", "mnli", "qnli"])
def test_classes_against_scikit_learn(task, classes):
    predictions, references = classes
    expected = {"accuracy": accuracy_score(references, predictions)}
    if task in ("mrpc", "qqp"):
        expected["f1"] = f1_score(references, predictions)
    if task == "cola":
        expected = {"matthews_correlation": matthews_corrcoef(references, predictions)}
    assert glue_scores(task, predictions, references) == pytest.approx(expected, abs=1e-12)


def test_similarities_against_scipy_and_the_formula():
    rng = np.random.default_rng(1)
    references = rng.integers(0, 26, 100) / 5  # with ties
    predictions = references**2 / 5 + rng.normal(size=100)
    scores = glue_scores("stsb", predictions.tolist(), references.tolist())
    assert scores["pearson"] == pytest.approx(np.corrcoef(predictions, references)[0, 1], abs=1e-12)
    assert scores["pearson"] == pytest.approx(pearsonr(predictions, references)[0], abs=1e-12)
    assert scores["spearmanr"] == pytest.approx(spearmanr(predictions, references)[0], abs=1e-12)
    assert scores["spearmanr"] != pytest.approx(scores["pearson"], abs=1e-3)


def test_constant_predictions():
    assert glue_scores("cola", [1, 1, 1], [1, 0, 1]) == {"matthews_correlation": 0.0}
    assert glue_scores("mrpc", [0, 0, 0], [1, 0, 1]) == {"accuracy": pytest.approx(1 / 3), "f1": 0.0}
    with pytest.warns(match="constant"):
        scores = glue_scores("stsb", [2.0, 2.0, 2.0], [1.0, 2.0, 4.0])
    assert math.isnan(scores["pearson"])
    assert math.isnan(scores["spearmanr"])


def test_unequal_numbers():
    with pytest.raises(ValueError, match="2 predictions, 1 references"):
        glue_scores("rte", [0, 1], [0])
    with pytest.raises(ValueError, match="no predictions of rte"):
        glue_scores("rte", [], [])
