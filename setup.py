"""The parts of the package that setup.cfg cannot tell."""

import re
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildWithConfigs(build_py):
    """Copies ``configs`` into the package; an editable installation reads them where they are."""

    def run(self) -> None:
        """Builds the package."""
        super().run()
        if not self.editable_mode:
            shutil.copytree(ROOT / "configs", Path(self.build_lib) / "vlkd_pl" / "configs", dirs_exist_ok=True)


def description() -> str:
    """The README without its images: their addresses are those of files beside it, which a package index has not."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return re.sub(r"!\[([^]]*)\]\((docs/[^)]*)\)", r"*\1: `\2` in the source distribution.*", readme)


setup(
    cmdclass={"build_py": BuildWithConfigs},
    long_description=description(),
    long_description_content_type="text/markdown",
)
