"""Backends: the same functions with the same signatures, and the choice among them.

Every backend has the functions that it supports (listed in its ``__init__``), ``require``,
``serves_device``, ``describe`` and ``DTYPES``. Arguments have been checked for type, shape and
device, except those of ``plain_`` functions, see :func:`plain`. A backend with many functions is a
package whose submodules have the names of the public modules that call them:
``triton/contrastive.py`` is what ``emp_kernels/contrastive.py`` calls. Backends never import one
another.
"""

import functools
import importlib
import os
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch.autograd import forward_ad

from ..tracing import check_no_tracing

NAMES = ("reference", "cpu", "triton", "cuda")


_forked = False


def _note_fork() -> None:
    global _forked
    _forked = True


def forked() -> bool:
    """Whether this process was forked after the package was imported. OpenMP threads that torch had
    started do not survive a fork, and waiting for them would hang."""
    return _forked


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def forward_mode() -> bool:
    """Whether forward-mode AD is on (torch.func.jvp, torch.autograd.forward_ad):
    only torch's own operations take them along."""
    return forward_ad._current_level >= 0


class Unavailable(RuntimeError):
    """A backend cannot run here; the message says what is missing and how to get it."""


# Under ROCm, torch also calls AMD GPUs "cuda".
NO_ROCM = "it needs an NVIDIA GPU, and this torch is built for ROCm; pass backend='reference'"


def _module(name: str) -> ModuleType:
    """Backend `name`, without loading its dependencies (Triton, a native module)."""
    return importlib.import_module(f"{__name__}.{name}")


@functools.cache
def load(name: str) -> ModuleType:
    """Import backend `name`; raise :class:`Unavailable` if this machine cannot run it."""
    module = _module(name)
    module.require()
    return module


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)


def default(device_type: str, dtype: torch.dtype) -> str:
    """Name of the fastest backend for tensors of `dtype` on `device_type`."""
    if dtype == torch.float64:
        return "reference"
    return {"cpu": "cpu", "cuda": "triton"}.get(device_type, "reference")


# Public functions that a backend implements under another name.
_SERVED_BY = {
    "EMPSampler": "shuffle",
    "EMPState.update": "update_state",
    "ShardedState": "log_ids",
    "rank": "score",
    "distributed.score_vocab_parallel": "row_sums",
    "cross_entropy": "cross_entropy_backward",
    "log_prob_and_entropy": "row_terms_backward",
    "linear_log_prob_and_entropy": "linear_terms_backward",
    "gather": "gather_rows",
    "linear_cross_entropy": "linear_cross_entropy_backward",
}


def offers(backend: ModuleType, function: str) -> bool:
    """Whether `backend` implements the public `function`."""
    return hasattr(backend, _SERVED_BY.get(function, function))


@functools.cache
def _resolve(function: str, name: str | None, device_type: str, dtype: torch.dtype) -> ModuleType:
    if name is None:
        best = default(device_type, dtype)
        try:
            backend = load(best)
        except Unavailable as reason:
            _warn_once(f"emp_kernels uses the slower 'reference' backend: {reason}")
            return load("reference")
        if not offers(backend, function):
            return load("reference")
        if best == "reference" and dtype != torch.float64 and device_type != "cpu":
            _warn_once(
                "emp_kernels uses the slower 'reference' backend: "
                f"no other backend serves {device_type} tensors"
            )
        return backend
    if name not in NAMES:
        raise ValueError(
            f"{function}: backend must be None or one of {', '.join(NAMES)}, got {name!r}"
        )
    if not offers(_module(name), function):
        others = [repr(other) for other in NAMES if offers(_module(other), function)]
        raise RuntimeError(
            f"{function}: backend {name!r} does not offer {function}; pass "
            f"{', '.join(others)} or backend=None"
        )
    try:
        backend = load(name)
    except Unavailable as reason:
        raise RuntimeError(f"{function}: backend {name!r} is not available: {reason}") from None
    if not backend.serves_device(device_type):
        raise RuntimeError(
            f"{function}: backend {name!r} does not serve {device_type} tensors; "
            f"move them with .to({backend.DEVICE!r}) or pass backend=None"
        )
    return backend


def resolve(function: str, name: str | None, tensor: torch.Tensor) -> ModuleType:
    """The module that runs `function` on `tensor`: the named backend, or the fastest one.

    Raises:
        ValueError: `name` is no backend.
        RuntimeError: the named backend is not available here or does not serve the device, or
            torch's FunctionalTensorMode or FakeTensorMode is active, or the call is being traced.
        TypeError: `name` is no string, or the named backend does not take the tensor's dtype.
    """
    check_no_tracing(function)
    dtype = tensor.dtype
    device_type = "cpu" if tensor.is_cpu else tensor.device.type
    if name is None:
        return _resolve(function, None, device_type, dtype)
    if not isinstance(name, str):
        raise TypeError(f"{function}: backend must be a str or None, got {type(name).__name__}")
    backend = _resolve(function, name, device_type, dtype)
    if dtype not in backend.DTYPES:
        raise TypeError(
            f"{function}: backend {name!r} must get float32, float16 or bfloat16, got {dtype} "
            "(backend='reference' also takes float64)"
        )
    return backend


def resolve_gather(source: torch.Tensor, by_torch: bool) -> ModuleType:
    """The module that gathers rows of `source`, of any dtype: the reference where torch's own
    index_select is required, for autograd or for lazily negated tensors."""
    if source.layout != torch.strided or by_torch:
        return load("reference")
    if source.is_cpu:
        return _resolve("gather", None, "cpu", torch.uint8)
    if source.is_cuda and _gathers_on_cuda():
        return load("cuda")
    return load("reference")


@functools.cache
def plain(function: str) -> Callable[..., Any] | None:
    """The CPU backend's fast path of the public `function`, which takes ordinary arguments without
    any check in Python. It returns None for all other arguments, for invalid ones, which the checks
    then report, and under a tracer that is no compiler. For small batches the checks would dominate
    the call."""
    try:
        backend = load(default("cpu", torch.float32))
    except Unavailable:
        return None
    return getattr(backend, f"plain_{function}", None)


@functools.cache
def _gathers_on_cuda() -> bool:
    """Whether the CUDA extension is available; without it torch's index_select is nearly as
    fast."""
    try:
        load("cuda")
    except Unavailable:
        return False
    return True
