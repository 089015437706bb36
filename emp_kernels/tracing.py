"""Who records operations instead of running them: torch's compilers and tracers.

What records reads no memory. Native code and Triton kernels would run on the example alone, and
their results would stand in the recording as constants: so a call is an operator there
(:mod:`emp_kernels.ops`, :mod:`emp_kernels.term_ops`), or an error.
"""

import torch

_tracing_state = torch._C._get_tracing_state
_modes = torch._C._len_torch_dispatch_stack
_KEYS = torch._C._TorchDispatchModeKey
# None outside of torch.func's transforms.
transforming = torch._C._functorch.peek_interpreter_stack


def recording() -> bool:
    """Whether torch.compile, torch.export or make_fx record what runs, which must then be
    operators."""
    return torch.compiler.is_compiling() or (_modes() > 0 and _mode(_KEYS.PROXY) is not None)


def running() -> bool:
    """Whether nobody records, torch.jit.trace included."""
    if torch.compiler.is_compiling() or _tracing_state() is not None:
        return False
    return not _modes() or _mode(_KEYS.PROXY) is None


def records(function: str) -> bool:
    """`recording`, raising where torch.jit.trace does, which would keep sizes as constants."""
    if torch.compiler.is_compiling():
        return True
    if _tracing_state() is not None:
        _refuse_jit(function)
    return _modes() > 0 and _mode(_KEYS.PROXY) is not None


def check_no_tracing(function: str) -> None:
    """Nobody records, and no mode or transform is active whose new tensors have no memory: results
    would be half its own and half real ones, and what is written into tensors of ours would be
    lost. (What torch.compile cannot record breaks its graph before it comes here.)"""
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
    """`name`, whose tensors lie in memory, can be recorded: not where all have to be fake."""
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
