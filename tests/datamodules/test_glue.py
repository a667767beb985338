"""GLUE's files and Hugging Face datasets."""

import csv

import pytest
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.data.glue_files import LAYOUTS, GLUEText, collate, read_dataset, read_tsv
from vlkd_pl.datamodules.glue import GLUEDataModule

MNLI_HEAD = (
    "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\t"
    "sentence1\tsentence2"
)
BENCHMARK_FILES = {
    ("cola", "train.tsv"): "gj04\t1\t\tOur friends won't buy this.\nbc01\t0\t*\tHim \"left.\n",
    ("sst2", "train.tsv"): "sentence\tlabel\nhide new secretions \t0\nit 's \"fun\t1\n",
    ("rte", "train.tsv"): "index\tsentence1\tsentence2\tlabel\n0\ta b\tc\tnot_entailment\n1\td\te\tentailment\n",
    ("mrpc", "train.tsv"): '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t70\t71\t"a" b\tc\n0\t72\t73\td\te\n',
    (
        "qqp",
        "train.tsv",
    ): "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n9\t1\t2\ta?\tb?\t1\n7\t3\t4\tc?\td?\t0\n",
    ("mnli", "train.tsv"): f"{MNLI_HEAD}\tlabel1\tgold_label\n"
    + "0\t1\t1n\tgov\t(\t(\t(\t(\ta\tb\tneutral\tneutral\n1\t2\t2c\tgov\t(\t(\t(\t(\tc\td\tentailment\tcontradiction\n",
    ("qnli", "train.tsv"): "index\tquestion\tsentence\tlabel\n0\ta?\tb\tentailment\n1\tc?\td\tnot_entailment\n",
    ("stsb", "train.tsv"): "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
    + "0\tg\tf\t2012\t1\tnone\tnone\ta\tb\t5.000\n1\tg\tf\t2012\t4\tnone\tnone\tc\td\t3.80\n",
}
LABELS = {
    "cola": [1, 0],
    "sst2": [0, 1],
    "rte": [1, 0],
    "mrpc": [1, 0],
    "qqp": [1, 0],
    "mnli": [1, 2],
    "qnli": [0, 1],
    "stsb": [5.0, 3.8],
}


def written(folder, task, name, content):
    path = folder / LAYOUTS[task].folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(("task", "name"), BENCHMARK_FILES, ids=lambda value: value)
def test_layouts_of_glue(tmp_path, task, name):
    samples, invalid = read_tsv(written(tmp_path, task, name, BENCHMARK_FILES[task, name]), task)
    assert [sample.label for sample in samples] == LABELS[task]
    assert [sample.number for sample in samples] == [0, 1]
    assert [len(sample.texts) for sample in samples] == [1 if task in ("cola", "sst2") else 2] * 2
    assert invalid == []


def test_texts_are_of_the_right_columns(tmp_path):
    def texts(task):
        return read_tsv(written(tmp_path, task, "train.tsv", BENCHMARK_FILES[task, "train.tsv"]), task)[0][0].texts

    assert texts("cola") == ("Our friends won't buy this.",)
    assert texts("mrpc") == ('"a" b', "c")
    assert texts("qqp") == ("a?", "b?")
    assert texts("mnli") == ("a", "b")
    assert texts("stsb") == ("a", "b")


@pytest.mark.parametrize(
    ("task", "content", "texts"),
    [
        ("cola", "index\tsentence\n0\tBill 's.\n", ("Bill 's.",)),
        ("mrpc", "index\t#1 ID\t#2 ID\t#1 String\t#2 String\n0\t1\t2\ta\tb\n", ("a", "b")),
        ("mnli", f"{MNLI_HEAD}\n0\t1\t1n\tgov\t(\t(\t(\t(\ta\tb\n", ("a", "b")),
    ],
)
def test_test_files_have_no_labels(tmp_path, task, content, texts):
    assert read_tsv(written(tmp_path, task, "test.tsv", content), task) == ([GLUEText(0, texts)], [])


def reference_rows(path, first, second, label):
    """What the script of nyu-mll/glue makes of a file with a header: numbered rows, without those that lack a field."""
    with open(path, encoding="utf8") as lines:
        for number, row in enumerate(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)):
            if None not in (row[first], row[second], row[label]):
                yield number, (row[first], row[second]), int(row[label])


