"""``vlkd-pl fit``, ``validate`` and ``test``: Lightning's command line over the package's modules and data modules."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import transformers
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI
from pytorch_lightning.utilities.exceptions import MisconfigurationException


class VLKDCLI(LightningCLI):
    """Lightning's command line; what model and data share is given once, under ``model``."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The trainer's methods that are commands."""
        hidden = {"model", "dataloaders", "datamodule"}
        return {"fit": hidden | {"train_dataloaders", "val_dataloaders"}, "validate": hidden, "test": hidden}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Links the arguments that model and data must agree on."""
        parser.link_arguments("model.init_args.clip", "data.init_args.clip")
        parser.link_arguments("model.init_args.bart", "data.init_args.bart")


def main(arguments: Sequence[str]) -> int:
    """Runs one of the trainer's commands.

    Returns:
        0, or 1 where a file, model or setting is wrong: one line then says which.
    """
    quiet()
    try:
        run(arguments)
    except (FileNotFoundError, MisconfigurationException) as error:
        print(f"vlkd-pl {arguments[0]}: {error}", file=sys.stderr)
        return 1
    return 0


def quiet() -> None:
    """Keeps what other packages say of themselves off the screen, so that what a user must read stands out."""
    for message in (
        "pkg_resources is deprecated",  # by OpenAI's clip, on import
        "LightningCLI's args parameter",  # the arguments come from main()
        r"Found \d+ module\(s\) in eval mode",  # the frozen CLIP is meant to be
        r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # by Lightning, of its own code
        "Experiment logs directory",  # the TensorBoard logger made it a moment before
        "The '[a-z_]+_dataloader' does not have many workers",  # so chosen where cores are few
    ):
        warnings.filterwarnings("ignore", message=f".*{message}")
    logging.getLogger("pytorch_lightning.utilities.rank_zero").addFilter(
        lambda record: "litlogger" not in record.getMessage()
    )
    transformers.utils.logging.disable_progress_bar()


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
        save_config_kwargs={"overwrite": True},
        seed_everything_default=0,
        args=list(arguments),
    )
