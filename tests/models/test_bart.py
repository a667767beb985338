"""Loading of BART and its tokenizer, compared with transformers."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from tiny_models import tiny_bart
from transformers import AutoTokenizer, BartForConditionalGeneration, BertConfig, BertModel, T5Config, T5Model

from vlkd_pl.errors import ModelFileError
from vlkd_pl.models.bart import differs_from, load_bart, load_bart_tokenizer


@pytest.fixture
def folder(bart_folder, tmp_path):
    """A folder with a BART that a test may change."""
    shutil.copytree(bart_folder, tmp_path / "bart_copy")
    return tmp_path / "bart_copy"


def weights_of(folder):
    return safetensors.torch.load_file(folder / "model.safetensors")


def write_weights(folder, weights):
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def same_model(model, expected):
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in expected.named_parameters()]
    torch.testing.assert_close(dict(model.state_dict()), dict(expected.state_dict()), rtol=0, atol=0)


def test_loads_what_transformers_loads(bart_folder):
    model, tokenizer = load_bart(str(bart_folder))
    expected = BartForConditionalGeneration.from_pretrained(bart_folder).float()
    same_model(model, expected)
    assert not model.training
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    assert model.lm_head.weight is model.model.shared.weight is model.model.encoder.embed_tokens.weight
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(bart_folder).get_vocab()
    batch = tokenizer(["a red fish", "two blue boats on the grass"], padding=True, return_tensors="pt")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, expected(**inputs).logits)
        assert torch.equal(model.generate(**inputs, max_length=12), expected.generate(**inputs, max_length=12))


@pytest.mark.parametrize("layout", ["bin", "sharded", "half", "base", "tied_names", "other_heads"])
def test_other_layouts_of_the_same_weights(folder, bart_folder, layout):
    weights = weights_of(folder)
    if layout == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
    elif layout == "sharded":
        names = sorted(weights)
        for number, part in enumerate((names[:9], names[9:])):
            safetensors.torch.save_file({name: weights[name] for name in part}, folder / f"part{number}.safetensors")
        index = {name: f"part{int(number >= 9)}.safetensors" for number, name in enumerate(names)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
        (folder / "model.safetensors").unlink()
    elif layout == "half":
        write_weights(folder, {name: value.half() for name, value in weights.items()})
        same_model(load_bart(str(folder))[0], BartForConditionalGeneration.from_pretrained(folder).float())
        return
    elif layout == "base":  # as BartModel saves it, and bart-base is published
        weights.pop("final_logits_bias", None)
        write_weights(folder, {name.removeprefix("model."): value for name, value in weights.items()})
    elif layout == "tied_names":
        shared = weights["model.shared.weight"]
        names = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
        write_weights(folder, weights | {name: shared.clone() for name in names})
    else:
        write_weights(folder, weights | {"classification_head.dense.weight": torch.zeros(2, 2)})
    same_model(load_bart(str(folder))[0], BartForConditionalGeneration.from_pretrained(bart_folder).float())


def test_a_missing_weight_is_no_random_one(folder):
    weights = weights_of(folder)
    name = "model.decoder.layers.0.fc1.weight"
    write_weights(folder, {key: value for key, value in weights.items() if key != name})
    with pytest.raises(ModelFileError, match=f"lack 1 of a BART's .* first {name}: they are incomplete"):
        load_bart(str(folder))
    write_weights(folder, {key: value for key, value in weights.items() if key != "model.shared.weight"})
    with pytest.raises(ModelFileError, match="lack 4 of a BART's"):
        load_bart(str(folder))


def test_more_layers_or_other_sizes_than_the_configuration_are_refused(folder, bart_folder):
    weights = weights_of(folder)
    more = {name.replace(".0.", ".1."): value.clone() for name, value in weights.items() if ".encoder.layers." in name}
    write_weights(folder, weights | more)
    with pytest.raises(ModelFileError, match=r"hold 16 that a BART of its config\.json does not have"):
        load_bart(str(folder))
    write_weights(folder, weights | {"model.encoder.layernorm_embedding.weight": torch.zeros(5)})
    with pytest.raises(ModelFileError, match=r"layernorm_embedding\.weight in .* has the shape \[5\] .*, not \[32\]"):
        load_bart(str(folder))
    write_weights(folder, weights | {"lm_head.weight": torch.zeros_like(weights["model.shared.weight"])})
    with pytest.raises(ModelFileError, match=r"lm_head\.weight differs from model\.shared\.weight"):
        load_bart(str(folder))


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_other_models_are_refused(folder, kind):
    sizes = {"vocab_size": 30, "num_hidden_layers": 1, "num_layers": 1, "d_model": 8, "hidden_size": 8, "d_kv": 4}
    heads = {"num_heads": 2, "num_attention_heads": 2, "d_ff": 8, "intermediate_size": 8}
    model = T5Model(T5Config(**sizes, **heads)) if kind == "t5" else BertModel(BertConfig(**sizes, **heads))
    model.save_pretrained(folder)
    message = f"config.json has the model_type '{kind}', not 'bart'"
    with pytest.raises(ModelFileError, match=message):
        load_bart(str(folder))
    with pytest.raises(ModelFileError, match=message):
        load_bart_tokenizer(str(folder))


def test_a_folder_needs_a_tokenizer_that_fits(folder, bart_folder):
    change(folder / "config.json", vocab_size=300)
    with pytest.raises(ModelFileError, match=r"has \d+ tokens, but its BART embeds 300"):
        load_bart_tokenizer(str(folder))
    change(folder / "config.json", vocab_size=len(weights_of(folder)["model.shared.weight"]), pad_token_id=5)
    with pytest.raises(ModelFileError, match=r"pad_token_id is 1 in the tokenizer and 5 in config\.json"):
        load_bart(str(folder))
    change(folder / "config.json", pad_token_id=1)
    load_bart(str(folder))
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps({name: value for name, value in tokens.items() if name != "mask_token"})
    )
    for path in folder.glob("*token*.json"):
        path.unlink()
    for path in folder.glob("vocab.json"):
        path.unlink()
    for load in (load_bart, load_bart_tokenizer):
        with pytest.raises(ModelFileError, match="holds no tokenizer: it needs tokenizer"):
            load(str(folder))


def test_a_tokenizer_alone_is_enough_for_the_data(folder):
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    assert load_bart_tokenizer(str(folder)).mask_token == "<mask>"


def test_what_differs_is_named(bart_folder, tmp_path):
    model, tokenizer = load_bart(str(bart_folder))
    assert differs_from(str(bart_folder), model, tokenizer) == ""
    shutil.copytree(bart_folder, tmp_path / "wide")
    tiny_bart(model.config.vocab_size, width=48).save_pretrained(tmp_path / "wide")
    assert differs_from(str(tmp_path / "wide"), model, tokenizer) == "d_model 48 instead of 32"
