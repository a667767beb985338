"""VLKDModel: its equations and its folder."""

import itertools
from contextlib import suppress

import pytest
import torch
from killing import Killed, kill_at
from tiny_models import tiny_clip
from torch import nn
from torch.nn.functional import normalize
from transformers import AutoTokenizer, BartForConditionalGeneration
from transformers.models.bart.modeling_bart import shift_tokens_right

from vlkd_pl.clip.frozen import FrozenCLIP
from vlkd_pl.errors import ModelFileError
from vlkd_pl.models.decoding import caption
from vlkd_pl.models.vlkd import VLKDModel, mean_pooled

TEXTS = ["a red fish on the grass", "two blue boats", "a tree left of a house at night"]


@pytest.fixture
def model(clip_folder, bart_folder):
    """A small model in evaluation mode."""
    torch.manual_seed(2)
    return VLKDModel.load(str(clip_folder), str(bart_folder), "patches").eval()


def encoded(model, texts=TEXTS):
    batch = model.tokenizer(texts, padding=True, return_tensors="pt")
    return batch["input_ids"], batch["attention_mask"]


def image_tokens(model, num=3):
    return model.clip.encode_image(torch.randn(num, 3, 64, 64, generator=torch.Generator().manual_seed(0)))


def without_projections(model):
    model.text_projection = model.text_back_projection = nn.Identity()
    return model


def test_without_image_and_projections_it_is_bart(model, bart_folder):
    bart = BartForConditionalGeneration.from_pretrained(bart_folder).float().eval()
    ids, mask = encoded(model)
    labels = ids.masked_fill(mask == 0, -100)
    logits = without_projections(model).decode(*model.condition(model.encode_text(ids, mask), mask), labels)
    torch.testing.assert_close(logits, bart(input_ids=ids, attention_mask=mask, labels=labels).logits)


def test_embedding_against_a_loop(model):
    ids, mask = encoded(model)
    features = model.encode_text(ids, mask)
    embedding = model.embed_text(features, mask)
    for row in range(len(ids)):
        real = [features[row, i] for i in range(ids.shape[1]) if mask[row, i]]
        projected = model.text_projection.weight @ (sum(real) / len(real))
        torch.testing.assert_close(embedding[row], projected / projected.norm(), rtol=1e-4, atol=1e-6)


def test_strings_are_embedded_as_their_ids(model):
    texts = [*TEXTS, "a tree", "two blue boats"]
    together = model.embed_texts(texts, batch_size=2)
    for text, embedding in zip(texts, together, strict=True):
        torch.testing.assert_close(
            embedding, model.embed_text(model.encode_text(*encoded(model, [text])), encoded(model, [text])[1])[0]
        )
    assert not together.requires_grad
    assert model.embed_texts(["a red fish " * 200]).isfinite().all()


def test_padding_changes_no_embedding(model):
    ids, mask = encoded(model)
    together = model.embed_text(model.encode_text(ids, mask), mask)
    for row, text in enumerate(TEXTS):
        alone_ids, alone_mask = encoded(model, [text])
        alone = model.embed_text(model.encode_text(alone_ids, alone_mask), alone_mask)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-4, atol=1e-5)


def test_embedding_is_float32_under_autocast(model):
    ids, mask = encoded(model)
    with torch.autocast("cpu", torch.bfloat16):
        features = model.encode_text(ids, mask)
        embedding = model.embed_text(features.bfloat16(), mask)
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(3))


@pytest.mark.parametrize(("kind", "used"), [("pooled", slice(0, 1)), ("patches", slice(1, None)), ("all", slice(None))])
def test_condition_is_eq_1(model, kind, used):
    model.image_features = kind
    ids, mask = encoded(model)
    features, tokens = model.encode_text(ids, mask), image_tokens(model)
    condition, condition_mask = model.condition(features, mask, tokens)
    for row in range(3):
        image = torch.stack([model.image_projection.weight @ v for v in tokens[row, used]])
        text = torch.stack(
            [model.text_back_projection.weight @ (model.text_projection.weight @ e) for e in features[row]]
        )
        torch.testing.assert_close(condition[row], torch.cat([image, text]), rtol=1e-4, atol=1e-5)
        assert condition_mask[row].tolist() == [1] * len(image) + mask[row].tolist()


