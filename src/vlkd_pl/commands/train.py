"""``vlkd-pl fit``, ``validate``, ``test`` and ``predict``: Lightning's command line over the package's modules."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import transformers
from jsonargparse import set_parsing_settings
from pytorch_lightning.callbacks import ModelCheckpoint, ProgressBar
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from pytorch_lightning.strategies import FSDPStrategy, ModelParallelStrategy
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

from vlkd_pl.commands.parsing import ConfigFile, Parser, TrainerHelp, import_public_classes
from vlkd_pl.modules.vlkd import VLKDModule
from vlkd_pl.training.export import ExportModel
from vlkd_pl.training.logs import METRICS_FILE, ContinueLogs, set_up_logs
from vlkd_pl.training.prediction_writer import PredictionWriter
from vlkd_pl.training.progress_bar import StepProgressBar
from vlkd_pl.training.resume import (
    CheckpointFiles,
    SaveOnSignal,
    is_of_run,
    is_requeued,
    last_of_run,
    remove_requeued_before,
    reuse_last_version,
)
from vlkd_pl.training.runs import (
    check_no_run,
    check_writable,
    default_loggers,
    is_default_logger,
    place_loggers,
    removed_if_failed,
)


class _SharedPart:
    """Links a part of the model to the data: the model's own argument, or else the part in its ``init_from`` folder.

    Args:
        name: ``clip`` or ``bart``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.__name__ = f"{name}_of"  # shown in the help

    def __call__(self, part: str | None, init_from: str | None) -> str | None:
        return str(Path(init_from) / self.name) if part is None and init_from is not None else part


class VLKDCLI(LightningCLI):
    """Lightning's command line with default callbacks and loggers; model and data share arguments of the model.

    Args:
        arguments: The command and its options; the options alone if ``run`` is False.
        **options: Further arguments of ``LightningCLI``.
    """

    def __init__(self, arguments: Sequence[str], **options: Any) -> None:
        self._command = next(iter(arguments), "")
        super().__init__(
            pl.LightningModule,
            pl.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            parser_class=Parser,
            seed_everything_default=0,
            args=list(arguments),
            **options,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """The trainer's method that is the command, with its arguments that are not options; others take time."""
        hidden = {"model", "dataloaders", "datamodule"}
        return {self._command: hidden | {"train_dataloaders", "val_dataloaders", "return_predictions"}}

    def init_parser(self, **options: Any) -> LightningArgumentParser:
        """Make a parser with ``--config`` and ``--trainer.help``."""
        options.setdefault("dump_header", [f"pytorch_lightning=={pl.__version__}"])
        parser = self.parser_class(**options)
        parser.add_argument("-c", "--config", action=ConfigFile, help="a configuration file in YAML")
        parser.add_argument("--trainer.help", action=TrainerHelp)
        return parser

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **options: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **options)
        parser.set_defaults({"trainer.logger": default_loggers(subcommand)})
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the command line."""
        self._names_run_dir = any(argument.split("=")[0] == "--run_dir" for argument in args)
        if any(argument.split("=")[0].endswith(".help") for argument in args):
            set_parsing_settings(docstring_parse_attribute_docstrings=True)  # slow: it reads source files
            import_public_classes()  # which need no class_path then
        super().parse_arguments(parser, args)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's directory and callbacks, and link the arguments that model and data share."""
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Directory of the run, for its logs, checkpoints, results and model.",
        )
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(ExportModel, "export")
        parser.set_defaults({"checkpoint.save_last": True})
        for part in ("clip", "bart"):
            parser.link_arguments(
                (f"model.init_args.{part}", "model.init_args.init_from"), f"data.init_args.{part}", _SharedPart(part)
            )
        for part in ("model", "task"):
            parser.link_arguments(f"model.init_args.{part}", f"data.init_args.{part}")

    def _parse_ckpt_path(self) -> None:
        """Do not read the checkpoint here: Lightning looks for hyperparameters, and these modules save none."""

    @property
    def _resumes(self) -> bool:
        return self.subcommand == "fit" and self.config.fit.ckpt_path == "last"

    def before_instantiate_classes(self) -> None:
        """Let the loggers write to the run's directory; with ``--ckpt_path last`` to that of the last run."""
        options = self.config[self.subcommand] if self.subcommand is not None else self.config
        if self.subcommand == "fit":
            _check_trains(options.model.class_path)
        elif self.subcommand is not None:
            _prefer_model_folder(options)
        trainer = options.trainer
        loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
        if options.run_dir is not None:
            place_loggers(loggers, options.run_dir, moves_all=self._names_run_dir)
            if self._names_run_dir or trainer.default_root_dir is None:
                trainer.default_root_dir = options.run_dir
        elif any(map(is_default_logger, loggers)):
            trainer.logger = [logger for logger in loggers if not is_default_logger(logger)] or None
        if self._resumes:
            reuse_last_version(loggers)

    def instantiate_trainer(self, **options: Any) -> pl.Trainer:
        """Build the trainer with the callbacks of every run.

        ``fit`` saves on signals; ``predict`` writes predictions, unless the configuration names a writer.

        Raises:
            MisconfigurationException: The precision or the strategy is not supported.
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
                "--config overlays/fsdp.yaml, or vlkd_pl.FSDP2Strategy"
            )
        trainer.strategy.checkpoint_io = CheckpointFiles(resumes=self.subcommand == "fit")
        trainer.callbacks.append(ContinueLogs())
        if self.subcommand == "fit":
            trainer.callbacks.append(SaveOnSignal())
        if self.subcommand == "predict" and not _writers(trainer):
            trainer.callbacks.append(PredictionWriter())
        return trainer

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> pl.Trainer:
        config["callbacks"] = self._with_default_callbacks(config, callbacks)
        try:
            return super()._instantiate_trainer(config, [])
        except (TypeError, ValueError) as error:
            raise MisconfigurationException(f"trainer: {error}") from error

    def _with_default_callbacks(self, config: dict[str, Any], callbacks: list[pl.Callback]) -> list[pl.Callback]:
        """Add the default callbacks, each unless the configuration names one of its kind under ``trainer.callbacks``.

        Args:
            config: Arguments of the trainer.
            callbacks: The callbacks under ``checkpoint`` and ``export``.
        """
        configured = config["callbacks"] or []
        configured = configured if isinstance(configured, list) else [configured]
        defaults: dict[type, pl.Callback] = {}
        if config["enable_progress_bar"] is False:  # which Lightning refuses next to a progress bar
            configured = [callback for callback in configured if not isinstance(callback, ProgressBar)]
        else:
            defaults[ProgressBar] = StepProgressBar()
        if self.subcommand == "fit":
            checkpoint, export = callbacks
            if config["enable_checkpointing"] is not False:
                defaults[ModelCheckpoint] = checkpoint
            if isinstance(self.model, VLKDModule):
                defaults[ExportModel] = export
        missing = [
            default
            for kind, default in defaults.items()
            if not any(isinstance(callback, kind) for callback in configured)
        ]
        return [*configured, *missing]

    def before_fit(self) -> None:
        """With ``--ckpt_path last``, resume from the newest intact checkpoint, or start a new run without one.

        Raises:
            MisconfigurationException: A new run would write to the directory of another one.
        """
        path = self.config_init.fit.ckpt_path
        if self._resumes:
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
        """Check the directories of the run, and remove those that a failed start creates."""
        check_writable(self.trainer)
        with removed_if_failed(self.trainer):
            super()._run_subcommand(subcommand)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Set up the logs after all checks, and before the trainer uses them."""
        if self.trainer.is_global_zero:
            name = METRICS_FILE if subcommand == "fit" else f"metrics_{subcommand}.csv"
            set_up_logs(self.trainer.loggers, name, resume=subcommand == "fit")
        options: dict[str, Any] = super()._prepare_subcommand_kwargs(subcommand)
        return options


