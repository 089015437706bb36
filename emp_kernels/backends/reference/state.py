"""Writes scores into the state."""

import torch

from ...results import Scores
from ...validation import check_id_range


def update_state(state, ids, scores: Scores, function: str) -> None:
    """Write valid rows of `scores` (N,) into `state` at `ids` (N,); the last row of a
    duplicate id wins."""
    size = state.num_samples
    ids = ids.to(torch.int64)
    check_id_range(function, ids, size)
    if size == 0:
        return
    valid = writable(scores) & (ids >= 0) & (ids < size)
    rows = torch.arange(len(ids), device=ids.device)
    last = torch.full((size,), -1, dtype=torch.int64, device=ids.device).scatter_reduce(
        0, ids.clamp(0, size - 1), torch.where(valid, rows, -1), "amax"
    )
    written = last >= 0
    if len(ids) == 0:
        return
    source = last.clamp(min=0)
    for field in ("score", "loss", "entropy"):
        stored = getattr(state, field)
        stored.copy_(torch.where(written, getattr(scores, field)[source].to(stored.dtype), stored))
    state.updates += written
    state.clock += written.any()
    state.seen_at.copy_(torch.where(written, state.clock, state.seen_at))


def log_ids(ids: torch.Tensor, log: torch.Tensor, start: int, size: int) -> int:
    """As :func:`emp_kernels.backends.cpu.log_ids`."""
    outside = (ids < 0) | (ids.to(torch.int64) >= size)
    log[start : start + len(ids)] = ids
    return int(outside.nonzero()[0]) if outside.any() else -1


def writable(scores: Scores) -> torch.Tensor:
    """Rows that are neither invalid nor ignored."""
    finite = scores.loss.isfinite() & scores.entropy.isfinite()
    return finite & ~scores.score.isnan() & (scores.score != -torch.inf)
