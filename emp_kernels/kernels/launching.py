"""Launching a compiled kernel again without Triton's inspection of every argument."""

from collections.abc import Callable
from typing import Any

import torch
import triton
from triton.runtime.jit import JITFunction

# From Triton 3.3 on, a compiled kernel takes all arguments, including constants.
_TAKES_ALL = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3)


class Kernel:
    """A kernel, launched like Triton's: ``kernel[grid](*arguments, **constants)``.

    Compiled kernels are cached by the arguments' dtypes and widths, the constants and the device:
    Triton's own lookup takes longer than many kernels run. Variants of such a kernel must not
    depend on values (``do_not_specialize``) or alignment (``do_not_specialize_on_alignment``) of
    arguments.
    """

    def __init__(self, function: Any) -> None:
        self.function = function
        self.direct = isinstance(function, JITFunction) and _TAKES_ALL
        self.compiled: dict[Any, tuple[Any, list[str]]] = {}

    def __getitem__(self, grid: tuple[int]) -> Callable[..., None]:
        if not self.direct:
            return self.function[grid]

        def launch(*arguments: Any, **constants: Any) -> None:
            kinds = [
                a.dtype if isinstance(a, torch.Tensor) else a >> 31 if type(a) is int else type(a)
                for a in arguments
            ]
            key = (arguments[0].get_device(), *kinds, *constants.values())
            found = self.compiled.get(key)
            if found is None:
                compiled = self.function[grid](*arguments, **constants)
                names = self.function.arg_names[len(arguments) :]
                self.compiled[key] = compiled, names
            else:
                compiled, names = found
                compiled[(*grid, 1, 1)](*arguments, *[constants[name] for name in names])

        return launch
