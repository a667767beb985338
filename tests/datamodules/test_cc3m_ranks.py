"""Ranks whose parts of the data are uneven: all are trained on as many batches, and all of these are full."""

import shutil
from itertools import chain

import pytest
from distilling import arguments, begin_ranks, joined
from recording import recorded

from vlkd_pl.cli import main
from vlkd_pl.commands.train import run


def command(world, folder, **options):
    settings = {
        "model": "recording.RecordingModule",
        "trainer.default_root_dir": folder,
        "trainer.max_steps": -1,
        "trainer.limit_val_batches": 0,
        "trainer.logger": "false",
        "trainer.callbacks": "[]",
        "data.init_args.num_workers": 1,
    }
    return arguments(world, folder, **settings | options)


def test_shards_that_ranks_cannot_share_evenly(world, tmp_path):
    """Three shards, one of which ends in its middle; each pass gives the ranks others."""
    for name in ("00000.tar", "00001.tar", "00002.tar"):
        shutil.copy(world.folder / "shards" / name, tmp_path)
    whole = (tmp_path / "00001.tar").read_bytes()
    (tmp_path / "00001.tar").write_bytes(whole[: len(whole) // 3])
    options = {"data.init_args.shards": f"{tmp_path}/*.tar", "data.init_args.image_limits.max_bad_share": 9.0}
    options |= {"trainer.max_steps": 5, "trainer.accumulate_grad_batches": 2}
    assert joined(begin_ranks(command(world, tmp_path, **options))) == [0, 0]
    ranks = [recorded(tmp_path, rank) for rank in (0, 1)]
    assert [[len(keys) for keys in batches] for batches in ranks] == [[6] * 10] * 2
    first_pass = [{key for key in chain(*batches) if key.startswith("0/")} for batches in ranks]
    assert len(first_pass[0]) != len(first_pass[1])
    assert not first_pass[0] & first_pass[1]


def test_no_rank_waits_for_one_without_a_usable_sample(world, tmp_path):
    shutil.copy(world.folder / "shards" / "00000.tar", tmp_path)
    (tmp_path / "00001.tar").write_bytes(b"no tar at all" * 100)
    options = {"data.init_args.shards": f"{tmp_path}/*.tar", "data.init_args.image_limits.max_bad_share": 9.0}
    codes = joined(begin_ranks(command(world, tmp_path, **options, **{"trainer.max_steps": 5})))
    assert 1 in codes
    assert not {None, 0} & set(codes)


@pytest.fixture(scope="module")
def features(world, tmp_path_factory):
    """A cache of the world's 60 samples."""
    folder = tmp_path_factory.mktemp("features")
    made = arguments(world, folder)[1:]  # without the command
    assert main(["cache", "--output", str(folder), *made]) == 0
    return folder


def test_cached_samples_that_do_not_fill_a_batch_of_every_rank(world, features, tmp_path):
    """60 samples are four batches of seven for each of two ranks, and four samples are left out of each epoch."""
    options = {"data.init_args.features": features, "data.init_args.batch_size": 7, "trainer.max_epochs": 2}
    options |= {"trainer.accumulate_grad_batches": 3, "trainer.val_check_interval": "null"}
    assert joined(begin_ranks(command(world, tmp_path, **options))) == [0, 0]
    ranks = [recorded(tmp_path, rank) for rank in (0, 1)]
    assert [[len(keys) for keys in batches] for batches in ranks] == [[7] * 8] * 2
    for epoch in (0, 1):
        keys = [key for batches in ranks for key in chain(*batches[4 * epoch : 4 * epoch + 4])]
        assert len(set(keys)) == len(keys) == 56
        assert all(key.startswith(f"{epoch}/") for key in keys)


def test_a_stream_continues_in_the_next_epoch(world, tmp_path):
    """The trainer is given the length of an epoch: the stream itself has none."""
    recorded_keys = []
    for name, epochs in (("one", 1), ("three", 3)):
        (tmp_path / name).mkdir()
        options = {"trainer.limit_train_batches": 9 // epochs, "trainer.max_epochs": epochs}
        run(
            command(
                world, tmp_path / name, data__init_args__num_workers=2, trainer__val_check_interval="null", **options
            )
        )
        recorded_keys.append(recorded(tmp_path / name))
    assert len(recorded_keys[0]) == 9
    assert recorded_keys[1] == recorded_keys[0]
