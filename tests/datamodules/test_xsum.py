"""XSum's documents from every kind of source, batches by tokens, and what is left out or cut."""

import json

import numpy as np
import pytest
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.data.xsum_files import Document, iter_documents, token_batches
from vlkd_pl.datamodules.xsum import XSUMDataModule
from vlkd_pl.errors import MissingPackageError

PAIRS = [("a red fish. it is big.", "a fish"), ("two  boats\u2028at night.", "boats"), ("a tree.", "a tree")]
EXPECTED = [
    Document(0, "a red fish. it is big.", "a fish"),
    Document(1, "two boats at night.", "boats"),
    Document(2, "a tree.", "a tree"),
]


def write_lines(folder, pairs=PAIRS, split="train"):
    for end, column in zip(("source", "target"), zip(*pairs, strict=True), strict=True):
        (folder / f"{split}.{end}").write_text("".join(f"{line}\n" for line in column), encoding="utf-8")


def write_json(folder, pairs=PAIRS, split="train"):
    rows = [json.dumps({"document": text, "summary": summary, "id": "7"}) for text, summary in pairs]
    (folder / f"{split}.jsonl").write_text("\n".join([*rows, "", ""]), encoding="utf-8")


def write_saved(folder, pairs=PAIRS, split="train"):
    datasets = pytest.importorskip("datasets")
    columns = dict(zip(("document", "summary"), zip(*pairs, strict=True), strict=True))
    name = "validation" if split == "val" else split
    datasets.DatasetDict({name: datasets.Dataset.from_dict(columns)}).save_to_disk(folder)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("write", [write_lines, write_json, write_saved])
def test_every_source_gives_the_same_documents(tmp_path, write, split):
    write(tmp_path, split=split)
    assert list(iter_documents(str(tmp_path), split)) == EXPECTED


def test_hugging_face(monkeypatch):
    datasets = pytest.importorskip("datasets")
    requests = []

    def load_dataset(name, split, revision):
        requests.append((name, split, revision))
        return datasets.Dataset.from_dict({"document": ["a\nfish"], "summary": ["fish"], "id": ["1"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert list(iter_documents("EdinburghNLP/xsum", "val", "refs/convert/parquet")) == [Document(0, "a fish", "fish")]
    assert requests == [("EdinburghNLP/xsum", "validation", "refs/convert/parquet")]


def test_without_the_network_the_error_says_what_to_give(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(*arguments, **options):
        raise RuntimeError("Dataset scripts are no longer supported, but found xsum.py")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(FileNotFoundError, match=r"give a folder as data\.source.*found xsum\.py"):
        list(iter_documents("EdinburghNLP/xsum", "val"))


def test_without_datasets_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingPackageError, match=r"pip install '\.\[datasets\]'"):
        list(iter_documents("EdinburghNLP/xsum", "val"))


def test_a_column_is_missing(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"article": ["a"]})}).save_to_disk(tmp_path)
    with pytest.raises(MisconfigurationException, match="number 0 has article: it needs a document and a summary"):
        list(iter_documents(str(tmp_path), "train"))
    with pytest.raises(FileNotFoundError, match=r"no split test in .*, which has train"):
        list(iter_documents(str(tmp_path), "test"))


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ('{"document": "a"', "line 2 is not JSON"),
        ('["a", "b"]', "line 2 is not an object with texts"),
        ('{"document": 3, "summary": "b"}', "line 2 is not an object with texts .* it has 3 as document"),
        ('{"document": "a", "summary": null}', "line 2 is not an object with texts .* it has null as summary"),
        ("[" * 100_000, "line 2 is not JSON"),
        ('{"document": "a"}', "number 1 has document: it needs a document and a summary"),
        ('{"summary": "a"}', "number 1 has summary: it needs a document"),
        ("{}", "number 1 has nothing"),
    ],
)
def test_corrupt_json_lines(tmp_path, line, error):
    (tmp_path / "train.jsonl").write_text(f'{{"document": "a", "summary": "b"}}\n{line}\n')
    with pytest.raises(MisconfigurationException, match=error):
        list(iter_documents(str(tmp_path), "train"))


def test_files_that_do_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no train\.source and no train\.jsonl"):
        list(iter_documents(str(tmp_path), "train"))
    write_lines(tmp_path)
    (tmp_path / "train.target").write_text("one\n")
    with pytest.raises(MisconfigurationException, match=r"train\.source has 3 lines and .*train\.target has 1"):
        list(iter_documents(str(tmp_path), "train"))
    (tmp_path / "train.target").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file at .*train\.target"):
        list(iter_documents(str(tmp_path), "train"))
    (tmp_path / "train.source").write_bytes(b"caf\xe9\n")
    with pytest.raises(MisconfigurationException, match="is not UTF-8"):
        list(iter_documents(str(tmp_path), "train", summaries=False))


