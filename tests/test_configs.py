"""Every configuration file parses, and says what the paper says."""

from pathlib import Path

import pytest
import yaml

from vlkd_pl.commands.train import run

CONFIGS = Path(__file__).parents[1] / "configs"
COMPLETE = sorted(path for path in CONFIGS.rglob("*.yaml") if "model:\n  class_path:" in path.read_text())
OVERLAYS = {
    "overlays/wandb.yaml": "distill.yaml",
    "overlays/ddp.yaml": "distill.yaml",
    "overlays/fsdp.yaml": "distill.yaml",
    "overlays/rn50x16_zeroshot.yaml": "zeroshot_coco.yaml",
    "overlays/rn50x16_captioning_coco.yaml": "captioning_coco.yaml",
    "overlays/rn50x16_scst_coco.yaml": "scst_coco.yaml",
    "overlays/rn50x16_vqa_vqav2.yaml": "vqa_vqav2.yaml",
    "sample/before.yaml": "sample/distill.yaml",
    "sample/after.yaml": "sample/distill.yaml",
    "sample/paper.yaml": "sample/distill.yaml",
    "sample/bart_questions.yaml": "sample/bart.yaml",
    "sample/zeroshot_coco.yaml": "zeroshot_coco.yaml",
    "sample/zeroshot_nocaps.yaml": "zeroshot_nocaps.yaml",
    "sample/zeroshot_vqav2.yaml": "zeroshot_vqav2.yaml",
    "sample/zeroshot_okvqa.yaml": "zeroshot_okvqa.yaml",
    "sample/retrieval_coco.yaml": "retrieval_coco.yaml",
    "sample/classification.yaml": "classification.yaml",
    "sample/predict_captions.yaml": "predict_captions.yaml",
    "sample/captioning_coco.yaml": "captioning_coco.yaml",
    "sample/scst_coco.yaml": "scst_coco.yaml",
    "sample/glue.yaml": "glue.yaml",
    "sample/summarization_xsum.yaml": "summarization_xsum.yaml",
    "sample/vqa_karpathy.yaml": "vqa_karpathy.yaml",
    "sample/vqa_vqav2.yaml": "vqa_vqav2.yaml",
    "sample/vqa_vqav2_1percent.yaml": "vqa_vqav2_1percent.yaml",
}


