"""The exceptions that the package raises for input it refuses."""

from __future__ import annotations


class ModelFileError(ValueError):
    """A file or folder of weights, of a configuration or of a tokenizer is corrupt, incomplete or of another model.

    Raised by everything that loads a CLIP, a BART, a model folder or a checkpoint. The message is one line: what is
    wrong, in which file, and what to do.
    """
