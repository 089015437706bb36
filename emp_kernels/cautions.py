"""Warnings of what trains the wrong thing without an error: their category, and how they are told
once, at the line of the user's that led there."""

from __future__ import annotations

import sys
import warnings
import weakref
from types import FrameType

# Packages whose frames stand between a user's line and ours.
_BETWEEN = frozenset(
    {"emp_kernels", "torch", "torchdata", "accelerate", "lightning", "pytorch_lightning"}
    | {"lightning_fabric", "transformers", "trl", "contextlib", "functools"}
)

_told: weakref.WeakKeyDictionary[object, set[str]] = weakref.WeakKeyDictionary()


class EMPWarning(UserWarning):
    """A training loop that runs and does not do what it was meant to do. Each names the mend, and
    is told once a state."""


def caution(message: str, of: object, kind: str) -> None:
    """Warn with `message`, unless `of` has been warned of `kind` before. The line shown is the
    nearest one that is neither the package's nor a trainer's or loader's."""
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