def test_quotes_and_corrupt_lines_are_read_as_in_the_benchmark(tmp_path):
    head = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
    lines = [
        '0\t1\t2\t"What is "it"?\tIs "this" it?\t1',  # quotes that do not pair
        '1\t3\t4\t"a question over',  # an invalid line, whose quote must not swallow the next
        '2\t5\t6\tb?"\t\u2028c?\t0',
        "",  # an empty line is none
        "3\t7\t8\td?\te?",  # no label
        "4\t9\t10\t\t''f?\t1",  # an empty question is one
    ]
    path = written(tmp_path, "qqp", "train.tsv", head + "\n".join(lines) + "\n")
    samples, invalid = read_tsv(path, "qqp")
    expected = list(reference_rows(path, "question1", "question2", "is_duplicate"))
    assert [(sample.number, sample.texts, sample.label) for sample in samples] == expected
    assert [number for number, *_ in expected] == [0, 2, 4]
    assert invalid == [1, 3]


def test_lines_with_too_many_columns_or_an_unknown_label_are_corrupt(tmp_path):
    content = "sentence\tlabel\na\tb\t1\nc\t2\nd\t1\n"
    samples, invalid = read_tsv(written(tmp_path, "sst2", "train.tsv", content), "sst2")
    assert samples == [GLUEText(2, ("d",), 1)]
    assert invalid == [0, 1]


@pytest.mark.parametrize("score", ["", "n/a", "nan", "5.5", "-1"])
def test_similarities_are_from_0_to_5(tmp_path, score):
    content = BENCHMARK_FILES["stsb", "train.tsv"].replace("3.80", score)
    assert read_tsv(written(tmp_path, "stsb", "train.tsv", content), "stsb")[1] == [1]


def test_lines_end_at_line_feeds_alone(tmp_path):
    path = written(tmp_path, "sst2", "train.tsv", "")
    path.write_bytes("\ufeffsentence\tlabel\r\na\u2028\x0cb\rc\t1\r\n\r\nd\t0\n".encode())
    samples = [GLUEText(0, ("a\u2028\x0cb\rc",), 1), GLUEText(1, ("d",), 0)]
    assert read_tsv(path, "sst2") == (samples, [])
    path.write_bytes(b"sentence\tlabel\ncaf\xe9\t1\n")
    with pytest.raises(MisconfigurationException, match=r"train\.tsv is not UTF-8 at byte 18 \(0xe9"):
        read_tsv(path, "sst2")


def test_files_of_another_task_or_none_are_reported(tmp_path):
    path = written(tmp_path, "rte", "train.tsv", "index\tquestion\tsentence\tlabel\n")
    with pytest.raises(MisconfigurationException, match="no column 'sentence1'"):
        read_tsv(path, "rte")
    with pytest.raises(FileNotFoundError, match=r"no file at .*data\.source"):
        read_tsv(tmp_path / "nowhere.tsv", "rte")


def test_corrupt_lines_are_counted_and_reported(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr("vlkd_pl.datamodules.glue.rank_zero_info", lines.append)
    for name in ("train.tsv", "dev.tsv"):
        written(tmp_path, "sst2", name, "sentence\tlabel\na\t1\nb\n")
    data = GLUEDataModule("sst2", str(tmp_path))
    data.setup("fit")
    assert [line.split("SST-2/")[1] for line in lines] == [
        f"{name}.tsv: 1 invalid lines are skipped; first: [1]" for name in ("train", "dev")
    ]
    written(tmp_path, "sst2", "test.tsv", "index\tsentence\n0\ta\n1\n")
    with pytest.raises(MisconfigurationException, match="the server needs all"):
        GLUEDataModule("sst2", str(tmp_path), evaluated="test").setup("test")


def test_files_without_labels_or_lines_cannot_be_trained_on(tmp_path):
    written(tmp_path, "sst2", "train.tsv", "index\tsentence\n0\ta\n")
    with pytest.raises(MisconfigurationException, match="holds no labels"):
        GLUEDataModule("sst2", str(tmp_path)).setup("fit")
    written(tmp_path, "sst2", "train.tsv", "sentence\tlabel\n")
    with pytest.raises(MisconfigurationException, match="holds no samples"):
        GLUEDataModule("sst2", str(tmp_path)).setup("fit")


@pytest.fixture
def mnli(tmp_path):
    """A folder with MNLI's five files, and the same as a saved dataset under ``saved/mnli``."""
    import datasets

    rows = {"train": "tr", "dev_matched": "ma", "dev_mismatched": "mi", "test_matched": "ta", "test_mismatched": "ti"}
    saved = {}
    names = ["entailment", "neutral", "contradiction"]
    features = datasets.Features(
        premise=datasets.Value("string"),
        hypothesis=datasets.Value("string"),
        label=datasets.ClassLabel(names=names),
        idx=datasets.Value("int32"),
    )
    for name, text in rows.items():
        secret = name.startswith("test")
        lines = [f"{i}\t1\t1n\tgov\t(\t(\t(\t(\t{text}{i}\tb" + ("" if secret else f"\t{names[i]}") for i in range(3)]
        head = MNLI_HEAD if secret else f"{MNLI_HEAD}\tgold_label"
        written(tmp_path, "mnli", f"{name}.tsv", "\n".join([head, *lines]) + "\n")
        content = [
            {"premise": f"{text}{i}", "hypothesis": "b", "label": -1 if secret else i, "idx": i} for i in range(3)
        ]
        saved[name.replace("dev", "validation")] = datasets.Dataset.from_list(content, features=features)
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "saved" / "mnli")
    return tmp_path


