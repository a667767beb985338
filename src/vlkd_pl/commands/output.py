"""What commands print on the standard output."""

from __future__ import annotations

import json
import sys
from typing import Any


def print_json(record: dict[str, Any]) -> None:
    """Prints a JSON line at once, with JSON's own escapes where the output's encoding lacks a character."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # also a file name's bytes that are not UTF-8
        line = json.dumps(record)
    print(line, flush=True)
