"""Rows by position."""

import torch

from ...validation import check_id_range


def gather_rows(sources, indices, outputs) -> list[torch.Tensor]:
    """Rows `indices` (K,) of each source, written into `outputs` if given."""
    indices = indices.to(torch.int64)
    for source in sources:
        check_id_range("gather", indices, len(source))
    if outputs is None:
        return [_index_select(source, indices) for source in sources]
    for source, out in zip(sources, outputs, strict=True):
        out.copy_(_index_select(source.detach(), indices))
    return outputs


def _index_select(source, indices):
    """torch.index_select, also for unsigned dtypes that it does not support (viewed as signed)."""
    signed = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
    if source.dtype not in signed:
        return source.index_select(0, indices)
    bits = source.resolve_neg().view(signed[source.dtype])
    return bits.index_select(0, indices).view(source.dtype)
