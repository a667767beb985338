"""Every configuration file parses, and says what the paper says."""

from pathlib import Path

import pytest
import yaml

from vlkd_pl.commands.train import run

CONFIGS = Path(__file__).parents[1] / "configs"
COMPLETE = sorted(path for path in CONFIGS.rglob("*.yaml") if "class_path: vlkd_pl" in path.read_text())
OVERLAYS = {
    "overlays/wandb.yaml": "distill.yaml",
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
    assert model["betas"] == [0.99, 0.999]
    assert (model["learning_rate"], model["weight_decay"], model["eps"]) == (5e-5, 0.01, 1e-6)
    assert model["temperature"] == 0.07
    assert (model["warmup_steps"], trainer["max_steps"]) == (12_000, 200_000)
    assert (trainer["accumulate_grad_batches"], trainer["gradient_clip_val"]) == (2, 5.0)
    assert (trainer["devices"], trainer["strategy"], trainer["precision"]) == (8, "ddp", "16-mixed")
    # Sections 3.2.3 and 4.3.1
    assert (model["ttdm_weight"], model["itcl_weight"], model["icti_weight"]) == (1e3, 1, 1)
    assert (data["mask_share"], data["mean_span_length"], model["num_masks"]) == (0.15, 3.0, 6)
    # what the paper does not have is off
    assert (model["start"], data["text_corpus"]) == ("random", None)


def test_data_follow_the_models_clip_and_bart(capsys):
    config = parsed(capsys, "distill.yaml", extra=["--model.init_args.clip=RN101", "--model.init_args.bart=mine"])
    assert config["model"]["init_args"]["clip"] == "RN101"
    assert {"clip", "bart"}.isdisjoint(config["data"]["init_args"])  # linked, so not to be given twice


def test_a_misspelt_key_fails(capsys):
    with pytest.raises(SystemExit) as ended:
        run(["fit", f"--config={CONFIGS / 'distill.yaml'}", "--model.init_args.ttdm_wait=1", "--print_config"])
    assert ended.value.code == 2
    assert "ttdm_wait" in capsys.readouterr().err
