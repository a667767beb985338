"""How a cache of CLIP's features is made: in Lightning's predict loop, by the trainer that the configuration names."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from vlkd_pl.batch import ShardBatch
from vlkd_pl.clip.frozen import FrozenCLIP
from vlkd_pl.commands.parsing import Parser
from vlkd_pl.commands.progress import shard_progress
from vlkd_pl.commands.train import VLKDCLI
from vlkd_pl.datamodules.cc3m import CC3MDataModule
from vlkd_pl.features.cache import write_index
from vlkd_pl.features.format import SUFFIX, FeatureSettings, FeatureType, FeatureWriter
from vlkd_pl.features.module import FeatureModule, Features
from vlkd_pl.features.shard_dataset import UncachedDataModule
from vlkd_pl.models.vlkd import ImageFeatures, read_image_features
from vlkd_pl.prepare.reshard import Progress
from vlkd_pl.shards.addresses import is_address
from vlkd_pl.shards.reader import find_shards
from vlkd_pl.shards.subset import UniformSubset, text_keys

_NUM_COUNTED = 3
_POLL_SECONDS = 0.5
_PATIENCE_SECONDS = 6 * 3600.0
_TEXT_BYTES = 80  # a caption and its key, about


class CacheCLI(VLKDCLI):
    """The command line of ``vlkd-pl fit``, of which the data and the trainer are built, and of the model CLIP alone.

    Attributes:
        clip: The CLIP.
        image_features: What the model takes of it.
        datamodule: The data module.
        trainer: The trainer, without logger and callbacks.
        shows_progress: Whether it is to have a progress bar; of Lightning's own the end would not be known.
    """

    def instantiate_classes(self) -> None:
        """Builds what is needed.

        Raises:
            FileNotFoundError: CLIP, or BART's tokenizer, cannot be found.
            MisconfigurationException: The data are no image-text pairs.
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


class CacheWriter(pl.Callback):
    """Writes the features of each shard to its file.

    Args:
        folder: The cache.
        settings: What it is made with.
        shows_progress: Whether the first rank shows how many of the shards of all are done.
    """

    def __init__(self, folder: Path, settings: FeatureSettings, shows_progress: bool = False) -> None:
        self.folder = folder
        self.settings = settings
        self.shows_progress = shows_progress
        self._left: list[Path] = []
        self._num_shards = 0
        self._bar = ExitStack()
        self._tell: Progress | None = None
        self._writers: dict[str, FeatureWriter] = {}

    def on_predict_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Notes what all ranks are to write, and shows the bar."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._left = [self.folder / f"{name}{SUFFIX}" for name, _ in data.missing]
        self._num_shards = len(self._left)
        if self.shows_progress and trainer.is_global_zero:
            self._tell = self._bar.enter_context(shard_progress())
            self._look()

    def _look(self) -> bool:
        """Whether further files have come."""
        num_left = len(self._left)
        self._left = [path for path in self._left if not path.exists()]
        if self._tell is not None:
            self._tell("encoded", self._num_shards - len(self._left), self._num_shards)
        return len(self._left) < num_left

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        outputs: Features,
        batch: ShardBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Writes a batch.

        Raises:
            MisconfigurationException: The disk is full.
        """
        shard = batch["shard"]
        try:
            if shard not in self._writers:
                self._writers[shard] = FeatureWriter(self.folder / f"{shard}{SUFFIX}", self.settings)
            self._writers[shard].append(*outputs, batch["texts"], batch["keys"])
            if batch["end"] is not None:
                self._writers.pop(shard).finish(batch["end"])
                self._look()
        except OSError as error:
            raise MisconfigurationException(
                f"{self.folder} cannot be written ({error}): the same command goes on where there is room"
            ) from error

    def on_predict_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Waits until the files of all ranks are there: the first then writes the index.

        A barrier would give up after half an hour, but a rank's part can take so much longer than another's.

        Raises:
            MisconfigurationException: For hours no further file has come.
        """
        changed = time.monotonic()
        while self._left:
            if self._look():
                changed = time.monotonic()
            elif time.monotonic() - changed > _PATIENCE_SECONDS:
                raise MisconfigurationException(
                    f"{len(self._left)} files are not in {self.folder}, first {self._left[0].name}, and none has come "
                    "for hours: all machines must see the same folder; if another process has ended, the same command "
                    "goes on"
                )
            else:
                time.sleep(_POLL_SECONDS)
        self._bar.close()

    def on_exception(self, trainer: pl.Trainer, module: pl.LightningModule, exception: BaseException) -> None:
        """Takes the bar away."""
        self._bar.close()


