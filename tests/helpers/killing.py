"""Kills of a writing process at each of its changes of the file system."""

import itertools
import os
import pathlib


class Killed(BaseException):
    """Exception that simulates a kill, after which no cleanup is possible."""


def kill_at(monkeypatch, number):
    """Raise ``Killed`` at the ``number``-th change of the file system and at every later one.

    Returns:
        A dictionary whose ``dead`` is true once the process was killed.
    """
    count = itertools.count()
    state = {"dead": False}

    def guarded(call):
        def wrapped(*arguments, **options):
            if state["dead"] or next(count) == number:
                state["dead"] = True
                raise Killed
            return call(*arguments, **options)

        return wrapped

    for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "remove", "fsync"):
        call = guarded(getattr(os, name))
        monkeypatch.setattr(os, name, call)
        # on Python 3.10, pathlib binds these functions when it is imported
        if hasattr(getattr(pathlib, "_NormalAccessor", None), name):
            monkeypatch.setattr(pathlib._NormalAccessor, name, staticmethod(call))
    return state