def parsed(capsys, *paths, extra=()):
    """What the command line makes of configuration files, without building anything."""
    configs = [f"--config={CONFIGS / path}" for path in paths]
    with pytest.raises(SystemExit) as ended:
        run(["fit", *configs, *extra, "--print_config"])
    assert ended.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_every_file_is_known():
    files = {str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.yaml")}
    assert files == {str(path.relative_to(CONFIGS)) for path in COMPLETE} | OVERLAYS.keys()


@pytest.mark.parametrize("path", COMPLETE, ids=lambda path: path.name)
def test_complete_configs_parse(capsys, path):
    config = parsed(capsys, path)
    assert config["model"]["class_path"].startswith("vlkd_pl.")
    assert config["data"]["class_path"].startswith("vlkd_pl.")


@pytest.mark.parametrize(("overlay", "base"), OVERLAYS.items())
def test_overlays_parse_and_name_no_module(capsys, overlay, base):
    content = yaml.safe_load((CONFIGS / overlay).read_text())
    assert all("class_path" not in content.get(part, {}) for part in ("model", "data"))
    assert parsed(capsys, base, overlay) != parsed(capsys, base)


@pytest.mark.parametrize(
    ("path", "clip", "features", "batch_size"),
    [("distill.yaml", "ViT-B/16", "pooled", 576), ("distill_rn50x16.yaml", "RN50x16", "patches", 512)],
)
def test_table_10(capsys, path, clip, features, batch_size):
    config = parsed(capsys, path)
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    assert (model["clip"], model["image_features"], model["bart"]) == (clip, features, "facebook/bart-large")
    assert data["batch_size"] * trainer["devices"] * trainer["accumulate_grad_batches"] == batch_size
    assert model["optimization"]["betas"] == [0.99, 0.999]
    assert (
        model["optimization"]["learning_rate"],
        model["optimization"]["weight_decay"],
        model["optimization"]["eps"],
    ) == (5e-5, 0.01, 1e-6)
    assert model["temperature"] == 0.07
    assert (model["optimization"]["warmup_steps"], trainer["max_steps"]) == (12_000, 200_000)
    assert (trainer["accumulate_grad_batches"], trainer["gradient_clip_val"]) == (2, 5.0)
    assert (trainer["devices"], trainer["strategy"], trainer["precision"]) == (8, "ddp", "16-mixed")
    # Sections 3.2.3 and 4.3.1
    assert (model["ttdm_weight"], model["itcl_weight"], model["icti_weight"]) == (1e3, 1, 1)
    # γ makes up for the mean, which the equation does not have; Eq. 2 is a sum
    assert (model["ttdm_reduction"], model["icti_reduction"]) == ("mean", "sum")
    assert (data["masking"]["mask_share"], data["masking"]["mean_span_length"], model["num_masks"]) == (0.15, 3.0, 6)
    # what the paper does not have is off
    assert (model["start"], data["text_corpus"]) == ("random", None)


@pytest.mark.parametrize("name", ["captioning_coco", "scst_coco"])
def test_table_11_captioning(capsys, name):
    config = parsed(capsys, f"{name}.yaml")
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    assert (model["clip"], model["image_features"], model["bart"]) == (None, None, None)  # those of init_from
    assert data["train_batch_size"] * trainer["devices"] * trainer["accumulate_grad_batches"] == 40
    assert (model["num_masks"], model["decoding"]["num_beams"]) == (6, 6)
    assert (model["optimization"]["weight_decay"], model["optimization"]["eps"], trainer["gradient_clip_val"]) == (
        0.01,
        1e-8,
        5.0,
    )
    assert (data["split"], data["val"]["split"], data["train"]["split"]) == ("test", "val", ["train", "restval"])
    checkpoints = next(each for each in trainer["callbacks"] if each["class_path"].endswith("ModelCheckpoint"))
    assert (checkpoints["init_args"]["monitor"], checkpoints["init_args"]["mode"]) == ("val/cider", "max")
    if name == "captioning_coco":
        assert (trainer["max_epochs"], model["optimization"]["warmup_epochs"], data["train_by"]) == (20, 1, "caption")
        assert (model["optimization"]["learning_rate"], model["optimization"]["betas"]) == (6e-5, [0.99, 0.999])
    else:
        assert model["init_from"] == "runs/captioning_coco/model"
        assert (model["kl_weight"], model["cross_entropy_weight"], data["train_by"]) == (0.0, 0.0, "image")


@pytest.mark.parametrize(("name", "share"), [("vqav2", 1.0), ("vqav2_1percent", 0.01), ("karpathy", 1.0)])
def test_table_11_vqa(capsys, name, share):
    config = parsed(capsys, f"vqa_{name}.yaml")
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    assert (model["clip"], model["image_features"], model["bart"]) == (None, None, None)  # those of init_from
    assert data["train_batch_size"] * trainer["devices"] * trainer["accumulate_grad_batches"] == 32
    assert (trainer["max_epochs"], model["optimization"]["warmup_epochs"]) == (10, 1)
    assert (model["num_masks"], model["decoding"]["num_beams"]) == (2, 1)
    assert model["optimization"]["betas"] == [0.99, 0.999]
    assert (
        model["optimization"]["learning_rate"],
        model["optimization"]["weight_decay"],
        model["optimization"]["eps"],
    ) == (6e-5, 0.01, 1e-8)
    assert trainer["gradient_clip_val"] == 5.0
    assert data["train_share"] == share
    files = [data["split"], data["val"] and data["val"]["split"], data["train"]["split"]]
    parts = [f"data/vqav2/karpathy_{part}.json" for part in ("test", "val", "train")]
    assert files == (parts if name == "karpathy" else [None] * 3)
    # what the paper does not have is off
    assert (model["caption_first"], model["candidates"]) == (False, None)


RN50X16_ROWS = {
    "captioning_coco": "distill_rn50x16",
    "scst_coco": "captioning_coco_rn50x16",
    "vqa_vqav2": "distill_rn50x16",
    "zeroshot_coco": "distill_rn50x16",
    "zeroshot_nocaps": "distill_rn50x16",
    "zeroshot_vqav2": "distill_rn50x16",
    "zeroshot_okvqa": "distill_rn50x16",
}


@pytest.mark.parametrize(("name", "start"), RN50X16_ROWS.items())
def test_rows_of_rn50x16(capsys, name, start):
    """Each starts from the run before it, writes to directories of its own, and is else the row of ViT-B/16."""
    plain = parsed(capsys, f"{name}.yaml")
    overlay = name if "zeroshot" not in name else "zeroshot"
    config = parsed(capsys, f"{name}.yaml", f"overlays/rn50x16_{overlay}.yaml")
    assert config["model"]["init_args"].pop("init_from") == f"runs/{start}/model"
    assert plain["model"]["init_args"].pop("init_from") != f"runs/{start}/model"
    loggers = [config["trainer"].pop("logger"), plain["trainer"].pop("logger")]
    places = [
        {
            (each["init_args"]["save_dir"], each["init_args"]["name"])
            for each in (one if isinstance(one, list) else [one])
        }
        for one in loggers
    ]
    assert places[0].isdisjoint(places[1])
    if overlay == "zeroshot":
        assert {folder for folder, _ in places[0]} == {"runs/zeroshot_rn50x16"}
    else:
        assert places[0] == {("runs", f"{name}_rn50x16")}
        assert config["trainer"].pop("default_root_dir") == f"runs/{name}_rn50x16"
        del plain["trainer"]["default_root_dir"]
    assert config == plain


@pytest.mark.parametrize("num_masks", [5, 6, 7, 8])
def test_table_8(capsys, num_masks):
    extra = [f"--model.init_args.num_masks={num_masks}", f"--trainer.logger.init_args.name=coco_{num_masks}_masks"]
    config = parsed(capsys, "zeroshot_coco.yaml", "overlays/rn50x16_zeroshot.yaml", extra=extra)
    assert config["model"]["init_args"]["num_masks"] == num_masks
    logger = config["trainer"]["logger"]["init_args"]
    assert (logger["save_dir"], logger["name"]) == ("runs/zeroshot_rn50x16", f"coco_{num_masks}_masks")


def test_the_sample_worlds_paper_configuration(capsys):
    """It is the paper's in all but the sizes, the rates and the masks of the prompt."""
    sample = parsed(capsys, "sample/distill.yaml", "sample/paper.yaml")
    paper = parsed(capsys, "distill_rn50x16.yaml")
    of_sample = {"clip", "bart", "learning_rate", "projection_learning_rate", "betas", "warmup_steps", "num_masks"}
    model, expected = (
        {
            k: v
            for k, v in (init_args | init_args["optimization"] | {"optimization": None}).items()
            if k not in of_sample
        }
        for init_args in (config["model"]["init_args"] for config in (sample, paper))
    )
    assert model == expected
    data, expected = (each["data"]["init_args"] for each in (sample, paper))
    for name in ("masking", "text_corpus"):
        assert data[name] == expected[name], name
    assert sample["trainer"]["gradient_clip_val"] == paper["trainer"]["gradient_clip_val"]


def test_summaries_are_trained_and_decoded_as_barts_own(capsys):
    config = parsed(capsys, "summarization_xsum.yaml")
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    # fairseq, examples/bart/README.summarization.md, with "TOTAL_NUM_UPDATES=15000 UPDATE_FREQ=2 for Xsum"
    assert (model["optimization"]["learning_rate"], model["optimization"]["warmup_steps"], trainer["max_steps"]) == (
        3e-5,
        500,
        15_000,
    )
    assert (model["optimization"]["optimizer"], model["optimization"]["total_steps"], trainer["max_epochs"]) == (
        "adamw",
        None,
        None,
    )
    assert (model["optimization"]["betas"], model["optimization"]["eps"], model["optimization"]["weight_decay"]) == (
        [0.9, 0.999],
        1e-8,
        0.01,
    )
    assert (model["label_smoothing"], model["dropout"], model["attention_dropout"]) == (0.1, 0.1, 0.1)
    assert (data["max_tokens"], trainer["devices"], trainer["accumulate_grad_batches"]) == (2048, 8, 2)
    assert (trainer["gradient_clip_val"], trainer["precision"]) == (0.1, "16-mixed")
    assert (data["source"], data["max_length"]) == ("EdinburghNLP/xsum", 1024)
    # fairseq, examples/bart/summarize.py: max_len_b=60 and min_len=10 count neither the start nor the end token
    decoding = {"num_beams": 6, "length_penalty": 1.0, "no_repeat_ngram_size": 3, "early_stopping": True}
    assert model["decoding"] == decoding | {"max_length": 60 + 2, "min_length": 10 + 1}


def test_summaries_are_read_with_the_models_tokenizer(capsys):
    config = parsed(capsys, "summarization_xsum.yaml", extra=["--model.init_args.model=facebook/bart-large"])
    assert config["model"]["init_args"]["model"] == "facebook/bart-large"
    assert "model" not in config["data"]["init_args"]  # linked


def test_appendix_a_glue(capsys):
    config = parsed(capsys, "glue.yaml")
    model, data, trainer = config["model"]["init_args"], config["data"]["init_args"], config["trainer"]
    assert (model["optimization"]["optimizer"], trainer["max_epochs"], model["optimization"]["warmup_epochs"]) == (
        "lamb",
        10,
        1,
    )
    assert model["optimization"]["total_steps"] is None  # the rate falls to 0 at the last step
    # one point of the grid; tests/commands/test_grid.py holds all
    assert (data["batch_size"], model["optimization"]["learning_rate"], model["optimization"]["weight_decay"]) == (
        32,
        5e-4,
        1e-4,
    )
    assert data["evaluated"] == "dev"
    assert trainer["precision"] == "32-true"


def test_data_follow_the_models_clip_and_bart(capsys):
    config = parsed(capsys, "distill.yaml", extra=["--model.init_args.clip=RN101", "--model.init_args.bart=mine"])
    assert config["model"]["init_args"]["clip"] == "RN101"
    assert {"clip", "bart"}.isdisjoint(config["data"]["init_args"])  # linked, so not to be given twice


def test_a_misspelt_key_fails(capsys):
    with pytest.raises(SystemExit) as ended:
        run(["fit", f"--config={CONFIGS / 'distill.yaml'}", "--model.init_args.ttdm_wait=1", "--print_config"])
    assert ended.value.code == 2
    assert "ttdm_wait" in capsys.readouterr().err
