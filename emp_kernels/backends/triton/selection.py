"""The exact top of scores, by radix digits or, in rows, by torch's sort."""

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
    where the sum of counts is below `total`, the rest is B * T.

    Sorting a token's score costs little beside reading its logits: torch sorts, twice.
    """
    rows, width = scores.shape
    order = order_keys(scores).argsort(dim=1, descending=True, stable=True)
    starts = torch.arange(rows, device=scores.device)[:, None] * width
    taken = torch.arange(width, device=scores.device) < counts[:, None]
    return torch.where(taken, order + starts, rows * width).flatten().sort().values[:total]