def test_each_image_token_becomes_a_prefix(clip_folder, bart_folder):
    """With a prefix of K tokens, K maps of W_i read each image token, in order."""
    model = VLKDModel.load(str(clip_folder), str(bart_folder), "patches", prefix_length=3).eval()
    assert model.prefix_length == 3
    ids, mask = encoded(model)
    features, tokens = model.encode_text(ids, mask), image_tokens(model)
    condition, condition_mask = model.condition(features, mask, tokens)
    maps = model.image_projection.weight.chunk(3)
    num_patches = tokens.shape[1] - 1
    for row in range(3):
        image = torch.stack([part @ v for v in tokens[row, 1:] for part in maps])
        torch.testing.assert_close(condition[row, : 3 * num_patches], image, rtol=1e-4, atol=1e-5)
        assert condition_mask[row].tolist() == [1] * 3 * num_patches + mask[row].tolist()


def test_closed_form_start_breaks_the_symmetry_of_a_prefix(clip_folder, bart_folder):
    model = VLKDModel.load(str(clip_folder), str(bart_folder), prefix_length=4)
    source = torch.randn(500, 32)
    model.initialize_from_text(source, normalize(source @ torch.randn(32, 32), dim=-1), mean_feature_norm=5.0)
    maps = model.image_projection.weight.chunk(4)
    for number, one in enumerate(maps):
        for other in maps[:number]:
            cosine = (one * other).sum() / one.norm() / other.norm()
            assert 0.5 < cosine < 0.95


def test_decode_starts_from_barts_start_token(model):
    labels = torch.tensor([[0, 9, 8, 2, -100]])
    assert shift_tokens_right(labels, 1, 2).tolist() == [[2, 0, 9, 8, 2]]
    ids, mask = encoded(model, TEXTS[:1])
    condition = model.condition(model.encode_text(ids, mask), mask)
    logits = model.decode(*condition, labels)
    later = labels.clone()
    later[0, 2] = 11
    torch.testing.assert_close(logits[:, :3], model.decode(*condition, later)[:, :3])  # no position sees its own target
    assert (logits[:, 3] - model.decode(*condition, later)[:, 3]).abs().max() > 1e-4


@pytest.mark.parametrize("clip_dim", [8, 32, 48])
def test_w_e_prime_is_the_pseudo_inverse(bart_folder, clip_dim):
    bart = BartForConditionalGeneration.from_pretrained(bart_folder)
    frozen = FrozenCLIP(tiny_clip())
    frozen.clip.text_projection = nn.Parameter(torch.zeros(64, clip_dim), requires_grad=False)
    model = VLKDModel(frozen, bart, AutoTokenizer.from_pretrained(bart_folder))
    forth, back = model.text_projection.weight.double(), model.text_back_projection.weight.double()
    # the four conditions of Moore and Penrose
    for matrix, expected in ((forth @ back @ forth, forth), (back @ forth @ back, back)):
        torch.testing.assert_close(matrix, expected, rtol=1e-4, atol=1e-5)
    for product in (forth @ back, back @ forth):
        torch.testing.assert_close(product, product.T, rtol=1e-4, atol=1e-5)


def test_closed_form_start_finds_a_planted_map(model):
    generator = torch.Generator().manual_seed(3)
    planted = torch.randn(32, 32, generator=generator)
    source = torch.randn(500, 32, generator=generator)
    model.initialize_from_text(source, source @ planted.T, mean_feature_norm=5.0, ridge=1e-8)
    projection = model.text_projection.weight.data
    torch.testing.assert_close(projection / projection.norm(), planted / planted.norm(), rtol=1e-3, atol=1e-5)
    back = model.text_back_projection.weight
    torch.testing.assert_close(back @ projection, torch.eye(32), rtol=0, atol=1e-3)
    assert back.norm().item() == pytest.approx(projection.norm().item(), rel=1e-3)
    # W_i is the inverse map with the requested norm
    inverse = torch.linalg.inv(planted)
    image = model.image_projection.weight.data
    torch.testing.assert_close(image / image.norm(), inverse / inverse.norm(), rtol=1e-2, atol=1e-4)
    assert (source @ planted.T @ image.T).norm(dim=-1).mean().item() == pytest.approx(5.0, rel=1e-3)


def test_closed_form_start_keeps_what_texts_do_not_tell(model):
    """W'_e W_e is close to the identity even for embeddings that hardly vary, and neither is large."""
    generator = torch.Generator().manual_seed(3)
    source = torch.randn(500, 32, generator=generator) * torch.logspace(0, -5, 32)
    target = normalize(source @ torch.randn(32, 32, generator=generator), dim=-1)
    model.initialize_from_text(source, target, mean_feature_norm=5.0)
    forth, back = model.text_projection.weight.data, model.text_back_projection.weight.data
    torch.testing.assert_close(back @ forth, torch.eye(32), rtol=0, atol=1e-3)
    assert torch.linalg.cond(forth.double()) < 1e4


