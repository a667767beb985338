"""``vlkd-pl fit``, ``validate``, ``test`` and ``predict``: Lightning's command line over the package's modules."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import transformers
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.strategies import FSDPStrategy, ModelParallelStrategy
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from vlkd_pl.commands.parsing import ConfigFile, Parser, TrainerHelp, build, import_public_classes
from vlkd_pl.training.logs import METRICS_FILE, ContinueLogs, set_up_logs
from vlkd_pl.training.prediction_writer import PredictionWriter
from vlkd_pl.training.resume import (
    CheckpointFiles,
    SaveOnSignal,
    is_of_run,
    is_requeued,
    last_of_run,
    remove_requeued_before,
    reuse_last_version,
)
from vlkd_pl.training.runs import check_no_run, check_writable, place_loggers, removed_if_failed


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
        """Adds the run's directory, and links the arguments that model and data must agree on."""
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Directory of the run, for its logs, checkpoints and model, in place of the one of the configuration.",
        )
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
        """Let all loggers write to ``--run_dir``; with ``fit --ckpt_path last``, to the directory of the last run."""
        options = self.config[self.subcommand] if self.subcommand is not None else self.config
        if self.subcommand not in (None, "fit"):
            _prefer_model_folder(options)
        loggers = options.trainer.logger if isinstance(options.trainer.logger, list) else [options.trainer.logger]
        if options.run_dir is not None:
            place_loggers(loggers, Path(options.run_dir))
            options.trainer.default_root_dir, options.run_dir = options.run_dir, None
        if self._goes_on:
            reuse_last_version(loggers)

    def instantiate_trainer(self, **options: Any) -> pl.Trainer:
        """The trainer, with what every run has.

        For ``fit`` it saves on signals; for ``predict`` it has a writer of predictions, where the configuration names
        none.
        """
        trainer: Any = super().instantiate_trainer(**options)
        if trainer.precision in ("16-true", "bf16-true"):
            raise MisconfigurationException(
                f"trainer.precision: {trainer.precision} keeps all weights in 16 bits, which these modules do not "
                f"support: give {trainer.precision.removesuffix('true')}mixed, or 32-true"
            )
        if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy):
            raise MisconfigurationException(
                "trainer.strategy: Lightning's own strategies that shard a model do not work with these modules: give "
                "--config configs/overlays/fsdp.yaml, or vlkd_pl.FSDP2Strategy"
            )
        trainer.strategy.checkpoint_io = CheckpointFiles(resumes=self.subcommand == "fit")
        trainer.callbacks.append(ContinueLogs())
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
        """With ``--ckpt_path last``, take the newest intact checkpoint; start anew where there is none.

        Raises:
            MisconfigurationException: A new run would write where another one has written.
        """
        path = self.config_init.fit.ckpt_path
        if self._goes_on:
            last = last_of_run(self.trainer)
            self.config_init.fit.ckpt_path = last and str(last)
            if last is not None and self.trainer.is_global_zero:
                remove_requeued_before(last)
        elif not is_of_run(path, self.trainer) if path is not None else not is_requeued(self.trainer):
            check_no_run(self.trainer)
        kind = type(self.datamodule)
        if self.datamodule is not None and kind.state_dict is not pl.LightningDataModule.state_dict:
            warnings.filterwarnings("ignore", ".*your dataloader is not resumable")  # the data module resumes it

    def _run_subcommand(self, subcommand: str) -> None:
        """Check where the run will write, and remove what a failed start leaves there."""
        check_writable(self.trainer)
        with removed_if_failed(self.trainer):
            super()._run_subcommand(subcommand)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Set up the logs: after all checks, and before the trainer uses them."""
        if self.trainer.is_global_zero:
            name = METRICS_FILE if subcommand == "fit" else f"metrics_{subcommand}.csv"
            set_up_logs(self.trainer.loggers, name, resume=subcommand == "fit")
        options: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        return options


class _SaveConfig(SaveConfigCallback):
    """Saves the configuration of a run; where that fails, it says so in one line."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Save it as ``config.yaml`` for ``fit``, and as ``config_test.yaml`` for a test of that run.

        Raises:
            MisconfigurationException: It cannot be written.
        """
        self.config_filename = "config.yaml" if stage == "fit" else f"config_{TrainerFn(stage).value}.yaml"
        try:
            super().setup(trainer, pl_module, stage)
        except OSError as error:
            raise MisconfigurationException(
                f"{self.config_filename} cannot be written to the run's directory ({error}): make room there, or give "
                "another one"
            ) from error


def main(arguments: Sequence[str]) -> int:
    """Runs one of the trainer's commands.

    Returns:
        0, or 1 where a file, model or setting is wrong: one line then says which. 1 too where predictions are written
        but some files were no images; 143 where SIGTERM ended the run, and 130 where SIGINT did.
    """
    transformers.utils.logging.disable_progress_bar()
    try:
        trainer = run(arguments).trainer
    except SIGTERMException as error:
        return error.code if isinstance(error.code, int) else 128 + signal.SIGTERM
    return int(any(writer.num_skipped for writer in _writers(trainer)))


def _prefer_model_folder(config: Any) -> None:
    """Of a model folder to start from, takes all that it holds: what the configuration of its training names may be
    another CLIP or BART, or be missing on this machine.
    """
    folder = config.get("model.init_args.init_from")
    if folder is None or not Path(folder).is_dir():
        return
    for name in ("clip", "bart", "image_features", "clip_sha256"):
        if f"model.init_args.{name}" in config:
            config[f"model.init_args.{name}"] = None
    for name in ("clip", "bart"):
        if f"data.init_args.{name}" in config:
            config[f"data.init_args.{name}"] = str(Path(folder) / name)


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
        save_config_callback=_SaveConfig,
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        args=list(arguments),
    )
