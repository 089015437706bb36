"""Scores, updates the state and selects in one call."""

import torch

from ...keep import Keep, kept_count
from ...results import Selection
from . import scoring
from .selection import descending
from .state import update_state, writable


def score_and_select(
    logits, labels, state, keep: Keep, ids, ignore_index, function: str
) -> Selection:
    """Score logits (N, C), write the scores into `state` (if given), select the top rows."""
    n = logits.shape[0]
    beta = 1.0 if state is None else state.beta
    scores = scoring.score(logits, labels, beta, ignore_index, function)
    score, valid = scores.score, writable(scores)
    on_cpu = score.device.type == "cpu"
    if state is not None:
        if ids is None:
            ids = torch.arange(n, device=score.device)
        ids = ids.to(torch.int64)
        update_state(state, ids, scores, function)
        if not on_cpu:
            valid &= (ids >= 0) & (ids < state.num_samples)
            score = torch.where(valid | (score == -torch.inf), score, torch.nan)
            scores = scores._replace(score=score)

    if on_cpu or ignore_index is not None:
        num_valid = int(valid.sum())
        countable = n if ignore_index is None else num_valid
        count = min(kept_count(keep, countable), num_valid)
    else:
        count = kept_count(keep, n)
    order = descending(score.masked_fill(~valid, torch.nan))[:count]
    selected = valid[order]
    indices = torch.where(selected, order, n).sort().values
    threshold = (
        torch.where(selected, score[order], torch.inf).amin()
        if count
        else (torch.full((), torch.inf, dtype=score.dtype, device=score.device))
    )
    if state is not None and count:
        drawn = ids[indices.clamp(max=n - 1)].clamp(0, state.num_samples - 1)
        state.selections.index_add_(0, drawn, (indices < n).to(torch.int32))
    if not on_cpu:
        indices = torch.where(indices < n, indices, -1)
    return Selection(indices, scores, threshold, score.isnan().sum().to(torch.int32))
