"""``vlkd-pl fit``, ``validate``, ``test`` and ``predict``: Lightning's command line over the package's modules."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import transformers
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.strategies import FSDPStrategy, ModelParallelStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from vlkd_pl.commands.parsing import ConfigFile, Parser, TrainerHelp, build, import_public_classes
from vlkd_pl.predictions import PredictionWriter
from vlkd_pl.resume import (
    CheckpointFiles,
    SaveOnSignal,
    checkpoint_folders,
    go_on_in_last_version,
    keep_logged,
    last_checkpoint,
    remove_requeued_before,
)


class _Part:
    """Where the data find a part of the model: where the model is told to, or in the model folder that it starts from.

    Args:
        name: ``clip`` or ``bart``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.__name__ = f"{name}_of"  # what the help calls it

    def __call__(self, given: str | None, init_from: str | None) -> str | None:
        return str(Path(init_from) / self.name) if given is None and init_from is not None else given


class VLKDCLI(LightningCLI):
    """Lightning's command line; what model and data share is given once, under ``model``."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The trainer's methods that are commands."""
        hidden = {"model", "dataloaders", "datamodule"}
        return {
            "fit": hidden | {"train_dataloaders", "val_dataloaders"},
            "validate": hidden,
            "test": hidden,
            "predict": hidden | {"return_predictions"},
        }

    def init_parser(self, **options: Any) -> LightningArgumentParser:
        """A parser with ``--config`` and ``--trainer.help``."""
        options.setdefault("dump_header", [f"pytorch_lightning=={pl.__version__}"])
        parser = self.parser_class(**options)
        parser.add_argument("-c", "--config", action=ConfigFile, help="a configuration file in YAML")
        parser.add_argument("--trainer.help", action=TrainerHelp)
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Reads the command line."""
        if any(argument.endswith(".help") for argument in args):
            import_public_classes()  # which need no class_path then
        super().parse_arguments(parser, args)
        parser.add_instantiator(build, object)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links the arguments that model and data must agree on."""
        for part in ("clip", "bart"):
            parser.link_arguments(
                (f"model.init_args.{part}", "model.init_args.init_from"), f"data.init_args.{part}", _Part(part)
            )
        for part in ("model", "task"):
            parser.link_arguments(f"model.init_args.{part}", f"data.init_args.{part}")

    def _parse_ckpt_path(self) -> None:
        """Leaves the checkpoint unread: Lightning looks for hyper-parameters in it, and modules here keep none."""

    @property
    def _goes_on(self) -> bool:
        return self.subcommand == "fit" and self.config.fit.ckpt_path == "last"

    def before_instantiate_classes(self) -> None:
        """With ``fit --ckpt_path last``, goes on in the folder of the last run."""
        logger = self.config.fit.trainer.logger if self._goes_on else None
        go_on_in_last_version(logger[0] if isinstance(logger, list) and logger else logger)

    def instantiate_trainer(self, **options: Any) -> pl.Trainer:
        """The trainer, with what every run has.

        For ``fit`` it saves on signals; for ``predict`` it has a writer of predictions, where the configuration names
        none.
        """
        trainer: Any = super().instantiate_trainer(**options)
        if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            raise MisconfigurationException(
                "trainer.strategy: Lightning's own strategies that shard a model do not work with these modules: give "
                "--config configs/overlays/fsdp.yaml, or vlkd_pl.FSDP2Strategy"
            )
        trainer.strategy.checkpoint_io = CheckpointFiles()
        if self.subcommand == "fit":
            trainer.callbacks.append(SaveOnSignal())
        if self.subcommand == "predict" and not _writers(trainer):
            trainer.callbacks.append(PredictionWriter())
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        try:
            return super()._instantiate_trainer(config, callbacks)
        except (TypeError, ValueError) as error:
            raise MisconfigurationException(f"trainer: {error}") from error

    def before_fit(self) -> None:
        """With ``--ckpt_path last``, takes the newest good checkpoint; starts anew where there is none."""
        if self._goes_on:
            last = last_checkpoint(checkpoint_folders(self.trainer))
            self.config_init.fit.ckpt_path = last and str(last)
            keep_logged(self.trainer)
            if last is not None and self.trainer.is_global_zero:
                remove_requeued_before(last)


def main(arguments: Sequence[str]) -> int:
    """Runs one of the trainer's commands.

    Returns:
        0, or 1 where a file, model or setting is wrong: one line then says which. 1 too where predictions are written
        but some files were no pictures; 143 where SIGTERM ended the run.
    """
    transformers.utils.logging.disable_progress_bar()
    try:
        trainer = run(arguments).trainer
    except SIGTERMException:
        return 128 + signal.SIGTERM
    return int(any(writer.num_skipped for writer in _writers(trainer)))


def _writers(trainer: Any) -> list[PredictionWriter]:
    return [callback for callback in trainer.callbacks if isinstance(callback, PredictionWriter)]


def run(arguments: Sequence[str]) -> Any:
    """Parses the command line, builds everything, and runs the trainer.

    Returns:
        The command line object, with its ``trainer``, ``model`` and ``datamodule``.
    """
    return VLKDCLI(
        pl.LightningModule,
        pl.LightningDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        load_from_checkpoint_support=False,
        parser_class=Parser,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        args=list(arguments),
    )
