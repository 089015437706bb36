"""Exact top-k of scores."""

import torch

from . import native


def select(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Ascending positions of the `count` highest scores (N,)."""
    scores = scores.detach().to(torch.float32)
    positions: torch.Tensor = native.module.select(scores, count, torch.get_num_threads())
    return positions


def select_rows(scores: torch.Tensor, counts: torch.Tensor, total: int) -> torch.Tensor:
    """Ascending flat positions (total,) of the counts (B,) highest of each row of scores (B, T);
    `total` is the sum of counts."""
    positions: torch.Tensor = native.module.select_rows(
        scores.to(torch.float32), counts, total, torch.get_num_threads()
    )
    return positions
