"""SCSTModule: its samples and their gradient against a loop, and training through the command line."""

import math
from types import SimpleNamespace

import pytest
import torch
from evaluations import captioning_arguments, column, weights, written
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.cli import main
from vlkd_pl.commands.train import run
from vlkd_pl.losses import icti_loss
from vlkd_pl.metrics.cider import CIDErDReward
from vlkd_pl.metrics.ptb import tokenize
from vlkd_pl.models.decoding import Decoding, caption
from vlkd_pl.models.vlkd import VLKDModel
from vlkd_pl.modules import scst
from vlkd_pl.modules.captioning import caption_condition, caption_labels
from vlkd_pl.modules.scst import SCSTModule

REFERENCES = {7: ["a red fish on the grass", "there is a red fish"], 8: ["two blue boats", "a tree"], 9: ["a hat"]}


def scst_module(world, model_folder, **options):
    """A module with its reward, as ``fit`` makes it ready, in evaluation mode; what it logs is in ``logged``."""
    module = SCSTModule(
        clip=world.clip,
        bart=world.bart,
        image_features="all",
        init_from=str(model_folder),
        num_masks=2,
        decoding=Decoding(2, max_new_tokens=8),
        **options,
    ).eval()
    end = " <eos>" if module.end_token_in_reward else ""
    module.reward = CIDErDReward({key: [f"{text}{end}" for text in texts] for key, texts in REFERENCES.items()})
    module.logged = {}
    module.log = lambda name, value, **_: module.logged.update({name: float(value)})
    return module


def images():
    generator = torch.Generator().manual_seed(0)
    samples = [SimpleNamespace(image_id=image_id) for image_id in (8, 7)]
    return {
        "image": torch.randn(2, 3, 64, 64, generator=generator),
        "samples": samples,
        "labels": [REFERENCES[sample.image_id] for sample in samples],
        "unreadable": [],
    }


