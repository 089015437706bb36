"""Writes scores into the state."""

import torch

from ...results import Scores
from ...validation import raise_id_out_of_range
from . import native
from .native import int64_ids, state_tensors


def update_state(state, ids, scores: Scores, function: str) -> None:
    """Write valid rows of `scores` (N,) into `state` at `ids` (N,); the last row of a duplicate
    id wins."""
    ids = int64_ids(ids)
    bad = native.module.update_state(state_tensors(state), ids, *scores[:3])
    if bad >= 0:
        raise_id_out_of_range(function, bad, int(ids[bad]), state.num_samples)


def log_ids(ids: torch.Tensor, log: torch.Tensor, start: int, size: int) -> int:
    """Write ids (N,) of any integer dtype to log (M,) int32 or int64 from `start` on, where there
    is room. The first position of an id outside [0, size), or -1."""
    bad: int = native.module.log_ids(ids, log, start, size)
    return bad
