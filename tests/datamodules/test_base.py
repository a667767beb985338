"""What all data modules share: the training order, the refusal of unreadable images, and the constructor."""

import inspect
from types import SimpleNamespace

import pytest
from pytorch_lightning.utilities.exceptions import MisconfigurationException

import vlkd_pl
from vlkd_pl.data.sampler import OrderedDataset
from vlkd_pl.datamodules.base import BaseDataModule

DATA_MODULES = [name for name in vlkd_pl.__all__ if name.endswith("DataModule")]


@pytest.mark.parametrize("name", DATA_MODULES)
def test_a_data_module_is_flat(name):
    """It subclasses the base directly, and lists its arguments."""
    kind = getattr(vlkd_pl, name)
    assert kind.__bases__ == (BaseDataModule,)
    parameters = inspect.signature(kind).parameters.values()
    assert not [parameter for parameter in parameters if parameter.kind == parameter.VAR_KEYWORD]


@pytest.mark.parametrize("stage", ["training", "testing"])
def test_unreadable_images_are_refused_but_in_prediction(stage):
    module = BaseDataModule()
    module.trainer = SimpleNamespace(training=stage == "training", predicting=False)
    batch = {"unreadable": ["a.jpg: it cannot be decoded"]}
    with pytest.raises(MisconfigurationException, match=r"a\.jpg: .*every image is needed: replace it$"):
        module.on_before_batch_transfer(batch, 0)
    module.trainer = SimpleNamespace(training=False, predicting=True)
    assert module.on_before_batch_transfer(batch, 0) == batch
    assert module.num_trained_batches == 0


def test_a_data_module_resumes_after_the_batches_it_was_trained_on():
    module = BaseDataModule(seed=3)
    samples = OrderedDataset("abcdefghijk")
    whole = [samples[key] for key in module.training_order(11, 2)]
    assert sorted(whole) == sorted(set(whole))
    assert len(whole) == len(samples) - 1
    module.trainer = SimpleNamespace(training=True, predicting=False, global_rank=0, world_size=1)
    for training in (True, False, True):  # a validation between two training batches
        module.trainer.training = training
        assert module.on_before_batch_transfer({"labels": []}, 0) == {"labels": []}
    resumed = BaseDataModule(seed=3)
    resumed.load_state_dict(module.state_dict())
    assert [samples[key] for key in resumed.training_order(11, 2)] == whole[4:]
