"""Every configuration file parses, and says what the paper says."""

from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
COMPLETE = sorted(path for path in CONFIGS.rglob("*.yaml") if "class_path: vlkd_pl" in path.read_text())
