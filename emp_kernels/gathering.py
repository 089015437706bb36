"""Gathering the kept rows of a batch."""

from typing import Any

import torch
from torch.compiler import is_compiling

from . import backends
from .containers import collect, rebuild, same_structure
from .tracing import check_no_tracing, records, transforming
from .validation import check_ids, describe


def gather(batch: Any, indices: torch.Tensor, *, out: Any = None) -> Any:
    """Rows `indices` of a tensor, or of every tensor in a nested container of tensors.

    ``out[k] = source[indices[k]]`` along the first dimension, like ``torch.index_select``, for
    all tensors in one call. Ascending indices are fastest: runs of wide rows are copied as one
    block.

    Args:
        batch: a tensor (N, ...) of any dtype, or a mapping, list, tuple, NamedTuple or dataclass
            of such batches; the container's type is kept. A dataclass's fields may also be None;
            its other attributes are kept.
        indices: (K,) of any integer dtype, in [0, N); any order, duplicates allowed. Moved to
            each tensor's device.
        out: a container like `batch` of contiguous tensors (K, ...) to write into; none may
            share memory with its source, and neither may require grad.

    Returns:
        The gathered batch; `out` if it is given. Differentiable like ``index_select``, which serves
        the call under ``torch.compile`` and ``torch.func``.

    Raises:
        TypeError: a leaf is not a tensor, or torch cannot select its rows (nested, or sparse other
            than COO); indices are not integers; `out` has another structure or dtype.
        ValueError: an index out of range (on CPU; under ``torch.compile`` the error is torch's),
            a wrong shape, device or aliasing in `out`.
    """
    if out is None and not is_compiling():  # compilers see the operations below
        plain = backends.plain("gather")
        gathered = plain and plain(batch, indices)
        if gathered is not None:
            return gathered
    check_ids("gather", "indices", indices)
    sources: list[torch.Tensor] = []
    collect(batch, sources)
    outputs: list[torch.Tensor] | None = None
    if out is not None:
        outputs = []
        collect(out, outputs)
        _check_outputs(batch, out, sources, outputs, indices)
    rows = iter(_gather_leaves(sources, indices, outputs))
    return out if out is not None else rebuild(batch, rows)


def _gather_leaves(
    sources: list[torch.Tensor], indices: torch.Tensor, outputs: list[torch.Tensor] | None
) -> list[torch.Tensor]:
    """Gathered leaves in order, with one backend call per group of sources that are alike."""
    if not sources:
        return []
    if outputs is not None:
        check_no_tracing("gather")
    elif records("gather"):  # compilers know torch's own operation
        positions = indices.to(torch.int64)
        return [_compiled_rows(source, positions.to(source.device)) for source in sources]
    derivatives = torch.is_grad_enabled(), backends.forward_mode() or transforming() is not None
    for tensor in sources if outputs is None else sources + outputs:
        if not tensor.is_cpu or _needs_torch(tensor, *derivatives):
            break
    else:  # the common case, without grouping
        return _gather_group(sources[0].device, False, sources, indices, outputs)
    groups = [(source.device, _needs_torch(source, *derivatives)) for source in sources]
    if outputs is not None:
        groups = [
            (device, by_torch or _needs_torch(out, *derivatives))
            for (device, by_torch), out in zip(groups, outputs, strict=True)
        ]
    results: list[Any] = [None] * len(sources)
    for group in dict.fromkeys(groups):
        members = [i for i, other in enumerate(groups) if other == group]
        gathered = _gather_group(
            *group,
            [sources[i] for i in members],
            indices,
            None if outputs is None else [outputs[i] for i in members],
        )
        for i, rows in zip(members, gathered, strict=True):
            results[i] = rows
    return results


def _compiled_rows(source: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """``index_select`` under a compiler, which would count a negative id from the end: negative ids
    are moved past the end, so that they are an error there too."""
    return source.index_select(0, torch.where(positions < 0, source.shape[0], positions))


def _needs_torch(tensor: torch.Tensor, grad: bool, forward: bool) -> bool:
    """Whether torch must copy the rows: for autograd, for lazily conjugated, negated or scaled
    tensors, for tensors without memory, and for subclasses and layouts with their own indexing."""
    return (
        forward
        or type(tensor) is not torch.Tensor
        or (grad and tensor.requires_grad)
        or tensor.is_neg()
        or tensor.is_conj()
        or tensor._is_zerotensor()
        or tensor.is_quantized
        or tensor.layout is not torch.strided
    )


def _gather_group(
    device: torch.device,
    by_torch: bool,
    sources: list[torch.Tensor],
    indices: torch.Tensor,
    outputs: list[torch.Tensor] | None,
) -> list[torch.Tensor]:
    if indices.device != device:
        indices = indices.to(device)
    backend = backends.resolve_gather(sources[0], by_torch)
    gathered: list[torch.Tensor] = backend.gather_rows(sources, indices, outputs)
    return gathered


def _storage_range(tensor: torch.Tensor) -> tuple[int, int]:
    """Range (first, one past the last) of the bytes that the tensor's elements can occupy."""
    if tensor.numel() == 0:
        return (0, 0)
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    start = tensor.data_ptr()
    return (start, start + (last + 1) * tensor.element_size())


def _check_outputs(
    batch: Any,
    out: Any,
    sources: list[torch.Tensor],
    outputs: list[torch.Tensor],
    indices: torch.Tensor,
) -> None:
    if not same_structure(batch, out):
        raise TypeError("gather: out must have the structure of batch, got another one")
    for source, target in zip(sources, outputs, strict=True):
        shape = (indices.shape[0], *source.shape[1:])
        if target.dtype != source.dtype:
            raise TypeError(f"gather: out must have dtype {source.dtype}, got {target.dtype}")
        if target.shape != shape:
            raise ValueError(f"gather: out must have shape {shape}, got {tuple(target.shape)}")
        if target.device != source.device:
            raise ValueError(f"gather: out must be on {source.device}, got {target.device}")
        if not target.is_contiguous():
            raise ValueError(f"gather: out must be contiguous, got strides {target.stride()}")
        if torch.is_grad_enabled() and (source.requires_grad or target.requires_grad):
            raise ValueError(f"gather: out must be used without autograd, got {describe(target)}")
    ranges = [_storage_range(target) for target in outputs]
    inputs = [_storage_range(source) for source in sources] + [_storage_range(indices)]
    for i, (start, stop) in enumerate(ranges):
        for other_start, other_stop in inputs + ranges[:i]:
            if start < other_stop and other_start < stop:
                raise ValueError("gather: out must not share memory with batch, got an overlap")
