"""Scores, updates the state and selects in one call."""

import torch

from ...keep import Keep
from ...results import Selection
from ...validation import raise_id_out_of_range
from . import native
from .native import int64_ids, logit_rows, raise_bad_label, readable_labels, state_tensors


def plain_score_and_select(logits, labels, state, keep, ids, ignore_index):
    """The fast path for ordinary tensors and numbers; `state` is an EMPState or None."""
    tensors = None if state is None else state_tensors(state)
    samples, beta = (0, 1.0) if state is None else (state.num_samples, state.beta)
    return native.module.plain_score_and_select(
        *(logits, labels, tensors, samples, beta, keep, ids, ignore_index)
    )


def score_and_select(
    logits, labels, state, keep: Keep, ids, ignore_index, function: str
) -> Selection:
    """Score logits (N, C), write the scores into `state` (if given), select the top rows."""
    labels = readable_labels(labels)
    beta, tensors = 1.0, None
    if state is not None:
        beta, tensors = state.beta, state_tensors(state)
        ids = None if ids is None else int64_ids(ids)
    bad_label, bad_id, found = native.module.score_and_select(
        logit_rows(logits),
        labels,
        ignore_index,
        keep,
        beta,
        tensors,
        ids,
        torch.get_num_threads(),
    )
    if bad_label >= 0:
        raise_bad_label(function, labels, bad_label, logits.shape[1])
    if bad_id >= 0:
        raise_id_out_of_range(function, bad_id, int(ids[bad_id]), state.num_samples)
    selection: Selection = found
    return selection
