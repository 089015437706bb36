"""Launching a kernel where its tensors are, and again without asking Triton to look at every
argument anew."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import triton
from triton.runtime.jit import JITFunction

# From Triton 3.3 on, a compiled kernel takes all arguments, including constants.
_TAKES_ALL = tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 3)


OPTIONS = {"enable_fp_fusion": False}  # where a product and a sum round once, the kernels say so


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of the device; the interpreter is one."""
    if device.type == "cpu":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


_AS_IT_IS = nullcontext()


def on_device(device: torch.device) -> AbstractContextManager:
    """Kernels run on the current device: make it the tensors'."""
    if device.type == "cpu" or device.index == torch.cuda.current_device():
        return _AS_IT_IS
    return torch.cuda.device(device)


Again = Callable[[int, int, tuple[Any, ...]], None]  # given a grid, a stream and arguments


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
        self.compiled: dict[Any, Again] = {}

    def __getitem__(self, grid: tuple[int]) -> Callable[..., Again | None]:
        if not self.direct:
            return self.function[grid]

        def launch(*arguments: Any, **constants: Any) -> Again:
            kinds = [
                a.dtype if isinstance(a, torch.Tensor) else a >> 31 if type(a) is int else type(a)
                for a in arguments
            ]
            key = (arguments[0].get_device(), *kinds, *constants.values())
            again = self.compiled.get(key)
            if again is None:
                compiled = self.function[grid](*arguments, **constants)
                names = self.function.arg_names[len(arguments) :]
                again = repeated(compiled, tuple(constants[name] for name in names))
                self.compiled[key] = again
            else:
                again(grid[0], stream_of(arguments[0].device), arguments)
            return again

        return launch


def repeated(compiled: Any, constants: tuple[Any, ...]) -> Again:
    """Launches what Triton compiled, given a grid, a stream and its arguments, of which tensors may
    also be addresses. Triton's own launcher, without what it asks and makes anew each time."""
    run = compiled.run
    wanted = ("kernel_signature", "arg_annotations", "launch", "launch_pdl")  # Triton 3.7's
    if (
        not all(hasattr(run, name) for name in wanted)
        or run.global_scratch_size
        or run.profile_scratch_size
    ):
        return lambda grid, stream, arguments: compiled[(grid, 1, 1)](
            *arguments, *constants, stream=stream
        )
    launch, hooks = run.launch, triton.knobs.runtime
    settings = (
        compiled.function,
        run.launch_cooperative_grid,
        run.launch_pdl,
        compiled.packed_metadata,
    )
    rest = None, None, None, None, None, run.arg_annotations, run.kernel_signature

    def again(grid: int, stream: int, arguments: tuple[Any, ...]) -> None:
        if hooks.launch_enter_hook.calls or hooks.launch_exit_hook.calls:  # a profiler's
            compiled[(grid, 1, 1)](*arguments, *constants, stream=stream)
        else:
            launch(grid, 1, 1, stream, *settings, *rest, (*arguments, *constants))

    return again


def stream_of(device: torch.device) -> int:
    """The current stream of the device, as the driver knows it."""
    return triton.runtime.driver.active.get_current_stream(device.index)


class Known(NamedTuple):
    """What a first call on few rows found out: how it is launched again, the integers that it is
    given (rows, strides, classes), and how much memory it needs."""

    again: Again
    grid: int
    shape: tuple[int, ...]
    counts: int
    stream: bool
    parts: int
