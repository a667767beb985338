"""The card of a model folder: what it states is true of the model, and its code runs."""

import re

import pytest
from huggingface_hub import ModelCard
from PIL import Image
from tiny_models import tiny_clip

from vlkd_pl.cli import main
from vlkd_pl.clip.frozen import FrozenCLIP
from vlkd_pl.models.bart import load_bart
from vlkd_pl.models.card import model_card
from vlkd_pl.models.vlkd import VLKDModel
from vlkd_pl.sample import sample_model
from vlkd_pl.sample.scenes import COLORS, LIMITS, OBJECTS, PLACES
from vlkd_pl.sample.tokenizers import clip_merges
from vlkd_pl.training.export import _unsharded


@pytest.fixture(scope="module")
def bart(bart_folder):
    return load_bart(str(bart_folder))


def rows(card):
    """The card's table."""
    return dict(re.findall(r"^\| ([\w ]+) \| (.+) \|$", card.text, re.MULTILINE))


@pytest.mark.parametrize(
    ("kind", "image_features", "sees"),
    [("resnet", "pooled", "ResNet, images of 64 pixels"), ("vit", "patches", "ViT with patches of 16 pixels")],
)
def test_parts(bart, kind, image_features, sees):
    model = VLKDModel(FrozenCLIP(tiny_clip(kind), clip_merges()), *bart, image_features)
    table = rows(model_card(model))
    assert table["CLIP"].startswith(sees)
    assert table["CLIP"].endswith(f"32 dimensions; fingerprint of its weights `{model.clip.fingerprint}`")
    assert table["BART"] == f"1 + 1 layers, width 32, {bart[0].config.vocab_size} tokens"
    assert table["image features"].startswith(f"`{image_features}`: ")


def test_a_card_states_nothing_that_is_unknown(bart, tmp_path):
    VLKDModel(FrozenCLIP(tiny_clip(), clip_merges()), *bart).save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("vlkd_pl", "image-to-text")
    assert not re.search("More Information Needed|pushed to the Hub|[Ll]imits", card.text)
    assert "arxiv.org/abs/2203.06386" in card.text
    assert "CLIP's and BART's weights have licences of their publishers" in card.text


def test_the_use_in_a_card_runs(model_folder, monkeypatch, capsys):
    card = ModelCard.load(model_folder / "README.md")
    Image.new("RGB", (9, 9)).save(model_folder / "image.jpg")
    monkeypatch.chdir(model_folder)
    ((code,), (command,)) = (re.findall(rf"```{kind}\n(.*?)\n```", card.text, re.S) for kind in ("python", "shell"))
    exec(code, {})
    assert len(code.splitlines()) == 3
    assert capsys.readouterr().out
    assert main(command.split()[1:]) == 0
    assert capsys.readouterr().out.startswith("image.jpg: ")


def test_limits_reach_every_model_that_starts_from_a_clip(tmp_path):
    """Those of the distilled model, and those of a model that is fine-tuned from its folder and exported."""
    sample_model().save_pretrained(tmp_path / "distilled")
    _unsharded(VLKDModel.from_pretrained(tmp_path / "distilled")).save_pretrained(tmp_path / "finetuned")
    model = VLKDModel.from_pretrained(tmp_path / "finetuned")
    assert model.clip.limits == LIMITS
    assert f"\n## Limits\n\n{LIMITS}\n" in (tmp_path / "finetuned" / "README.md").read_text()


def test_limits_of_the_sample_world():
    assert sample_model().clip.limits == LIMITS
    assert len(OBJECTS) == 12
    assert set(re.findall(r"\w+", LIMITS)) >= {*OBJECTS, *COLORS, *PLACES, "twelve", "photograph"}
