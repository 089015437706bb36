"""Loads the native module and prepares tensors for it.

The module allocates its results itself: it requests huge pages, which halve the cost of first
writing large results, and torch's default dtype and device do not affect it. Lazily negated and
non-contiguous tensors are copied (python/tensors.h).
"""

import os
from types import ModuleType
from typing import Any, NoReturn

import torch
from torch.autograd import forward_ad

from ...results import SampleStatistics, Scores, Selection
from ...tracing import recording
from ...validation import raise_label_out_of_range
from .. import Unavailable, forked

DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
DEVICE = "cpu"

module: Any = None


def require() -> ModuleType:
    """Load the native module; raise if it was not built or EMP_SIMD names an unsupported level."""
    global module
    try:
        import emp_kernels._cpu as _cpu
    except ImportError as error:
        raise Unavailable(
            f"the native module emp_kernels._cpu is missing ({error}); build it with "
            "`pip install .` in the source tree"
        ) from None
    wanted = os.environ.get("EMP_SIMD")
    if wanted and wanted != _cpu.simd_level():
        levels = ", ".join(_cpu.simd_levels())
        raise Unavailable(
            f"EMP_SIMD must name an instruction set of this processor ({levels}), "
            f"got {wanted!r}; unset it or set it to {_cpu.simd_level()}"
        )
    _cpu.share_openmp_of("libtorch_cpu.so")  # two thread pools would compete for the cores
    if forked():  # the library only notices forks that happen after it is loaded
        _cpu.mark_forked()
    _cpu.use_torch(
        torch.Tensor,
        torch._C._from_dlpack,
        torch._C._to_dlpack,
        getattr(torch.Tensor, "__dlpack_c_exchange_api__", None),
    )
    _cpu.use_settings(
        *(torch.get_num_threads, torch.is_grad_enabled, vars(forward_ad)),
        *(torch._C._is_tracing, torch._C._len_torch_dispatch_stack),
        *(torch._C._current_graph_task_id, recording),
    )
    _cpu.use_results(Scores, SampleStatistics, Selection)
    module = _cpu
    return _cpu


def serves_device(device_type: str) -> bool:
    return device_type == "cpu"


def describe() -> str:
    """The instruction set and the number of threads."""
    return f"C++ {require().simd_level()}, {torch.get_num_threads()} threads"


def logit_rows(logits: torch.Tensor) -> torch.Tensor:
    """Logits (..., C) as (N, C), or as groups (G, N / G, C) of equally spaced rows, with unit inner
    stride; a copy where no such view exists."""
    if logits.dim() == 2 and logits.is_contiguous():  # most; cheaper than reading strides
        return logits
    if logits.dim() > 2:
        grouped = _as_groups(logits)
        if grouped is not None:
            return grouped
        logits = logits.flatten(0, -2)
    return logits if logits.stride()[1] == 1 or logits.shape[1] <= 1 else logits.contiguous()


def _as_groups(logits: torch.Tensor) -> torch.Tensor | None:
    """A view (groups, rows, classes) with unit inner stride, or None."""
    if logits.shape[-1] > 1 and logits.stride(-1) != 1:
        return None
    try:
        return logits.view(-1, logits.shape[-2], logits.shape[-1])
    except RuntimeError:
        return None


def readable_labels(labels: torch.Tensor) -> torch.Tensor:
    """Labels (...) as the native module reads them."""
    if labels.dtype is torch.uint64:  # as int64, a label from 2^63 on could equal ignore_index
        signed = labels.resolve_neg().view(torch.int64)
        labels = signed.masked_fill(signed < 0, torch.iinfo(torch.int64).max)
    return labels


def int64_ids(ids: torch.Tensor) -> torch.Tensor:
    """Ids (K,) as int64."""
    return ids if ids.dtype is torch.int64 else ids.to(torch.int64)


def state_tensors(state) -> tuple[torch.Tensor, ...]:
    """The tensors of a state that the native module reads and writes, in its order."""
    return (
        state.score,
        state.loss,
        state.entropy,
        state.updates,
        state.selections,
        state.seen_at,
        state.clock,
    )


def raise_bad_label(function: str, labels: torch.Tensor, row: int, classes: int) -> NoReturn:
    raise_label_out_of_range(function, row, int(labels.reshape(-1)[row]), classes)
