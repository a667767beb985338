"""Sphinx configuration of the documentation, which ``make docs`` builds."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # reference.py

import vlkd_pl

project = "vlkd_pl"
author = "The vlkd_pl developers"
copyright = "2026, The vlkd_pl developers"
version = release = vlkd_pl.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "reference"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["build"]

myst_enable_extensions = ["deflist", "html_image"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_use_ivar = True  # or named tuples' fields are described twice
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"vlkd_pl {release}"
html_static_path: list[str] = []
