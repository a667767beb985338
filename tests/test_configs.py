"""Every shipped configuration parses, is short, and says what the paper says."""

import contextlib
import io
from functools import cache
from pathlib import Path

import pytest
import yaml

from vlkd_pl.commands.train import run

CONFIGS = Path(__file__).parents[1] / "configs"
FITS = ["distill", "captioning_coco", "scst_coco", "vqa_vqav2", "vqa_karpathy", "glue", "summarization_xsum"]
ZEROSHOT = ["zeroshot_coco", "zeroshot_nocaps", "zeroshot_vqav2", "zeroshot_okvqa"]
TESTS = [*ZEROSHOT, "retrieval_coco", "classification"]
SAMPLE_FITS = ["captioning_coco", "vqa_vqav2", "vqa_karpathy", "glue", "summarization_xsum"]
RUNS = [
    *(("fit", name) for name in FITS),
    *(("test", name) for name in TESTS),
    *(("test", name, f"sample/{name}") for name in TESTS),
    ("predict", "predict_captions"),
    ("predict", "predict_captions", "sample/predict_captions"),
    ("fit", "distill", "overlays/rn50x16"),
    *(("fit", "distill", f"overlays/{overlay}") for overlay in ("ddp", "fsdp", "wandb")),
    *(("fit", name, f"overlays/rn50x16_{name}") for name in ("captioning_coco", "scst_coco", "vqa_vqav2")),
    *(("test", name, f"overlays/rn50x16_{name}") for name in ZEROSHOT),
    ("test", "zeroshot_okvqa", "overlays/okvqa_finetuned"),
    ("fit", "vqa_vqav2", "overlays/vqav2_1percent"),
    *(("fit", name, f"sample/{name}") for name in SAMPLE_FITS),
    ("fit", "scst_coco", "sample/captioning_coco", "sample/scst_coco"),
    ("fit", "vqa_vqav2", "overlays/vqav2_1percent", "sample/vqa_vqav2", "sample/vqav2_1percent"),
    ("fit", "sample/distill"),
    *(("test", "sample/distill", f"sample/{name}") for name in ("before", "after")),
    ("fit", "sample/distill", "sample/paper"),
    *(("fit", f"sample/{name}") for name in ("clip", "bart")),
    ("fit", "sample/bart", "sample/bart_questions"),
    ("fit", "sample/bart", "sample/bart_questions", "sample/bart_separate"),
]
"""The command and the files of each run that the shipped configurations are for."""


def parse(command, *names, extra=()):
    """The settings of a run, without building anything."""
    printed = io.StringIO()
    configs = [f"--config={CONFIGS / name}.yaml" for name in names]
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        run([command, *configs, *extra, "--print_config"])
    assert ended.value.code == 0
    return printed.getvalue()


cached_parse = cache(parse)


def parsed(command, *names, extra=()):
    return yaml.safe_load(cached_parse(command, *names, extra=tuple(extra)))


def arguments(config):
    """The arguments of the module, of its optimization, of the data module and of the trainer."""
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    return model, model.get("optimization"), data, config["trainer"]


def read(name):
    return yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())


def test_every_file_belongs_to_a_run():
    files = {str(path.relative_to(CONFIGS).with_suffix("")) for path in CONFIGS.rglob("*.yaml")}
    assert files == {name for _, *names in RUNS for name in names}


def test_files_are_short():
    lines = {path: len(path.read_text().splitlines()) for path in CONFIGS.rglob("*.yaml")}
    complete = {path: length for path, length in lines.items() if "model:\n  class_path" in path.read_text()}
    assert {path.name: length for path, length in complete.items() if not 10 <= length <= 30} == {}
    assert sum(lines.values()) < 600
    assert {path.name for path in lines if max(map(len, path.read_text().splitlines())) > 120} == set()


@pytest.mark.parametrize("files", RUNS, ids=" ".join)
def test_one_file_of_a_run_names_its_classes(files):
    """It comes first; what follows says what differs."""
    command, complete, *overlays = files
    for part in ("model", "data"):
        assert "class_path" in read(complete)[part]
        assert all("class_path" not in read(overlay).get(part, {}) for overlay in overlays)
    config = parsed(*files)  # which fails for an unknown key
    assert config["model"]["class_path"].startswith("vlkd_pl.")
    assert not overlays or config != parsed(command, complete, *overlays[:-1])


