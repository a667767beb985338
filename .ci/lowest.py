"""Prints the lowest release of each package that setup.cfg allows, as constraints for pip."""

import configparser
import re
from pathlib import Path

SETUP = Path(__file__).parents[1] / "setup.cfg"


def lowest_releases() -> dict[str, str]:
    """The lower bound of each requirement, of the extras too."""
    config = configparser.ConfigParser()
    config.read(SETUP, encoding="utf-8")
    requirements = [config["options"]["install_requires"], *config["options.extras_require"].values()]
    bounds = re.findall(r"^([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", "\n".join(requirements), flags=re.MULTILINE)
    return dict(bounds)


if __name__ == "__main__":
    for name, release in lowest_releases().items():
        print(f"{name}=={release}")
