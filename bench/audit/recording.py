"""Records launches of the Triton backend instead of running them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import triton

from emp_kernels.kernels import contrastive, launch, launch_linear, launch_loss, launch_terms


class Launch(NamedTuple):
    """A recorded launch: the kernel, its arguments by name, and its compiler options."""

    kernel: Any
    arguments: dict[str, Any]
    options: dict[str, Any]


class Recorder:
    """Replaces a kernel and records its launches."""

    def __init__(self, kernel: Any, launches: list[Launch]) -> None:
        self.kernel, self.launches = kernel, launches

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.record

    def record(self, *args: Any, **kwargs: Any) -> None:
        names = self.kernel.arg_names
        arguments = dict(zip(names, args, strict=False))
        options = {}
        for name, value in kwargs.items():
            (arguments if name in names else options)[name] = value
        self.launches.append(Launch(self.kernel, arguments, options))


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Record launches instead of running them, as if on a chip with 132 multiprocessors."""
    launches: list[Launch] = []
    kept: list[tuple[Any, str, Any]] = []
    kept.append((launch, "processors", launch.processors))
    launch.processors = lambda device: 132
    for module in (contrastive, launch, launch_linear, launch_loss, launch_terms):
        for name, value in list(vars(module).items()):
            kernel = getattr(value, "function", value)
            if isinstance(kernel, triton.runtime.jit.JITFunction):
                kept.append((module, name, value))
                setattr(module, name, Recorder(kernel, launches))
    try:
        yield launches
    finally:
        for module, name, value in kept:
            setattr(module, name, value)