def test_runs_have_their_own_directories():
    names = {" ".join(files): parsed(*files)["run_dir"] for files in RUNS}
    del names["fit distill overlays/ddp"], names["fit distill overlays/fsdp"], names["fit distill overlays/wandb"]
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize(
    ("files", "clip", "features", "batch_size"),
    [(["distill"], "ViT-B/16", "pooled", 576), (["distill", "overlays/rn50x16"], "RN50x16", "patches", 512)],
)
def test_table_10(files, clip, features, batch_size):
    model, optimization, data, trainer = arguments(parsed("fit", *files))
    assert (model["clip"], model["image_features"], model["bart"]) == (clip, features, "facebook/bart-large")
    assert data["batch_size"] * trainer["devices"] * trainer["accumulate_grad_batches"] == batch_size
    assert optimization["betas"] == [0.99, 0.999]
    assert (optimization["learning_rate"], optimization["weight_decay"], optimization["eps"]) == (5e-5, 0.01, 1e-6)
    assert model["temperature"] == 0.07
    assert (optimization["warmup_steps"], trainer["max_steps"]) == (12_000, 200_000)
    assert (trainer["accumulate_grad_batches"], trainer["gradient_clip_val"]) == (2, 5.0)
    assert (trainer["devices"], trainer["strategy"], trainer["precision"]) == (8, "ddp", "16-mixed")
    # Sections 3.2.3 and 4.3.1
    assert (model["ttdm_weight"], model["itcl_weight"], model["icti_weight"]) == (1e3, 1, 1)
    # γ makes up for the mean, which the equation does not have; Eq. 2 is a sum
    assert (model["ttdm_reduction"], model["icti_reduction"]) == ("mean", "sum")
    masking = data["masking"]
    assert (masking["mask_share"], masking["mean_span_length"], model["num_masks"]) == (0.15, 3.0, 6)
    assert model["decoding"]["num_beams"] == 6
    # extensions beyond the paper are off
    assert (model["start"], data["text_corpus"]) == ("random", None)


@pytest.mark.parametrize("name", ["captioning_coco", "scst_coco"])
def test_table_11_captioning(name):
    config = parsed("fit", name)
    model, optimization, data, trainer = arguments(config)
    assert (model["clip"], model["image_features"], model["bart"]) == (None, None, None)  # those of init_from
    assert data["train_batch_size"] * trainer["devices"] * trainer["accumulate_grad_batches"] == 40
    assert (model["num_masks"], model["decoding"]["num_beams"], model["icti_reduction"]) == (6, 6, "sum")
    assert (optimization["weight_decay"], optimization["eps"], trainer["gradient_clip_val"]) == (0.01, 1e-8, 5.0)
    assert (data["split"], data["val"]["split"], data["train"]["split"]) == ("test", "val", ["train", "restval"])
    assert (config["checkpoint"]["monitor"], config["checkpoint"]["mode"]) == ("val/cider", "max")
    if name == "captioning_coco":
        assert (trainer["max_epochs"], optimization["warmup_epochs"], data["train_by"]) == (20, 1, "caption")
        assert (optimization["learning_rate"], optimization["betas"]) == (6e-5, [0.99, 0.999])
    else:
        assert model["init_from"] == "runs/captioning_coco/model"
        assert (model["kl_weight"], model["cross_entropy_weight"], data["train_by"]) == (0.0, 0.0, "image")


@pytest.mark.parametrize(
    ("files", "share"),
    [(["vqa_vqav2"], 1.0), (["vqa_vqav2", "overlays/vqav2_1percent"], 0.01), (["vqa_karpathy"], 1.0)],
)
def test_table_11_vqa(files, share):
    model, optimization, data, trainer = arguments(parsed("fit", *files))
    assert (model["clip"], model["image_features"], model["bart"]) == (None, None, None)  # those of init_from
    assert data["train_batch_size"] * trainer["devices"] * trainer["accumulate_grad_batches"] == 32
    assert (trainer["max_epochs"], optimization["warmup_epochs"]) == (10, 1)
    decoding = model["decoding"]
    assert (model["num_masks"], decoding["num_beams"], decoding["max_new_tokens"]) == (2, 1, 10)
    assert (decoding["reading"], model["icti_reduction"]) == ("forced", "sum")
    assert optimization["betas"] == [0.99, 0.999]
    assert (optimization["learning_rate"], optimization["weight_decay"], optimization["eps"]) == (6e-5, 0.01, 1e-8)
    assert trainer["gradient_clip_val"] == 5.0
    assert (data["train_share"], data["target"]) == (share, "drawn")
    splits = [data["split"], data["val"] and data["val"]["split"], data["train"]["split"]]
    parts = [f"data/vqav2/karpathy_{part}.json" for part in ("test", "val", "train")]
    assert splits == (parts if files == ["vqa_karpathy"] else [None] * 3)
    # extensions beyond the paper are off
    assert (model["caption_first"], model["candidates"]) == (False, None)


RN50X16_ROWS = {
    "captioning_coco": "distill_rn50x16",
    "scst_coco": "captioning_coco_rn50x16",
    "vqa_vqav2": "distill_rn50x16",
    **dict.fromkeys(ZEROSHOT, "distill_rn50x16"),
}


@pytest.mark.parametrize(("name", "start"), RN50X16_ROWS.items())
def test_rows_of_rn50x16_differ_in_model_and_directory_alone(name, start):
    command = "test" if name in ZEROSHOT else "fit"
    plain, config = parsed(command, name), parsed(command, name, f"overlays/rn50x16_{name}")
    assert config["model"]["init_args"].pop("init_from") == f"runs/{start}/model"
    assert plain["model"]["init_args"].pop("init_from") != f"runs/{start}/model"
    directory = plain.pop("run_dir").replace("runs/zeroshot/", "runs/zeroshot_rn50x16/")
    assert config.pop("run_dir") == (directory if name in ZEROSHOT else f"{directory}_rn50x16")
    assert config == plain