class _SaveConfig(SaveConfigCallback):
    """Saves the configuration of a run, and explains a failure in one line."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Save the configuration as ``config.yaml`` for ``fit``, and for example as ``config_test.yaml`` for ``test``.

        Raises:
            MisconfigurationException: The file cannot be written.
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
    """Run one of the trainer's commands.

    Args:
        arguments: The command and its options.

    Returns:
        Exit status: 0; 1 when predictions are written but some image files were unreadable; 143 after SIGTERM and 130
        after SIGINT.
    """
    transformers.utils.logging.disable_progress_bar()
    try:
        trainer = run(arguments).trainer
    except SIGTERMException as error:
        return error.code if isinstance(error.code, int) else 128 + signal.SIGTERM
    return int(any(writer.num_skipped for writer in _writers(trainer)))


def _check_trains(class_path: str) -> None:
    """Refuse to fit a module that only evaluates, before its model is loaded.

    Raises:
        MisconfigurationException: The module has no training step.
    """
    module, _, name = class_path.rpartition(".")
    if getattr(import_module(module), name).training_step is pl.LightningModule.training_step:
        raise MisconfigurationException(
            f"{name} only evaluates: train with vlkd-pl fit and VLKDModule, CaptioningModule or VQAModule, and give "
            f"{name} the model folder as init_from"
        )


def _prefer_model_folder(config: Any) -> None:
    """Take CLIP and BART from the model folder of ``init_from``, rather than from the configuration of its training.

    The configuration may name another CLIP or BART, or files that are missing on this machine.
    """
    folder = config.get("model.init_args.init_from")
    if folder is None or not Path(folder).is_dir():
        return
    for name in ("clip", "bart", "image_features", "clip_sha256", "prefix_length"):
        if f"model.init_args.{name}" in config:
            config[f"model.init_args.{name}"] = None
    for name in ("clip", "bart"):
        if f"data.init_args.{name}" in config:
            config[f"data.init_args.{name}"] = str(Path(folder) / name)


def _writers(trainer: Any) -> list[PredictionWriter]:
    return [callback for callback in trainer.callbacks if isinstance(callback, PredictionWriter)]


def run(arguments: Sequence[str]) -> Any:
    """Parse the command line, build everything, and run the trainer.

    Args:
        arguments: The command and its options.

    Returns:
        The command line object, with its ``trainer``, ``model`` and ``datamodule``.
    """
    return VLKDCLI(arguments, save_config_callback=_SaveConfig, save_config_kwargs={"overwrite": True})
