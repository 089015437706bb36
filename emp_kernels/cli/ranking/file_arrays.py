"""An array in a file, and how it is found there."""

import itertools
from collections.abc import Collection
from pathlib import Path

import torch

from ...terminal.requirements import CommandError

# Of arrays, where a file holds several.
NAMES = {"logits": ("logits",), "labels": ("labels", "label")}


class InputError(CommandError):
    """What the user named is not what it has to be; nothing has been written."""

    status = 2


class Array:
    """An array in a file, of which rows can be read.

    Attributes:
        path: the file.
        shape: of the whole array.
    """

    path: Path
    shape: tuple[int, ...]

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Rows from `start` to before `stop`; not to be written into."""
        raise NotImplementedError


def named(path: Path, kind: str, names: Collection[str]) -> str:
    """Which of the arrays of a file is the `kind`, "logits" or "labels", that is looked for."""
    for name in NAMES[kind]:
        if name in names:
            return name
    if len(names) == 1:
        return next(iter(names))
    listed = ", ".join(itertools.islice(names, 8)) or "none"
    raise InputError(f"{path} must hold one array, or one named {NAMES[kind][0]}, got {listed}")
