"""Checks what the Triton kernels need: Triton and a recent enough GPU or the interpreter."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

from .. import NO_ROCM, Unavailable

P = ParamSpec("P")
R = TypeVar("R")

DEVICE = "cuda"
DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
OLDEST = (8, 0)  # the oldest compute capability whose minima and maxima can propagate NaN

# The modules of `kernels` that launch; set by `require`, because they import Triton.
contrastive: Any = None
launch: Any = None
launch_linear: Any = None
launch_loss: Any = None
launch_terms: Any = None


def require() -> None:
    """Import the kernels; raise if Triton is missing or no GPU can run them."""
    global contrastive, launch, launch_linear, launch_loss, launch_terms
    try:
        import triton  # noqa: F401
    except ImportError:
        raise Unavailable(
            "Triton is missing; install it with `python -m pip install triton`"
        ) from None
    if torch.version.hip is None and torch.cuda.is_available():
        newest = max(map(torch.cuda.get_device_capability, range(torch.cuda.device_count())))
        if newest < OLDEST:
            raise Unavailable(_too_old(newest))
    from ...kernels import contrastive, launch, launch_linear, launch_loss, launch_terms

    if torch.version.hip is not None and not interpreted():  # they contain NVIDIA assembly
        raise Unavailable(NO_ROCM)


def _too_old(capability: tuple[int, int]) -> str:
    need, have = (".".join(map(str, version)) for version in (OLDEST, capability))
    return (
        f"it needs a GPU of compute capability {need} or newer, this one has {have}; "
        "pass backend='reference'"
    )


@functools.cache
def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels; fixed at their import."""
    from triton.runtime.jit import JITFunction

    return not isinstance(launch.score_rows.function, JITFunction)


def serves_device(device_type: str) -> bool:
    return device_type == "cuda" or (device_type == "cpu" and interpreted())


def describe() -> str:
    """Triton's version, and the GPU or the interpreter."""
    import triton

    where = "interpreted on the CPU" if interpreted() else "no GPU"
    if torch.cuda.is_available():
        where = torch.cuda.get_device_name()
    return f"Triton {triton.__version__}, {where}"


@functools.cache
def check_capability(device: torch.device) -> None:
    """Raise if this GPU, of several, is too old."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST:
        reason = _too_old(torch.cuda.get_device_capability(device))
        raise RuntimeError(f"backend 'triton' does not serve {device}: {reason}")


def reading_memory(function: Callable[P, R]) -> Callable[P, R]:
    """Wraps `function` to materialise lazily negated tensors among its arguments: kernels read raw
    memory."""

    @functools.wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        if options:
            options = {name: _in_memory(option) for name, option in options.items()}  # type: ignore[assignment]
        tensors = (torch.Tensor, tuple)
        found = [_in_memory(x) if isinstance(x, tensors) else x for x in arguments]
        return function(*found, **options)  # type: ignore[arg-type]

    return call


def _in_memory(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        return argument.resolve_neg() if argument.is_neg() else argument
    if not isinstance(argument, tuple):
        return argument
    items = map(_in_memory, argument)
    return argument._make(items) if hasattr(argument, "_make") else tuple(items)
