"""Scores, updates the state and selects in one call."""

import torch

from ...keep import Keep, kept_count
from ...results import Scores, Selection
from ...validation import check_id_range, check_label_range
from . import runtime


def score_and_select(
    logits, labels, state, keep: Keep, ids, ignore_index, function: str
) -> Selection:
    """Score logits (N, C), write the scores into `state` (if given), select the top rows.

    If fewer than K rows are valid, the indices are padded with -1 on CUDA; with `ignore_index` the
    number of valid rows is read back instead.
    """
    runtime.check_capability(logits.device)
    n, device = logits.shape[0], logits.device
    check_label_range(function, labels, logits.shape[1], ignore_index)
    ids = None if state is None or ids is None else ids.contiguous()
    if ids is not None:
        check_id_range(function, ids, state.num_samples)
    if n == 0:
        return _nothing(device)
    beta = 1.0 if state is None else state.beta
    count, waits = kept_count(keep, n), ignore_index is not None
    if runtime.launch.fused(n) and not waits:
        scores, indices, threshold, invalid, _ = runtime.launch.score_and_select(
            logits, labels, beta, count, state, ids
        )
        return Selection(_found(indices), Scores(*scores), threshold, invalid)
    rows = runtime.launch.rows_of(logits)
    values, _, _, work, *_ = runtime.launch.score(
        rows, labels, beta, ignore_index, count=True, state=state, ids=ids
    )
    if waits:
        valid = int((values[0] > -torch.inf).sum())  # the only size that is read back
        count = kept_count(keep, valid)
    if n > runtime.launch.FEW:
        if state is not None:
            runtime.launch.remember(state, ids, values)
        indices, threshold = runtime.launch.select_many(values[0], count, work, ids, state)
    else:
        indices, threshold = runtime.launch.finish_few(values, count, ids, state)
    return Selection(_found(indices), Scores(*values.unbind()), threshold, work[0])


def _found(indices: torch.Tensor) -> torch.Tensor:
    """Without the -1 at the end, where looking waits for nobody."""
    return indices[indices >= 0] if runtime.interpreted() else indices


def _nothing(device) -> Selection:
    """The selection of an empty batch."""
    empty = torch.empty(0, dtype=torch.float32, device=device)
    return Selection(
        indices=empty.long(),
        scores=Scores(empty, empty, empty, empty),
        threshold=torch.full((), torch.inf, dtype=torch.float32, device=device),
        num_invalid=torch.zeros((), dtype=torch.int32, device=device),
    )
