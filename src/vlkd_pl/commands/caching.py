"""The work of ``vlkd-pl cache``: the configuration of a training decides the data and the CLIP of a feature cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.clip.frozen import FrozenCLIP
from vlkd_pl.commands.progress import shard_progress
from vlkd_pl.commands.train import VLKDCLI
from vlkd_pl.datamodules.cc3m import CC3MDataModule
from vlkd_pl.features.builder import CacheWriter, estimate_size
from vlkd_pl.features.cache import write_index
from vlkd_pl.features.format import FeatureSettings, FeatureType
from vlkd_pl.features.module import FeatureModule
from vlkd_pl.features.shard_dataset import UncachedDataModule
from vlkd_pl.models.vlkd import ImageFeatures, read_image_features
from vlkd_pl.shards.addresses import is_address
from vlkd_pl.shards.reader import find_shards
from vlkd_pl.shards.subset import UniformSubset


class CacheCLI(VLKDCLI):
    """The command line of ``vlkd-pl fit``, which builds the data, the trainer and, of the model, only the CLIP.

    Attributes:
        clip: The frozen CLIP.
        image_features: Image features that the model uses.
        datamodule: The data module.
        trainer: The trainer, without loggers and callbacks.
        shows_progress: Whether to show a progress bar; that of Lightning does not know the number of batches.
    """

    def instantiate_classes(self) -> None:
        """Build the data module, the CLIP and the trainer.

        Raises:
            FileNotFoundError: If CLIP or the tokenizer of BART cannot be found.
            MisconfigurationException: If the data are not image-text pairs in shards, or CLIP and model disagree.
        """
        config = self.config.clone()
        model, clip = config.pop("model").init_args, config.data.init_args.get("clip")
        self.config_init = self.parser.instantiate_classes(config)
        self.datamodule = self.config_init.data
        if not isinstance(self.datamodule, CC3MDataModule):
            raise MisconfigurationException(f"{type(self.datamodule).__name__} has no shards: give CC3MDataModule")
        self.clip = FrozenCLIP.load(clip, model.get("clip_sha256"))
        folder = model.get("init_from")
        self.image_features = model.get("image_features") or _image_features(folder)
        if folder is not None and model.get("clip") is not None and Path(folder).is_dir():
            trained_with = FrozenCLIP.load(Path(folder) / "clip").fingerprint
            if trained_with != self.clip.fingerprint:
                raise MisconfigurationException(
                    f"init_from: {folder} holds the CLIP {trained_with}, but model.clip, {clip}, is the CLIP "
                    f"{self.clip.fingerprint}: leave out that of the two that is wrong"
                )
        self.trainer = self.instantiate_trainer(logger=False)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        self.shows_progress = config["enable_progress_bar"] is not False
        config["callbacks"], config["enable_progress_bar"] = [], False
        return super()._instantiate_trainer(config, callbacks)


def make_cache(arguments: Sequence[str], output: str, dtype: FeatureType, check_content: bool = False) -> None:
    """Make a feature cache, or the files of it that are missing.

    Args:
        arguments: Arguments of ``vlkd-pl fit`` without the command.
        output: Folder of the cache.
        dtype: Type of the image tokens.
        check_content: Whether to read the finished files completely, to find damaged ones.

    Raises:
        FileNotFoundError: If a shard, CLIP or the tokenizer of BART cannot be found.
        MisconfigurationException: If the output is an address or holds another cache, the disk has too little room, or
            more than ``max_bad_share`` of the data is bad.
    """
    if is_address(output):
        raise MisconfigurationException(f"{output} is not a local folder: write the cache to one, and copy it there")
    if dtype not in get_args(FeatureType):
        raise MisconfigurationException(f"--dtype {dtype}: give one of {', '.join(get_args(FeatureType))}")
    folder = Path(output)
    line = CacheCLI(arguments, parser_kwargs={"prog": "vlkd-pl cache"}, save_config_callback=None, run=False)
    data, clip, limits = line.datamodule, line.clip, line.datamodule.image_limits
    trainer: Any = line.trainer  # its callbacks are not declared
    settings = FeatureSettings(
        clip=clip.fingerprint,
        image_size=data.image_size,
        image_features="pooled" if line.image_features == "pooled" else "all",
        dtype=dtype,
        subset_size=data.subset_size,
        max_image_pixels=limits.max_image_pixels,
        skip_non_rgb=limits.skip_non_rgb,
        draft_decoding=limits.draft_decoding,
    )
    shards = find_shards(data.shard_source.patterns)
    keep = None if data.subset_size is None else UniformSubset(shards, data.subset_size)
    uncached = UncachedDataModule(
        folder,
        settings,
        shards,
        data.decoder,
        data.clip_tokenizer,
        data.batch_size,
        keep,
        data.num_workers,
        check_content,
    )
    module = FeatureModule(clip, line.image_features)
    if trainer.is_global_zero:
        num_missing = len(uncached.missing)
        size = estimate_size(
            folder, shards, num_missing, data.subset_size, settings, module.num_tokens, clip.embedding_dim
        )
        print(f"cache: {size}", flush=True)
    trainer.callbacks.append(CacheWriter(folder, settings, shard_progress() if line.shows_progress else None))
    if uncached.missing:
        trainer.predict(module, datamodule=uncached, return_predictions=False)
    if trainer.is_global_zero:
        cache = write_index(folder, uncached.names, settings)
        print(f"cache: {len(cache):,} samples in {folder}; {cache.losses}")
        cache.check_data(limits.max_bad_share)


def _image_features(init_from: str | None) -> ImageFeatures:
    """Return the image features of the model that a run starts from."""
    if init_from is None or not Path(init_from).is_dir():
        return "pooled"
    return read_image_features(Path(init_from))[0]
