"""An array in a file, and which one to take if there are several."""

import itertools
from collections.abc import Collection
from pathlib import Path

import torch

from ...terminal.requirements import UsageError

# Names of arrays in files that hold several.
NAMES = {"logits": ("logits",), "labels": ("labels", "label")}


class InputError(UsageError):
    """An input is missing or not of the required form; nothing has been written."""


class Array:
    """An array in a file, readable by rows.

    Attributes:
        path: the file.
        shape: the whole array's.
    """

    path: Path
    shape: tuple[int, ...]

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Rows from `start` to before `stop`; not to be written into."""
        raise NotImplementedError


def named(path: Path, kind: str, names: Collection[str]) -> str:
    """The name of the array in a file that holds the `kind`, "logits" or "labels"."""
    for name in NAMES[kind]:
        if name in names:
            return name
    if len(names) == 1:
        return next(iter(names))
    listed = ", ".join(itertools.islice(names, 8)) or "none"
    raise InputError(f"{path} must hold one array, or one named {NAMES[kind][0]}, got {listed}")
