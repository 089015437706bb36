"""Exact top k of scores, by a stable sort."""

import torch

from ...order_keys import order_keys


def select(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Ascending positions of the `count` highest scores (N,)."""
    return descending(scores.detach())[:count].sort().values


def select_rows(scores: torch.Tensor, counts: torch.Tensor, total: int) -> torch.Tensor:
    """Ascending flat positions (total,) of the counts (B,) highest of each row of scores (B, T);
    if the counts sum to less than `total`, the rest is filled with B * T."""
    rows, width = scores.shape
    starts = torch.arange(rows, device=scores.device)[:, None] * width
    order = torch.stack([descending(row) for row in scores]) if rows else starts
    taken = torch.arange(width, device=scores.device) < counts[:, None]
    return torch.where(taken, order + starts, rows * width).flatten().sort().values[:total]


def descending(scores: torch.Tensor) -> torch.Tensor:
    """Positions from the highest to the lowest score: ties by position, NaN after -inf."""
    return order_keys(scores).argsort(descending=True, stable=True)
