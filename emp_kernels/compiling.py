"""Calls that torch.compile must leave alone: their sizes depend on the data, or they write."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def outside_compiler(function: Callable[P, R]) -> Callable[P, R]:
    """`function` as a graph break under ``torch.compile``. The break is made on first use:
    ``torch.compiler.disable`` imports the whole compiler."""
    made: list[Callable[P, R]] = []

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.compiler.is_compiling():
            return function(*args, **kwargs)
        if not made:
            made.append(torch.compiler.disable(function))
        return made[0](*args, **kwargs)

    return call
