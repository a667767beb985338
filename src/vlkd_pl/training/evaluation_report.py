"""The callback that turns results of validation and test into logged, printed, drawn and written reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.trainer.states import TrainerFn
from pytorch_lightning.utilities.rank_zero import rank_zero_warn

from vlkd_pl.evaluation.evaluator import Evaluator
from vlkd_pl.evaluation.panel import caption_panel, log_panel
from vlkd_pl.evaluation.report import Report


class EvaluationReport(Callback):
    """Collects the ``results`` that ``validation_step`` and ``test_step`` return, and reports at the end of the epoch.

    The scores are logged as ``val/...`` and ``test/...``, and printed outside of training. The panel goes to loggers
    and log folder. A test writes ``scores.json`` and the predictions to the log folder.

    Args:
        evaluator: Evaluator that takes the results.
    """

    def __init__(self, evaluator: Evaluator[Any]) -> None:
        self.evaluator = evaluator

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Turn Lightning's table off, since the report has one."""
        trainer.validate_loop.verbose = False

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Turn Lightning's table off, since the report has one."""
        trainer.test_loop.verbose = False

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collect the results of a batch."""
        self.evaluator.update(outputs["results"])

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log the scores and draw the panel; outside of training also print the table."""
        self._report(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log, print and write the scores, and write the predictions."""
        self._report(trainer, pl_module, "test")

    def _report(self, trainer: pl.Trainer, module: pl.LightningModule, stage: str) -> None:
        folder = trainer.log_dir  # on all ranks, since it is broadcast
        self.evaluator.synchronize()
        report = self.evaluator.compute() if trainer.is_global_zero else None
        self.evaluator.reset()
        scores = trainer.strategy.broadcast(report.scores if report is not None else {})
        for name, value in scores.items():
            module.log(f"{stage}/{name}", value, prog_bar=name == "cider", sync_dist=True)
        if report is None:
            return
        panel = None
        if not trainer.sanity_checking:
            panel = self._draw(trainer, report, stage, folder)
            for note in report.notes:
                rank_zero_warn(note)  # Python shows a warning once
        if trainer.state.fn != TrainerFn.FITTING:
            print(f"\n{report.table}")
        if stage == "test" and folder is not None:
            report.write(Path(folder), panel)
            print(f"scores and predictions: {folder}")

    def _draw(self, trainer: pl.Trainer, report: Report, stage: str, folder: str | None) -> Path | None:
        items = report.panel_items[: self.evaluator.panel_size]
        return log_panel(trainer, f"{stage}/captions", caption_panel(items), folder) if items else None
