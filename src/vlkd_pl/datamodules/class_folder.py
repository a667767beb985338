"""Images in one folder for each class, for zero-shot classification."""

from __future__ import annotations
