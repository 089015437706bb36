"""Exact top k of scores, by radix digits or, per row, by torch's sort."""

import torch

from ...order_keys import order_keys
from . import runtime


def select(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Ascending positions of the `count` highest scores (N,)."""
    runtime.check_capability(scores.device)
    if scores.shape[0] == 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    return runtime.launch.select(scores.detach().contiguous(), count)


def select_rows(scores: torch.Tensor, counts: torch.Tensor, total: int) -> torch.Tensor:
    """Ascending flat positions (total,) of the counts (B,) highest of each row of scores (B, T);
    if the counts sum to less than `total`, the rest is filled with B * T.

    Sorting the scores costs little compared with reading the logits, so torch sorts, twice.
    """
    rows, width = scores.shape
    order = order_keys(scores).argsort(dim=1, descending=True, stable=True)
    starts = torch.arange(rows, device=scores.device)[:, None] * width
    taken = torch.arange(width, device=scores.device) < counts[:, None]
    return torch.where(taken, order + starts, rows * width).flatten().sort().values[:total]