@pytest.fixture
def teach(monkeypatch):
    """Makes samples of given texts: token ids as ``generate`` pads them, with end tokens or without."""

    def patch(module, texts):
        tokenizer = module.model.tokenizer
        start = module.model.bart.config.decoder_start_token_id
        rows = []
        for text in texts:
            ids = tokenizer(f"A picture of {text.removesuffix('…')}")["input_ids"]
            rows.append([start, *(ids[:-1] if text.endswith("…") else ids)])
        longest = max(map(len, rows))
        ids = torch.tensor([row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
        num_given = 2 + len(tokenizer("A picture of", add_special_tokens=False)["input_ids"])
        monkeypatch.setattr(module, "_sample", lambda condition, mask, greedy=False: (ids, num_given))
        return [row[num_given:] for row in rows], num_given

    return patch


@pytest.mark.parametrize("end_token_in_reward", [True, False])
def test_loss_and_gradient_against_a_loop(world, model_folder, teach, end_token_in_reward):
    """The end tokens are scored, but none where a text was cut; the words of the prompt are not."""
    module = scst_module(world, model_folder, num_samples=2, end_token_in_reward=end_token_in_reward)
    texts = ["two blue boats.", "a fish.", "a red fish on the grass.", "a red fish on…"]
    scored, num_given = teach(module, texts)
    assert [row[-1] == module.model.tokenizer.eos_token_id for row in scored] == [True, True, True, False]
    batch = images()
    loss = module.compute_losses(batch)["scst"]
    loss.backward()
    gradient = {name: value.grad for name, value in module.model.named_parameters() if value.grad is not None}
    module.zero_grad()

    image_ids = [8, 8, 7, 7]
    rewarded = ["two blue boats <eos>", "a fish <eos>", "a red fish on the grass <eos>", "a red fish on"]
    if not end_token_in_reward:
        rewarded = [text.removesuffix(" <eos>") for text in rewarded]
    reward = module.reward(image_ids, rewarded)
    expected = 0.0
    for number, row in enumerate(scored):
        image = batch["image"][number // 2][None]
        condition, mask = caption_condition(module.model, module.model.clip.encode_image(image), 2)
        prompt_ids = module.model.tokenizer("A picture of")["input_ids"][:-1]
        labels = torch.tensor([[*prompt_ids, *row]])
        log_probability = module.model.decode(condition, mask, labels)[0].log_softmax(-1)
        total = sum(log_probability[num_given - 1 + place, token] for place, token in enumerate(row))
        expected = expected - (reward[number] - reward[number ^ 1]) * total / 4
    torch.testing.assert_close(loss, expected.to(loss.dtype), rtol=1e-4, atol=1e-4)
    expected.backward()
    for name, value in gradient.items():
        torch.testing.assert_close(value, module.model.get_parameter(name).grad, rtol=1e-3, atol=1e-4)
    assert module.logged["train/reward"] == pytest.approx(reward.mean())
    assert module.logged["train/baseline"] == pytest.approx(reward.mean())
    assert module.logged["train/caption_length"] == pytest.approx((3 + 2 + 6 + 4) / 4)


def test_the_reward_is_of_the_caption_as_it_is_read(world, model_folder, teach):
    """In tokens, from behind the prompt to its full stop at the end."""
    module = scst_module(world, model_folder, num_samples=2)
    teach(module, ["two blue boats.", "two blue boats. and more", "there is a red fish", "Fish!"])
    rewards = []
    module._baseline = lambda image_ids, reward, image_tokens: rewards.append(reward) or reward
    module.compute_losses(images())
    read = ["two blue boats <eos>", "two blue boats and more <eos>", "there is a red fish <eos>", "fish <eos>"]
    expected = module.reward([8, 8, 7, 7], read)
    assert rewards[0].flatten().tolist() == pytest.approx(expected.tolist(), rel=1e-6)


@pytest.mark.parametrize("baseline", ["others", "greedy"])
def test_the_baseline(world, model_folder, baseline):
    module = scst_module(world, model_folder, num_samples=3, baseline=baseline)
    reward = torch.tensor([[1.0, 2.0, 6.0], [0.0, 0.5, 0.1]])
    image_tokens = module.model.clip.encode_image(images()["image"])
    baselines = module._baseline([8, 7], reward, image_tokens)
    if baseline == "others":
        expected = torch.tensor([[4.0, 3.5, 1.5], [0.3, 0.05, 0.25]])
    else:
        results = caption(module.model.eval(), image_tokens, 2, Decoding(max_new_tokens=8))
        ids, num_given = module._sample(*caption_condition(module.model, image_tokens, 2), greedy=True)
        sampled = [
            tokenize(texts[0].text) + " <eos>" * (module.model.tokenizer.eos_token_id in row.tolist())
            for texts, row in zip(results, ids[:, num_given:], strict=True)
        ]
        expected = torch.tensor(module.reward([8, 7], sampled))[:, None].expand(2, 3)
    torch.testing.assert_close(baselines, expected.float())


def test_a_caption_that_breaks_off_is_worth_less_with_end_tokens(world, model_folder, teach):
    """What the end token is for: without it, another likely word or two at the end cost less, or pay."""
    worth = {}
    for end in (True, False):
        module = scst_module(world, model_folder, num_samples=2, end_token_in_reward=end)
        teach(module, ["a red fish on.", "a red fish on the grass.", "a red fish on…", "a red fish on the grass…"])
        rewards = []
        module._baseline = lambda image_ids, reward, image_tokens, rewards=rewards: rewards.append(reward) or reward
        module.compute_losses({**images(), "samples": [SimpleNamespace(image_id=7)] * 2})
        broken_off, finished, cut, unfinished = rewards[0].flatten().tolist()
        worth[end] = broken_off / finished
        assert (cut, unfinished) == (broken_off, finished) if not end else unfinished < finished
    assert worth[True] < worth[False] - 0.05


def test_end_tokens_are_in_all_references(world, model_folder, tmp_path):
    """In the document frequencies too; what the reward needs of them is kept apart from that without."""
    made = []
    for end in ("true", "false", "true"):
        options = {"model__init_args__end_token_in_reward": end, "model__init_args__reward_cache": tmp_path / "cache"}
        options |= {"trainer__max_epochs": 1, "trainer__limit_train_batches": 1, "trainer__limit_val_batches": 0}
        options |= {"trainer__callbacks": "[]"}
        folder = tmp_path / str(len(made))
        module = run(captioning_arguments("scst_coco", world, model_folder, folder, **options)).model
        image_id, texts = next(iter(module.trainer.datamodule.training_references().items()))
        ended = f"{tokenize(texts[0])} <eos>"
        made.append(module.reward([image_id, image_id], [ended, "<eos>"]).tolist())
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert made[0] == made[2]
    assert made[0][0] > made[1][0]
    assert made[0][1] == 0.0  # the information of a word that is in all references


def test_samples_have_dropout_and_the_greedy_baseline_has_none(world, model_folder, monkeypatch):
    module = scst_module(world, model_folder, num_samples=3, baseline="greedy").train()
    modes, generate = [], module.model.bart.generate

    def watched(**options):
        modes.append((options.get("do_sample"), module.model.bart.model.decoder.training, torch.is_grad_enabled()))
        return generate(**options)

    monkeypatch.setattr(module.model.bart, "generate", watched)
    module.compute_losses(images())
    assert modes == [(True, True, False), (False, False, False)]
    assert module.model.bart.training
    assert not any(part.training for part in module.model.clip.modules())


def test_samples_are_as_likely_as_the_model_says(world, model_folder):
    """The first token of 4,000 samples, against the decoder's distribution."""
    module = scst_module(world, model_folder, num_samples=2000)
    condition, mask = caption_condition(module.model, module.model.clip.encode_image(images()["image"]), 2)
    module.decoding = Decoding(max_new_tokens=2)
    torch.manual_seed(0)
    ids, num_given = module._sample(condition, mask)
    assert len(ids) == 4000
    logits = module.model.decode(condition, mask, ids[::2000, 1 : num_given + 1])[:, -1].softmax(-1)
    for row in range(2):
        first = ids[2000 * row : 2000 * (row + 1), num_given]
        share = torch.bincount(first, minlength=logits.shape[-1]) / 2000
        assert (share - logits[row]).abs().max() < 0.04
    assert logits.max() < 0.9  # there is something to draw


def test_a_sample_without_end_gets_none(world, model_folder):
    module = scst_module(world, model_folder, num_samples=50)
    condition, mask = caption_condition(module.model, module.model.clip.encode_image(images()["image"]), 2)
    torch.manual_seed(0)
    module.decoding = Decoding(max_new_tokens=3)
    ids, _ = module._sample(condition, mask)
    ended = (ids[:, -3:] == module.model.tokenizer.eos_token_id).any(1)
    assert not ended.all()


def test_kl_and_cross_entropy_hold_it_near_the_start(world, model_folder):
    batch = images()
    module = scst_module(world, model_folder, num_samples=2, kl_weight=0.5, cross_entropy_weight=0.1)
    assert module.loss_weights == {"scst": 1.0, "kl": 0.5, "icti": 0.1}
    losses = module.compute_losses(batch)
    assert set(losses) == {"scst", "kl", "icti"}
    assert losses["kl"].item() == pytest.approx(0.0, abs=1e-5)
    image_tokens = module.model.clip.encode_image(batch["image"])
    condition, mask = caption_condition(module.model, image_tokens, 2)
    rows, labels = caption_labels(module.model, batch["labels"], 2)
    expected = icti_loss(module.model.decode(condition[rows], mask[rows], labels), labels)
    torch.testing.assert_close(losses["icti"], expected)
    with torch.no_grad():
        module.model.image_projection.weight.mul_(10)
    moved = module.compute_losses(batch)["kl"]
    assert moved > 0.01
    moved.backward()
    assert module.model.image_projection.weight.grad.abs().sum() > 0
    assert not any(value.requires_grad for value in module._start[0].parameters())
    plain = scst_module(world, model_folder, num_samples=2)
    assert module.state_dict().keys() == plain.state_dict().keys()
    assert set(plain.compute_losses(batch)) == {"scst"}


def test_one_sample_has_no_others(world, model_folder):
    with pytest.raises(MisconfigurationException, match="num_samples is 1: the baseline 'others' needs two or more"):
        scst_module(world, model_folder, num_samples=1)
    scst_module(world, model_folder, num_samples=1, baseline="greedy")


# Through the command line


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """A reward that is kept, greedy baselines and both ways against drift: all parts at once."""
    return {
        "model__init_args__reward_cache": tmp_path_factory.mktemp("reward"),
        "model__init_args__baseline": "greedy",
        "model__init_args__kl_weight": 0.1,
        "model__init_args__cross_entropy_weight": 0.1,
        "model__init_args__num_samples": 3,
    }


@pytest.fixture(scope="module")
def trained(world, model_folder, tmp_path_factory, options):
    """A finished training: its folder, and the command line object."""
    folder = tmp_path_factory.mktemp("scst_fit")
    return folder, run(captioning_arguments("scst_coco", world, model_folder, folder, **options))


def test_everything_is_logged(trained, world, options):
    folder, command_line = trained
    for name in ("loss", "scst_loss", "kl_loss", "icti_loss", "reward", "baseline", "caption_length"):
        values = column(folder, f"train/{name}")
        assert len(values) == 6, name
        assert all(math.isfinite(value) for value in values)
    assert min(column(folder, "train/caption_length")) > 0
    assert len(column(folder, "val/cider")) == 2
    assert len(list(options["model__init_args__reward_cache"].iterdir())) == 1
    fresh = VLKDModel.load(world.clip, world.bart, "all")
    torch.testing.assert_close(dict(command_line.model.model.clip.state_dict()), dict(fresh.clip.state_dict()))


@pytest.mark.parametrize("step", [2, 3])
def test_a_cut_and_resumed_run_ends_as_the_uncut_one(trained, world, model_folder, tmp_path, options, step):
    folder, uncut = trained
    checkpoint = folder / "steps" / f"step={step}.ckpt"
    done = run(captioning_arguments("scst_coco", world, model_folder, tmp_path, ckpt_path=checkpoint, **options))
    assert done.trainer.global_step == 6
    torch.testing.assert_close(weights(done.model), weights(uncut.model), rtol=0, atol=0)
    assert column(tmp_path, "train/reward") == column(folder, "train/reward")[step:]


def test_the_folder_and_the_checkpoint_score_the_same(trained, world, model_folder, tmp_path):
    folder, command_line = trained
    best = next(callback for callback in command_line.trainer.checkpoint_callbacks if callback.monitor).best_model_path
    metrics = {"model__init_args__metrics": "[CIDEr]"}
    for name, source in (
        ("folder", {"model__init_args__init_from": folder / "model"}),
        ("ckpt", {"ckpt_path": best}),
    ):
        run(captioning_arguments("scst_coco", world, model_folder, tmp_path / name, "test", **metrics, **source))
    assert written(tmp_path / "folder", "scores.json")["scores"] == written(tmp_path / "ckpt", "scores.json")["scores"]
    assert written(tmp_path / "folder", "predictions.json") == written(tmp_path / "ckpt", "predictions.json")


def test_the_reward_rises(world, model_folder, tmp_path, monkeypatch):
    """Of a reward that small models can get: for one word."""
    monkeypatch.setattr(
        scst, "CIDErDReward", lambda references, cache: lambda ids, texts: [float("fish" in text) for text in texts]
    )
    options = {"trainer__max_epochs": 25, "trainer__check_val_every_n_epoch": 25, "model__init_args__num_samples": 20}
    options |= {"model__init_args__optimization__learning_rate": 3e-3}
    run(captioning_arguments("scst_coco", world, model_folder, tmp_path, **options))
    reward = column(tmp_path, "train/reward")
    assert sum(reward[-10:]) > sum(reward[:10]) + 1


def test_what_is_wrong_is_said_in_one_line(world, model_folder, tmp_path, capsys):
    options = {"model__init_args__num_samples": 1}
    assert main(captioning_arguments("scst_coco", world, model_folder, tmp_path, **options)) == 1
    assert "needs two or more" in capsys.readouterr().err.strip().splitlines()[-1]
