"""The order of selection, as integers."""

import torch


def order_keys(scores: torch.Tensor) -> torch.Tensor:
    """Keys (...) whose signed order is that of selection: the bits of scores (...) as float32 (of
    float64 ones as they are), but -0.0 as +0.0, and every NaN as the lowest integer.

    No arithmetic is done on the scores: that would take subnormal ones for zeros where the thread's
    floating-point mode says so (``torch.set_flush_denormal``).
    """
    wide = scores.dtype == torch.float64
    integer = torch.int64 if wide else torch.int32
    lowest, highest = torch.iinfo(integer).min, torch.iinfo(integer).max
    scores = scores.resolve_neg().to(torch.float64 if wide else torch.float32)
    bits = scores.view(integer)
    bits = bits.masked_fill(bits == lowest, 0)  # the bits of -0.0
    ordered = bits ^ ((bits >> (torch.iinfo(integer).bits - 1)) & highest)
    return ordered.masked_fill(scores.isnan(), lowest)


def values_of_keys(keys: torch.Tensor) -> torch.Tensor:
    """The scores (...) of which `order_keys` made keys, float32 of int32 ones and float64 of int64
    ones; -0.0 comes back as 0.0."""
    highest = torch.iinfo(keys.dtype).max
    bits = keys ^ ((keys >> (torch.iinfo(keys.dtype).bits - 1)) & highest)
    return bits.view(torch.float64 if keys.dtype == torch.int64 else torch.float32)
