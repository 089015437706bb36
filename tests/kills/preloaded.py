"""Imported once, by the process that the trainings' processes are forked from."""

from contextlib import suppress

from . import killing, life, loops, task  # noqa: F401

for name in loops.LOOPS:
    with suppress(ImportError):  # `python -m kills` and the tests say what is missing
        loops.load(name)
