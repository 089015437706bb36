"""Detects torch's compilers and tracers, which record operations instead of running them.

Native code and Triton kernels would run only on the example, and their results would become
constants of the recording. A traced call is therefore an operator (:mod:`emp_kernels.ops`,
:mod:`emp_kernels.term_ops`) or an error.
"""

import torch

_tracing_state = torch._C._get_tracing_state
_modes = torch._C._len_torch_dispatch_stack
_KEYS = torch._C._TorchDispatchModeKey
_transforms = torch._C._functorch.peek_interpreter_stack


def _transforming() -> object | None:
    return None if torch.compiler.is_compiling() else _transforms()


# None outside torch.func's transforms. The compilers of torch 2.6 cannot record the call.
transforming = _transforms if torch.__version__ >= "2.13" else _transforming


def recording() -> bool:
    """Whether torch.compile, torch.export or make_fx is tracing, so that operators must be used."""
    return torch.compiler.is_compiling() or (_modes() > 0 and _mode(_KEYS.PROXY) is not None)


def records(function: str) -> bool:
    """`recording`, but raises under torch.jit.trace, which would record sizes as constants."""
    if torch.compiler.is_compiling():
        return True
    if _tracing_state() is not None:
        _refuse_jit(function)
    return _modes() > 0 and _mode(_KEYS.PROXY) is not None


def check_no_tracing(function: str) -> None:
    """Raise under a tracer, or under a mode or transform whose new tensors have no memory: results
    would mix its tensors with real ones, and writes into them would be lost. (Calls that
    torch.compile cannot trace are graph breaks before they reach this.)"""
    if torch.compiler.is_compiling():
        if torch.compiler.is_dynamo_compiling():
            return
        raise RuntimeError(
            f"{function}: tensors must lie in memory (call it outside of what is exported: it is "
            "no operator), got those of torch.export"
        )
    _refuse_jit(function)
    if transforming() is not None:
        raise TypeError(
            f"{function}: tensors must lie in memory (call outside of torch.func's transforms, "
            "with all rows at once), got a call in one of them"
        )
    if not _modes():
        return
    for key in (_KEYS.FUNCTIONAL, _KEYS.PROXY, _KEYS.FAKE):
        mode = _mode(key)
        if mode is not None:
            raise RuntimeError(
                f"{function}: tensors must lie in memory (call it outside the mode, or trace it "
                f"with torch.compile), got {type(mode).__name__}"
            )


def check_recordable(function: str, name: str) -> None:
    """Raise if `name`, whose tensors are real, cannot be traced because all tensors must be
    fake."""
    if not torch.compiler.is_compiling() and _modes() and _mode(_KEYS.FAKE) is not None:
        raise RuntimeError(
            f"{function}: {name} must be recorded with its memory (by torch.compile, torch.export "
            'or make_fx with tracing_mode="real"), got FakeTensorMode'
        )


def _mode(key: "torch._C._TorchDispatchModeKey") -> object | None:
    return torch._C._get_dispatch_mode(key)


def _refuse_jit(function: str) -> None:
    if _tracing_state() is not None:
        raise RuntimeError(
            f"{function}: must be recorded by torch.compile, torch.export or make_fx, got "
            "torch.jit.trace, which would keep the example's sizes and results as constants"
        )
