"""A distillation that writes down the samples it is trained on, and one that falls asleep."""

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
    """Stops training in the middle of a step."""

    def on_train_batch_start(self, trainer, *arguments):
        (Path(trainer.default_root_dir) / "asleep").touch()
        time.sleep(1000)


def recorded(folder, rank=0):
    """The keys of each batch of a rank."""
    return [json.loads(line) for line in (folder / f"rank{rank}.jsonl").read_text().splitlines()]
