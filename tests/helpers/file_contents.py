"""Writing JSON files, and comparing folders byte by byte."""

import json


def write_json(path, content):
    """Write a JSON file; return its path as a text."""
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def contents(folder):
    """The bytes of all files of a folder, by their paths relative to it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
