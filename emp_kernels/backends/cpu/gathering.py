"""Rows of several tensors in one call."""

import torch

from ...validation import raise_id_out_of_range
from . import native
from .native import int64_ids

# Dtypes that DLPack has too. Rows of other dtypes are copied as integers of the same size.
_EXCHANGED = frozenset(
    (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64)
    + (torch.complex128, torch.bool, torch.int8, torch.int16, torch.int32, torch.int64)
    + (torch.uint8, torch.uint16, torch.uint32, torch.uint64)
)
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def gather_rows(sources, indices, outputs) -> list[torch.Tensor]:
    """Rows `indices` (K,) of each source, written into `outputs` if given."""
    indices = int64_ids(indices)
    bad_tensor, bad, found = native.module.gather(
        [
            source if source.dtype in _EXCHANGED and source.is_contiguous() else _readable(source)
            for source in sources
        ],
        indices,
        outputs if outputs is None else [_readable(out) for out in outputs],
        torch.get_num_threads(),
    )
    if bad >= 0:
        raise_id_out_of_range("gather", bad, int(indices[bad]), len(sources[bad_tensor]))
    if outputs is not None:
        return outputs
    return [
        rows if rows.dtype is source.dtype else rows.view(source.dtype)
        for rows, source in zip(found, sources, strict=True)
    ]


def _readable(source: torch.Tensor) -> torch.Tensor:
    """`source` with a dtype that the native module reads and contiguous rows; only the row stride
    is free."""
    if source.dtype not in _EXCHANGED:
        source = source.view(_INTEGERS[source.element_size()])
    dense = source.is_contiguous() or source[:1].is_contiguous() or source.shape[1:].numel() <= 1
    return source if dense else source.contiguous()