def test_mean_pooling_by_hand():
    features = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [100.0, 100.0]]])
    assert mean_pooled(features, torch.tensor([[1, 1, 0]])).tolist() == [[2.0, 3.0]]


def test_training_leaves_clip_in_evaluation(model):
    model.train()
    assert model.bart.training
    assert not any(module.training for module in model.clip.modules())


def test_a_folder_keeps_the_prefix_length(clip_folder, bart_folder, tmp_path):
    model = VLKDModel.load(str(clip_folder), str(bart_folder), prefix_length=3)
    model.save_pretrained(tmp_path / "model")
    loaded = VLKDModel.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(loaded.image_projection.weight, model.image_projection.weight)
    config = tmp_path / "model" / "config.json"
    for wrong in ("0", "true", '"3"', "1000000"):
        config.write_text(config.read_text().replace('"prefix_length": 3', f'"prefix_length": {wrong}'))
        with pytest.raises(ModelFileError, match="not a number from 1 to 256"):
            VLKDModel.from_pretrained(tmp_path / "model")
        config.write_text(config.read_text().replace(f'"prefix_length": {wrong}', '"prefix_length": 3'))


@pytest.mark.parametrize("kind", ["pooled", "patches", "all"])
def test_folder_round_trip(model, tmp_path, kind):
    model.image_features = kind
    model.save_pretrained(tmp_path / "model")
    loaded = VLKDModel.from_pretrained(tmp_path / "model").eval()
    assert loaded.image_features == kind
    assert loaded.clip.merges == model.clip.merges
    torch.testing.assert_close(dict(loaded.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert caption(loaded, image_tokens(model)) == caption(model, image_tokens(model))
    assert not list((tmp_path / "model").rglob("*.bin"))


def test_missing_bart(clip_folder, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"BART cannot be loaded from .*nothing: there is no such folder; give the folder"
    ):
        VLKDModel.load(str(clip_folder), str(tmp_path / "nothing"))


def test_the_exported_tokenizer_does_not_depend_on_what_it_was_used_for(model, tmp_path):
    model.save_pretrained(tmp_path / "fresh")
    model.tokenizer(["a red fish"], padding="max_length", max_length=9, truncation=True)
    model.tokenizer(["a red fish", "two"], padding=True)
    model.save_pretrained(tmp_path / "used")
    assert model.tokenizer.backend_tokenizer.padding is not None
    VLKDModel.from_pretrained(tmp_path / "used").save_pretrained(tmp_path / "again")
    files = {path.name for path in (tmp_path / "fresh" / "bart").iterdir()}
    assert {"tokenizer.json", "tokenizer_config.json"} <= files
    for name in files:
        contents = [(tmp_path / folder / "bart" / name).read_bytes() for folder in ("fresh", "used", "again")]
        assert contents[0] == contents[1] == contents[2], name


@pytest.mark.parametrize("earlier", [True, False])
def test_a_kill_during_export_leaves_the_old_model_or_the_new_one(model, tmp_path, earlier):
    def first_weights(folder):
        loaded = VLKDModel.from_pretrained(folder)
        assert not (folder / ".incoming").exists()
        weights = (loaded.text_projection.weight, loaded.bart.model.shared.weight)
        return {float(weight.flatten()[0].detach()) for weight in weights}

    def set_weights(value):
        for weight in (model.text_projection.weight, model.bart.model.shared.weight):
            weight.data.flatten()[0] = value

    for number in itertools.count(0, 3):
        folder = tmp_path / str(number)
        if earlier:
            set_weights(1.0)
            model.save_pretrained(folder)
        set_weights(2.0)
        with pytest.MonkeyPatch.context() as patch:
            state = kill_at(patch, number)
            with suppress(Killed):
                model.save_pretrained(folder)
        try:
            assert first_weights(folder) in ({1.0}, {2.0})
        except (OSError, ValueError):  # nothing to load
            assert not earlier
        if not state["dead"]:
            break
    assert number > 10
    assert first_weights(folder) == {2.0}


def test_what_is_the_users_in_a_model_folder_stays(model, tmp_path):
    for name in ("README.md", "notes.txt"):
        (tmp_path / name).write_text("mine")
    for _ in range(2):
        model.save_pretrained(tmp_path)
    assert {(tmp_path / name).read_text() for name in ("README.md", "notes.txt")} == {"mine"}
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "notes.txt",
        "bart",
        "clip",
        "config.json",
        "model.safetensors",
    }
