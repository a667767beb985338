"""CaptioningModule through the command line: COCO's and NoCaps' files, their scores and their predictions."""

import pytest
from modules.evaluations import arguments, written

from vlkd_pl.cli import main
from vlkd_pl.commands.train import run
from vlkd_pl.metrics.captions import caption_scores
from vlkd_pl.models.decoding import Decoding, caption

IN_PROCESS = "[BLEU,ROUGE-L,CIDEr]"


def test_coco(world, model_folder, tmp_path, capsys):
    done = run(arguments("zeroshot_coco", world, model_folder, tmp_path, model__init_args__metrics=IN_PROCESS))
    results = written(tmp_path, "predictions.json")
    assert [set(result) for result in results] == [{"image_id", "caption"}] * 6
    assert [result["image_id"] for result in results] == list(range(101, 107))
    samples = done.datamodule.samples
    expected = caption_scores(
        {sample.image_id: sample.references for sample in samples},
        {result["image_id"]: result["caption"] for result in results},
        ["BLEU", "ROUGE-L", "CIDEr"],
    )
    scores = written(tmp_path, "scores.json")["scores"]
    assert scores["cider"] == expected.scores["CIDEr"]
    assert scores["bleu_4"] == expected.scores["BLEU-4"]
    assert scores["rouge_l"] == expected.scores["ROUGE-L"]
    assert float(done.trainer.callback_metrics["test/cider"]) == pytest.approx(scores["cider"])
    for each in written(tmp_path, "scores_per_image.json"):
        assert each["CIDEr"] == expected.per_image[each["image_id"]]["CIDEr"]
        assert set(each) == {"image_id", "caption", *expected.scores}
    printed = capsys.readouterr().out
    assert "6 pictures, of 6 captions are known" in printed
    assert f"\nCIDEr    {scores['cider']:8.3f}\n" in printed
    assert "wandered from the prompt: " in printed
    assert (tmp_path / "panels" / "test_captions_000000.png").is_file()


def test_captions_are_those_of_the_model(world, model_folder, tmp_path):
    options = {"model__init_args__metrics": "[CIDEr]", "model__init_args__decoding__num_beams": 2}
    done = run(arguments("zeroshot_coco", world, model_folder, tmp_path, **options))
    model = done.model.model
    batch = next(iter(done.datamodule.test_dataloader()))
    found = caption(model, model.clip.encode_image(batch["image"]), 3, Decoding(2, max_new_tokens=5))
    assert [texts[0].text for texts in found] == [
        result["caption"] for result in written(tmp_path, "predictions.json")[:4]
    ]


def test_nocaps_has_a_column_for_each_domain(world, model_folder, tmp_path, capsys):
    run(arguments("zeroshot_nocaps", world, model_folder, tmp_path, model__init_args__metrics=IN_PROCESS))
    scores = written(tmp_path, "scores.json")["scores"]
    domains = ("in-domain", "near-domain", "out-domain")
    assert {f"{domain}/cider" for domain in domains} | {"cider"} <= scores.keys()
    header = next(line for line in capsys.readouterr().out.splitlines() if "near-domain" in line)
    assert header.split() == ["all", *domains]


def test_without_captions_there_are_predictions_for_the_server(world, model_folder, tmp_path, capsys):
    file = world.folder / "nocaps_test_image_info.json"
    run(arguments("zeroshot_nocaps", world, model_folder, tmp_path, data__init_args__annotations=file))
    assert set(written(tmp_path, "scores.json")["scores"]) == {"wandered"}
    assert len(written(tmp_path, "predictions.json")) == 6
    assert "6 pictures, of 0 captions are known" in capsys.readouterr().out


def test_what_cannot_be_computed_is_said(world, model_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    run(arguments("zeroshot_coco", world, model_folder, tmp_path, model__init_args__metrics="[METEOR,CIDEr,SPICE]"))
    printed = capsys.readouterr().out
    assert "METEOR not computed: " in printed
    assert "SPICE not computed: " in printed
    assert "meteor" not in written(tmp_path, "scores.json")["scores"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("data__init_args__annotations", "nowhere.json", "no caption file at nowhere.json"),
        ("data__init_args__images", "nowhere", "no folder of pictures at nowhere"),
        ("data__init_args__split", "tset", "holds no picture of the split tset"),
        ("model__init_args__image_features", "pooled", "was trained with image_features all"),
        ("model__init_args__metrics", "[CIDER]", "there is no 'CIDER': choose from BLEU"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(world, model_folder, tmp_path, capsys, option, value, message):
    assert main(arguments("zeroshot_coco", world, model_folder, tmp_path, **{option: value})) == 1
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_two_processes_test_as_one(world, model_folder, tmp_path):
    """Six pictures on two ranks in batches of four: each counts once."""
    options = {"model__init_args__metrics": "[CIDEr]", "data__init_args__num_samples": 5}
    for name, more in (("one", {}), ("two", {"trainer__devices": 2, "trainer__strategy": "ddp_spawn"})):
        run(arguments("zeroshot_coco", world, model_folder, tmp_path / name, **options, **more))
    one, two = (written(tmp_path / name, "scores.json")["scores"] for name in ("one", "two"))
    assert one == two
    assert written(tmp_path / "one", "predictions.json") == written(tmp_path / "two", "predictions.json")