def make_cache(arguments: Sequence[str], output: str, dtype: FeatureType, check_content: bool = False) -> None:
    """Makes a cache, or what is missing of it.

    Args:
        arguments: The command line of ``vlkd-pl fit`` without the command.
        output: Folder of the cache.
        dtype: Type of the image tokens.
        check_content: Whether to look for damage in the files that are there.

    Raises:
        FileNotFoundError: A shard, CLIP or BART's tokenizer cannot be found.
        MisconfigurationException: It is an address, or holds another cache, the disk has too little room, or more than
            ``max_bad_share`` of the data is bad.
    """
    if is_address(output):
        raise MisconfigurationException(f"{output} is no folder of a disk: write the cache to one, and copy it there")
    folder = Path(output)
    line = CacheCLI(
        pl.LightningModule,
        pl.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        parser_class=Parser,
        parser_kwargs={"prog": "vlkd-pl cache"},
        save_config_callback=None,
        seed_everything_default=0,
        args=list(arguments),
        run=False,
    )
    data, clip = line.datamodule, line.clip
    trainer: Any = line.trainer  # its callbacks are not declared
    settings = FeatureSettings(
        clip=clip.fingerprint,
        image_size=data.image_size,
        image_features="pooled" if line.image_features == "pooled" else "all",
        dtype=dtype,
        subset_size=data.subset_size,
        max_image_pixels=data.decoder.max_image_pixels,
        skip_non_rgb=data.decoder.skip_non_rgb,
        draft_decoding=data.decoder.draft_size is not None,
    )
    shards = find_shards(data.shard_patterns)
    keep = data.keep if data.subset_size is None else UniformSubset(shards, data.subset_size)
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
        sample_bytes = settings.num_bytes(module.num_tokens, clip.embedding_dim) + _TEXT_BYTES
        print(_estimate(folder, shards, len(uncached.missing), data.subset_size, sample_bytes), flush=True)
    trainer.callbacks.append(CacheWriter(folder, settings, line.shows_progress))
    if uncached.missing:
        trainer.predict(module, datamodule=uncached, return_predictions=False)
    if trainer.is_global_zero:
        cache = write_index(folder, uncached.names, settings)
        print(f"cache: {len(cache):,} samples in {folder}; {cache.losses}")
        cache.check_data(data.max_bad_share)


def _estimate(folder: Path, shards: Sequence[str], num_missing: int, subset_size: int | None, sample_bytes: int) -> str:
    """What will be written, in words.

    Raises:
        MisconfigurationException: The disk has too little room for it.
    """
    counted = shards[:: max(1, len(shards) // _NUM_COUNTED)][:_NUM_COUNTED]
    num_samples = sum(1 for path in counted for _ in text_keys(path)) * len(shards) // len(counted)
    num_samples = min(num_samples, subset_size or num_samples) * num_missing // len(shards)
    size = num_samples * sample_bytes
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    told = (
        f"about {num_samples:,} samples of {sample_bytes / 1e3:.1f} KB in {num_missing} of {len(shards)} shards are to "
        f"be encoded: {size / 1e9:.2f} GB, and {folder} has room for {free / 1e9:.2f} GB"
    )
    if size > free:
        raise MisconfigurationException(f"{told}: give another --output, or --dtype int8")
    return f"cache: {told}"


def _image_features(init_from: str | None) -> ImageFeatures:
    """What the model takes that a run starts from."""
    if init_from is None or not Path(init_from).is_dir():
        return "pooled"
    return read_image_features(Path(init_from))
