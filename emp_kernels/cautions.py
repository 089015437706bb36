"""Warnings about training loops that run but do not train as intended, each shown once at the
user's line of code."""

from __future__ import annotations

import sys
import warnings
import weakref
from types import FrameType

# Packages whose frames may be between the user's line and ours.
_BETWEEN = frozenset(
    {"emp_kernels", "torch", "torchdata", "accelerate", "lightning", "pytorch_lightning"}
    | {"lightning_fabric", "transformers", "trl", "contextlib", "functools"}
)

_told: weakref.WeakKeyDictionary[object, set[str]] = weakref.WeakKeyDictionary()


class EMPWarning(UserWarning):
    """A training loop runs but does not train as intended. The message names the fix and is shown
    once per state."""


def caution(message: str, of: object, kind: str) -> None:
    """Warn with `message`, unless a warning of this `kind` was given for `of` before. The line
    shown is the nearest one outside this package, trainers and loaders."""
    told = _told.setdefault(of, set())
    if kind in told:
        return
    told.add(kind)
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _between(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, EMPWarning, stacklevel=level)


def _between(frame: FrameType) -> bool:
    name = frame.f_globals.get("__name__", "")
    return isinstance(name, str) and name.partition(".")[0] in _BETWEEN