def test_the_sample_worlds_paper_configuration():
    """It is the paper's in all but the sizes, the rates and the masks of the prompt."""
    sample = parsed("fit", "sample/distill", "sample/paper")
    paper = parsed("fit", "distill", "overlays/rn50x16")
    of_sample = {"clip", "bart", "num_masks", "optimization"}
    model, expected = (
        {key: value for key, value in config["model"]["init_args"].items() if key not in of_sample}
        for config in (sample, paper)
    )
    assert model == expected
    for name in ("masking", "text_corpus"):
        assert sample["data"]["init_args"][name] == paper["data"]["init_args"][name], name
    for name in ("weight_decay", "eps", "optimizer"):
        assert sample["model"]["init_args"]["optimization"][name] == paper["model"]["init_args"]["optimization"][name]
    assert sample["trainer"]["gradient_clip_val"] == paper["trainer"]["gradient_clip_val"]


def test_summaries_are_trained_and_decoded_as_barts():
    config = parsed("fit", "summarization_xsum")
    model, optimization, data, trainer = arguments(config)
    # fairseq, examples/bart/README.summarization.md, with "TOTAL_NUM_UPDATES=15000 UPDATE_FREQ=2 for Xsum"
    assert (optimization["learning_rate"], optimization["warmup_steps"], trainer["max_steps"]) == (3e-5, 500, 15_000)
    assert (optimization["optimizer"], optimization["total_steps"], trainer["max_epochs"]) == ("adamw", None, None)
    assert (optimization["betas"], optimization["eps"], optimization["weight_decay"]) == ([0.9, 0.999], 1e-8, 0.01)
    assert (model["label_smoothing"], model["dropout"], model["attention_dropout"]) == (0.1, 0.1, 0.1)
    assert (data["max_tokens"], trainer["devices"], trainer["accumulate_grad_batches"]) == (2048, 8, 2)
    assert (trainer["gradient_clip_val"], trainer["precision"]) == (0.1, "16-mixed")
    assert (data["source"], data["max_length"]) == ("EdinburghNLP/xsum", 1024)
    # fairseq, examples/bart/summarize.py: max_len_b=60 and min_len=10 count neither the start nor the end token
    decoding = {"num_beams": 6, "length_penalty": 1.0, "no_repeat_ngram_size": 3, "early_stopping": True}
    assert model["decoding"] == decoding | {"max_length": 60 + 2, "min_length": 10 + 1}


def test_appendix_a_glue():
    _, optimization, data, trainer = arguments(parsed("fit", "glue"))
    assert (optimization["optimizer"], trainer["max_epochs"], optimization["warmup_epochs"]) == ("lamb", 10, 1)
    assert optimization["total_steps"] is None  # the rate falls to 0 at the last step
    # one point of the grid; tests/commands/test_grid.py holds all
    assert (data["batch_size"], optimization["learning_rate"], optimization["weight_decay"]) == (32, 5e-4, 1e-4)
    assert (data["evaluated"], trainer["precision"]) == ("dev", "32-true")


def test_data_follow_the_model():
    """Its CLIP, its BART and its task, which are linked, so not to be named twice."""
    config = parsed("fit", "distill", extra=["--model.clip=RN101", "--model.bart=mine"])
    assert (config["model"]["init_args"]["clip"], config["model"]["init_args"]["bart"]) == ("RN101", "mine")
    assert {"clip", "bart"}.isdisjoint(config["data"]["init_args"])
    assert "model" not in parsed("fit", "summarization_xsum")["data"]["init_args"]
    assert "task" not in parsed("fit", "glue")["data"]["init_args"]


def test_loggers_are_added_and_replaced():
    def kinds(config):
        loggers = config["trainer"]["logger"]
        return [logger["class_path"].split(".")[-1] for logger in (loggers if isinstance(loggers, list) else [loggers])]

    assert kinds(parsed("fit", "distill")) == ["TensorBoardLogger", "CSVLogger"]
    assert kinds(parsed("test", "zeroshot_coco")) == ["CSVLogger"]
    assert kinds(parsed("fit", "distill", "overlays/wandb")) == ["TensorBoardLogger", "CSVLogger", "WandbLogger"]
    extra = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=mine"]
    assert kinds(parsed("fit", "distill", extra=extra)) == ["CSVLogger"]


@pytest.mark.parametrize("key", ["model.init_args.ttdm_wait", "model.ttdm_wait", "checkpoint.moniter", "export.folder"])
def test_a_misspelt_key_fails(capsys, key):
    with pytest.raises(SystemExit) as ended:
        run(["fit", f"--config={CONFIGS / 'distill.yaml'}", f"--{key}=1", "--print_config"])
    assert ended.value.code == 2
    assert f"unknown key {key.replace('model.ttdm', 'model.init_args.ttdm')}" in capsys.readouterr().err
