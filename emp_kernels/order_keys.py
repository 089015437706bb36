"""Integer keys for the order of selection."""

import torch


def order_keys(scores: torch.Tensor) -> torch.Tensor:
    """Integer keys (...) whose signed order is that of selection: the bits of scores (...) in
    float32 (or float64), with -0.0 as +0.0 and every NaN as the lowest integer.

    There is no arithmetic on the scores, which would flush subnormal ones to zero in that
    floating-point mode (``torch.set_flush_denormal``).
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
    """The inverse of `order_keys`: scores (...), float32 for int32 keys and float64 for int64 keys;
    -0.0 becomes 0.0."""
    highest = torch.iinfo(keys.dtype).max
    bits = keys ^ ((keys >> (torch.iinfo(keys.dtype).bits - 1)) & highest)
    return bits.view(torch.float64 if keys.dtype == torch.int64 else torch.float32)
