"""The CIDEr-D of the reward against pycocoevalcap's, on the captions that the COCO caption evaluation ships."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pycocoevalcap
import pytest
from pycocoevalcap.cider.cider_scorer import CiderScorer

from vlkd_pl.metrics import cider
from vlkd_pl.metrics.cider import CIDErDReward
from vlkd_pl.metrics.ptb import tokenize

REFERENCES = {
    "a": ["a red fish on the grass", "there is a red fish", "a fish"],
    "b": ["two blue boats at night", "boats at night at night"],
    "c": ["tree"],
}


def pycocoevalcap_cider(references, predictions, counted=None):
    """Return pycocoevalcap's scores, with the document frequencies of ``counted``."""
    counted = counted or references
    frequencies = CiderScorer()
    for texts in counted.values():
        frequencies += ("", texts)
    frequencies.compute_doc_freq()
    scores = []
    for first in range(0, len(predictions), len(counted)):
        scorer = CiderScorer()
        for key, text in predictions[first : first + len(counted)]:
            scorer += (text, references[key])
        scorer.document_frequency = frequencies.document_frequency
        scorer.crefs += [[]] * (len(counted) - len(scorer.crefs))  # it uses their number as that of the images
        scores += scorer.compute_cider()
    return np.array(scores)


@pytest.fixture(scope="module")
def coco():
    """Tokenized captions of images of COCO's val2014."""
    with zipfile.ZipFile(Path(pycocoevalcap.__path__[0]) / "spice" / "spice-1.0.jar") as jar:
        content = json.loads(jar.read("coco/annotations/captions_val2014.json"))
    references = {}
    for annotation in content["annotations"][:3000]:
        references.setdefault(annotation["image_id"], []).append(tokenize(annotation["caption"]))
    return references


def test_equal_to_pycocoevalcap_on_coco(coco):
    keys = list(coco)
    predictions = [(key, coco[other][0]) for key, other in zip(keys, keys[1:] + keys[:1], strict=True)]
    predictions += [(key, f"{coco[key][-1]} unheard of a dog of a dog") for key in keys]
    expected = pycocoevalcap_cider(coco, predictions)
    np.testing.assert_allclose(CIDErDReward(coco)(*zip(*predictions, strict=True)), expected, rtol=1e-12, atol=1e-12)
    assert expected.max() > 1 > expected.min()


@pytest.mark.parametrize("text", ["", "fish", "a fish", "a red fish a red fish", "unheard of", "at night at night"])
def test_captions_of_all_kinds(text):
    predictions = [(key, text) for key in ("a", "c", "b", "a")]
    scores = CIDErDReward(REFERENCES)(*zip(*predictions, strict=True))
    np.testing.assert_allclose(scores, pycocoevalcap_cider(REFERENCES, predictions), rtol=1e-12, atol=1e-12)
    assert scores[0] == scores[3]


def test_document_frequencies_are_those_of_all_references(coco):
    """Also for a batch, which holds few of the images."""
    reward = CIDErDReward(coco)
    predictions = [(key, coco[key][0].replace("a ", "the ")) for key in list(coco)[5:8]]
    scores = reward(*zip(*predictions, strict=True))
    np.testing.assert_allclose(scores, pycocoevalcap_cider(coco, predictions, counted=coco), rtol=1e-12)
    few = {key: coco[key] for key, _ in predictions}
    assert not np.allclose(scores, pycocoevalcap_cider(few, predictions), rtol=1e-3)


def test_one_image_alone_scores_zero():
    assert CIDErDReward({1: ["a tree"]})([1], ["a tree"]).tolist() == [0.0]


def test_the_cache_is_used(tmp_path, monkeypatch, coco):
    images, texts = list(coco), [texts[0] for texts in coco.values()]
    expected = CIDErDReward(coco, tmp_path / "cache")(images, texts)
    (file,) = (tmp_path / "cache").iterdir()
    assert file.suffix == ".npz"
    monkeypatch.setattr(cider, "_index", lambda references: pytest.fail("computed again"))
    assert CIDErDReward(coco, tmp_path / "cache")(images, texts).tolist() == expected.tolist()


@pytest.mark.parametrize("change", ["text", "image", "order"])
def test_other_references_miss_the_cache(tmp_path, change):
    CIDErDReward(REFERENCES, tmp_path)
    other = {
        "text": REFERENCES | {"c": ["a tree"]},
        "image": {key.upper(): texts for key, texts in REFERENCES.items()},
        "order": dict(reversed(REFERENCES.items())),
    }[change]
    key = next(iter(other))
    text = "a red boat at night"
    assert CIDErDReward(other, tmp_path)([key], [text]) == pytest.approx(pycocoevalcap_cider(other, [(key, text)]))
    assert len(list(tmp_path.iterdir())) == 2


def test_images_without_references_are_listed():
    with pytest.raises(ValueError, match=r"1 of 2 images have no reference caption \(first: 'b'\)"):
        CIDErDReward({"a": ["a tree"], "b": []})
    with pytest.raises(ValueError, match="there are no references"):
        CIDErDReward({})
    with pytest.raises(KeyError, match="d"):
        CIDErDReward(REFERENCES)(["d"], ["a tree"])


@pytest.mark.parametrize("references", [{"a": ["a fish", "fish"]}, {"a": ["a fish"], "b": ["a fish"]}])
def test_references_with_equal_n_grams_are_warned_of(references):
    with pytest.warns(UserWarning, match=f"CIDEr-D is 0 .* they are of {len(references)} image"):
        scorer = CIDErDReward(references)
    assert scorer(["a", "a"], ["a fish", "a boat"]).tolist() == [0, 0]


@pytest.mark.filterwarnings("error")
def test_references_that_differ_raise_no_warning():
    CIDErDReward(REFERENCES)
    CIDErDReward({"a": ["a fish"], "b": ["a fish", "a"], "c": ["boat"]})