def test_prediction_needs_no_summaries(tmp_path):
    write_lines(tmp_path)
    (tmp_path / "train.target").unlink()
    read = list(iter_documents(str(tmp_path), "train", summaries=False))
    assert read == [document._replace(summary="") for document in EXPECTED]


def test_token_batches():
    lengths = np.random.default_rng(0).integers(1, 50, 300).tolist()
    batches = token_batches(lengths, 100, seed=0)
    assert sorted(index for batch in batches for index in batch) == list(range(300))
    padded = [len(batch) * max(lengths[index] for index in batch) for batch in batches]
    assert max(padded) <= 100
    # none could have taken the next shortest document too
    longest = [max(lengths[index] for index in batch) for batch in batches]
    shortest = [min(lengths[index] for index in batch) for batch in batches]
    assert all((len(batch) + 1) * low > 100 for batch, low in zip(batches, shortest[1:], strict=False))
    assert all(high <= low for high, low in zip(longest, shortest[1:], strict=False))
    assert token_batches(lengths, 100, seed=0) == batches != token_batches(lengths, 100, seed=1)


def make(folder, bart, **options):
    options = {"max_length": 40, "max_tokens": 60, "eval_batch_size": 2, "num_workers": 0} | options
    return XSUMDataModule(bart, str(folder), **options)


def test_batches(tmp_path, bart_folder):
    for split in ("train", "val", "test"):
        write_lines(tmp_path, split=split)
    data = make(tmp_path, str(bart_folder))
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader())
    read = {sample.number: sample.summary for batch in batches for sample in batch["samples"]}
    assert read == {document.number: document.summary for document in EXPECTED}
    for batch in [*batches, *data.val_dataloader()]:
        for row, sample in enumerate(batch["samples"]):
            ids = batch["document_ids"][row][batch["document_mask"][row].bool()]
            assert data.tokenizer.decode(ids) == f"<s>{EXPECTED[sample.number].text}</s>"
            labels = batch["labels"][row][batch["labels"][row] != -100]
            assert data.tokenizer.decode(labels) == f"<s>{sample.summary}</s>"
        assert batch["document_mask"].sum(1).max() == batch["document_ids"].shape[1]
        assert (batch["document_ids"][batch["document_mask"] == 0] == data.tokenizer.pad_token_id).all()
    lengths = [int(length) for batch in data.val_dataloader() for length in batch["document_mask"].sum(1)]
    assert lengths == sorted(lengths, reverse=True)


def test_what_is_left_out_or_cut_is_reported(tmp_path, bart_folder, monkeypatch):
    reports = []
    monkeypatch.setattr("vlkd_pl.datamodules.xsum.rank_zero_info", reports.append)
    pairs = [("", "a"), ("a fish", " "), ("a red fish " * 20, "a fish"), ("a tree", "a tree " * 30), (" ", "")]
    write_lines(tmp_path, pairs, "test")
    data = make(tmp_path, str(bart_folder))
    data.setup("test")
    assert reports == [
        "XSum, test: 2 documents; skipped without text: 2; skipped without summary: 1; "
        "documents truncated to 40 tokens: 1; summaries truncated to 40 tokens: 1"
    ]
    long, short = data.documents["test"]
    assert (long.document.number, short.document.number) == (2, 3)
    assert len(long.ids) == len(short.summary_ids) == 40
    assert data.tokenizer.decode(long.ids).startswith("<s>a red fish a red fish")
    assert long.ids[-1] == data.tokenizer.eos_token_id
    assert short.document.summary == ("a tree " * 30).strip()  # what is scored against is whole
    data.setup("predict")
    assert [encoded.document.number for encoded in data.documents["test"]] == [1, 2, 3]


def test_nothing_to_read(tmp_path, bart_folder):
    write_lines(tmp_path, [("", "a")], "test")
    with pytest.raises(MisconfigurationException, match=r"no document in the split test of .*skipped without text: 1"):
        make(tmp_path, str(bart_folder)).setup("test")
    with pytest.raises(MisconfigurationException, match=r"data\.max_tokens is 60, less than the 64 tokens"):
        make(tmp_path, str(bart_folder), max_length=64)
    with pytest.raises(FileNotFoundError, match=r"BART cannot be loaded from .*nowhere"):
        make(tmp_path, str(tmp_path / "nowhere"))


def test_the_first_documents_are_evaluated(tmp_path, bart_folder):
    write_lines(tmp_path, split="test")
    data = make(tmp_path, str(bart_folder), num_eval_samples=2)
    data.setup("test")
    assert [encoded.document.number for encoded in data.documents["test"]] == [0, 1]


def test_a_distilled_models_tokenizer(tmp_path, model_folder, bart_folder):
    assert (
        make(tmp_path, str(model_folder)).tokenizer.get_vocab()
        == make(tmp_path, str(bart_folder)).tokenizer.get_vocab()
    )
