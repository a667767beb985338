"""The parts of the package that setup.cfg cannot declare."""

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithConfigs(build_py):
    """Copy ``configs`` into the package; an editable installation reads them from the checkout."""

    def run(self) -> None:
        """Build the package."""
        super().run()
        if not self.editable_mode:
            shutil.copytree(ROOT / "configs", Path(self.build_lib) / "vlkd_pl" / "configs", dirs_exist_ok=True)


def description() -> str:
    """Return the README without images and links to files of the checkout, which a package index does not have."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    readme = re.sub(r"!\[([^]]*)\]\((docs/[^)]*)\)", r"*\1: `\2` in the source distribution.*", readme)
    return re.sub(r"\[([^]]*)\]\((?!https://|#)[^)]*\)", r"\1", readme)


setup(
    cmdclass={"build_py": BuildWithConfigs},
    long_description=description(),
    long_description_content_type="text/markdown",
)
