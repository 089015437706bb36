"""Calls that torch.compile must not trace: their sizes depend on the data, or they write."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from .tracing import check_no_tracing

P = ParamSpec("P")
R = TypeVar("R")


def outside_compiler_where(
    condition: Callable[..., bool], name: str | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: if `condition` holds for its arguments, the function is a graph break under
    ``torch.compile`` and an error under ``torch.export``. ``torch.compiler.disable`` imports the
    whole compiler and is therefore called on first use."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        made: list[Callable[P, R]] = []

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if not torch.compiler.is_compiling() or not condition(*args, **kwargs):
                return function(*args, **kwargs)
            if not torch.compiler.is_dynamo_compiling():
                check_no_tracing(name or function.__name__)
            if not made:
                made.append(torch.compiler.disable(function))
            return made[0](*args, **kwargs)

        return call

    return decorate


def outside_compiler(function: Callable[P, R], name: str | None = None) -> Callable[P, R]:
    """`function` as a graph break wherever it is called."""
    return outside_compiler_where(lambda *_, **__: True, name)(function)
