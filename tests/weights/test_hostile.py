"""Nothing in a weights file is executed; an audit hook watches."""

import json
import os
import subprocess
import sys
from pathlib import Path

import hostile
from tiny_models import tiny_clip

import vlkd_pl


def test_hostile_files_are_refused(tmp_path, clip_folder, bart_folder, model_folder):
    for name in ("clips", "barts", "models", "checkpoints", "work"):
        (tmp_path / name).mkdir()
    hostile.write_clips(tmp_path / "clips", tiny_clip("vit"))
    hostile.write_barts(tmp_path / "barts", bart_folder)
    hostile.write_models(tmp_path / "models", model_folder)
    hostile.write_checkpoints(tmp_path / "checkpoints")
    probe = Path(__file__).parents[1] / "helpers" / "hostile_probe.py"
    done = subprocess.run(
        [sys.executable, str(probe), *map(str, (tmp_path, clip_folder, bart_folder, model_folder))],
        cwd=tmp_path / "work",
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(Path(vlkd_pl.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["wrong"] == {}
    assert result["events"] == []
    assert not list((tmp_path / "work").iterdir())
    assert result["loads"] > 200
    assert result["grown_mb"] < 800
