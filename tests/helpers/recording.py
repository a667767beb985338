"""A distillation that records the keys of its training samples, and one that sleeps in a step."""

import json
import time
from pathlib import Path

from pytorch_lightning.callbacks import Callback

from vlkd_pl.modules.vlkd import VLKDModule


class RecordingModule(VLKDModule):
    def training_step(self, batch, batch_index):
        with (Path(self.trainer.default_root_dir) / f"rank{self.global_rank}.jsonl").open("a") as file:
            file.write(json.dumps(batch["keys"]) + "\n")
        return super().training_step(batch, batch_index)


class Asleep(Callback):
    """Callback that stops training in the middle of a step."""

    def on_train_batch_start(self, trainer, *arguments):
        (Path(trainer.default_root_dir) / "asleep").touch()
        time.sleep(1000)


def recorded(folder, rank=0):
    """Read the recorded keys of a rank's batches."""
    return [json.loads(line) for line in (folder / f"rank{rank}.jsonl").read_text().splitlines()]
