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
    rows = runtime.launch.rows_of(logits)
    n, device = rows.count, rows.logits.device
    check_label_range(function, labels, rows.classes, ignore_index)
    ids = None if state is None or ids is None else ids.contiguous()
    if ids is not None:
        check_id_range(function, ids, state.num_samples)
    if n == 0:
        return _nothing(device)
    beta = 1.0 if state is None else state.beta
    count, waits = kept_count(keep, n), ignore_index is not None
    fused = runtime.launch.fused(n) and not waits
    values, _, _, work, indices, threshold = runtime.launch.score(
        rows, labels, beta, ignore_index,
        keep=count if fused else None, state=state, ids=ids,
    )  # fmt: skip
    if waits:
        valid = int((values[0] > -torch.inf).sum())  # the only size that is read back
        count = kept_count(keep, valid)
    if n > runtime.launch.FEW:
        if state is not None:
            runtime.launch.remember(state, ids, values)
        indices, threshold = runtime.launch.select_many(values[0], count, work, ids, state)
    elif not fused:
        indices, threshold = runtime.launch.finish_few(values, count, ids, state)
    if device.type == "cpu":
        indices = indices[indices >= 0]
    return Selection(indices, Scores(*values.unbind()), threshold, work[0])


def _nothing(device) -> Selection:
    """The selection of an empty batch."""
    empty = torch.empty(0, dtype=torch.float32, device=device)
    return Selection(
        indices=empty.long(),
        scores=Scores(empty, empty, empty, empty),
        threshold=torch.full((), torch.inf, dtype=torch.float32, device=device),
        num_invalid=torch.zeros((), dtype=torch.int32, device=device),
    )
