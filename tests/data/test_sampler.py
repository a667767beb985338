"""The order of training samples, and where a resumed run continues it."""

import pytest
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.data.sampler import EpochOrder


def order(num_done=0, **options):
    return list(EpochOrder(**{"num_samples": 11, "batch_size": 2, "num_trained_batches": lambda: num_done} | options))


def test_an_epoch_holds_each_sample_once_in_an_order_of_its_own():
    first, second = order(), order(num_done=5)
    for epoch, keys in enumerate((first, second)):
        assert [key[0] for key in keys] == [epoch] * 10
        assert len({index for _, index in keys} & set(range(11))) == 10
    assert [index for _, index in first] != [index for _, index in second]
    assert order() == first
    assert order(seed=1) != first


@pytest.mark.parametrize("num_done", range(1, 5))
def test_a_resumed_run_has_what_is_left_of_the_epoch(num_done):
    assert order(num_done) == order()[2 * num_done :]
    assert order(5 + num_done) == order(5)[2 * num_done :]


def test_the_length_is_that_of_a_whole_epoch():
    assert len(EpochOrder(11, 2, lambda: 3)) == 10


def test_ranks_share_an_epoch_and_have_as_many_batches():
    ranks = [order(rank=rank, world_size=3, num_samples=20) for rank in range(3)]
    assert [len(keys) for keys in ranks] == [6, 6, 6]
    assert len({index for keys in ranks for _, index in keys}) == 18


def test_too_few_samples_are_refused():
    with pytest.raises(MisconfigurationException, match="3 training samples do not fill a batch of 2 in each of 2"):
        EpochOrder(3, 2, int, world_size=2)