@pytest.mark.parametrize(
    ("column", "values", "error"),
    [
        ("label", ["1", "0"], 'entry 1 has "1" as label: it must be a number'),
        ("label", [1, None], "entry 2 has null as label"),
        ("sentence", [["a"], ["b"]], "entry 1 has a list of 1 as sentence: it must be a text"),
    ],
)
def test_columns_of_another_type(tmp_path, column, values, error):
    import datasets

    content = {"sentence": ["a", "b"], "label": [1, 0], column: values}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(content)}).save_to_disk(tmp_path)
    with pytest.raises(MisconfigurationException, match=f"data.source: {tmp_path}, split train, {error}"):
        read_dataset(str(tmp_path), "sst2", "train")


def test_mnlis_two_sets_are_kept_apart(mnli):
    data = GLUEDataModule("mnli", str(mnli), batch_size=2, num_workers=0)
    data.setup("validate")
    samples = [sample for batch in data.val_dataloader() for sample in batch["samples"]]
    assert [sample.part for sample in samples] == ["matched"] * 3 + ["mismatched"] * 3
    assert [sample.texts[0] for sample in samples] == ["ma0", "ma1", "ma2", "mi0", "mi1", "mi2"]


@pytest.mark.parametrize("folder", ["saved", "saved/mnli"])
def test_a_saved_dataset_gives_what_the_files_give(mnli, folder):
    files = GLUEDataModule("mnli", str(mnli), evaluated="test")
    dataset = GLUEDataModule("mnli", str(mnli / folder), reader="datasets", evaluated="test")
    for split in ("train", "dev", "test"):
        assert dataset.read(split) == files.read(split)
    assert len(dataset.read("dev")) == 6


def test_a_dataset_that_is_missing_is_reported(mnli, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_: (_ for _ in ()).throw(ConnectionError("no network\nmore")))
    with pytest.raises(FileNotFoundError, match=r"no dataset of mnli .* nyu-mll/glue: .*\(no network\)"):
        read_dataset("nyu-mll/glue", "mnli", "train")
    with pytest.raises(FileNotFoundError, match="no split 'validation'"):
        read_dataset(str(mnli / "saved"), "mnli", "validation")
    with pytest.raises(MisconfigurationException, match="no column 'question'"):
        read_dataset(str(mnli / "saved" / "mnli"), "qnli", "train")


def test_batches(tmp_path):
    samples = [GLUEText(0, ("a",), 1), GLUEText(1, ("b",), 0)]
    batch = collate(samples)
    assert batch["samples"] == samples
    assert batch["labels"].tolist() == [1, 0]
    assert torch.is_floating_point(collate([GLUEText(0, ("a", "b"), 3.5)])["labels"])
    assert len(collate([GLUEText(0, ("a",))])["labels"]) == 0


def test_training_is_shuffled_and_evaluation_is_not(tmp_path):
    for name in ("train.tsv", "dev.tsv"):
        written(tmp_path, "sst2", name, "sentence\tlabel\n" + "".join(f"{i}\t1\n" for i in range(50)))
    data = GLUEDataModule("sst2", str(tmp_path), batch_size=5, num_workers=0)
    data.setup("fit")
    state = torch.get_rng_state()
    dev = [sample.number for batch in data.val_dataloader() for sample in batch["samples"]]
    assert dev == list(range(50))
    assert torch.equal(state, torch.get_rng_state())

    def epoch(num_trained_batches):
        data.load_state_dict({"num_trained_batches": num_trained_batches})
        return [sample.number for batch in data.train_dataloader() for sample in batch["samples"]]

    assert sorted(epoch(0)) == sorted(epoch(10)) == list(range(50))
    assert len({tuple(epoch(0)), tuple(epoch(10)), tuple(dev)}) == 3
    assert epoch(13) == epoch(10)[15:]  # as a resumed run
    assert torch.equal(state, torch.get_rng_state())
