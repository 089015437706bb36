"""The training cross-entropy and its gradient."""

import torch

from ...validation import raise_id_out_of_range
from . import native
from .native import DEVICE, int64_ids, logit_rows, raise_bad_label, readable_labels, state_tensors

_REDUCTION_CODES = {"mean": 0, "sum": 1, "none": 2}  # of csrc/cpu/cross_entropy.h


def plain_cross_entropy(logits, labels, state, ids, ignore_index, reduction: str, recorded: bool):
    """As `cross_entropy`, of ordinary rows and numbers; `state` is an EMPState or None. Where
    autograd has `recorded` the logits, also the result's gradient, if it takes less time than the
    call that makes it otherwise, else None."""
    code = _REDUCTION_CODES.get(reduction) if isinstance(reduction, str) else None
    if code is None:
        return None
    tensors = None if state is None else state_tensors(state)
    samples, beta = (0, 1.0) if state is None else (state.num_samples, state.beta)
    return native.module.plain_cross_entropy(
        *(logits, labels, tensors, samples, beta, ids, ignore_index, code, recorded)
    )


def cross_entropy(
    logits, labels, state, ids, ignore_index, reduction: str, function: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """The reduced loss of logits (..., C) and labels (...), loss and lse (N,) of all rows, and the
    number of rows that count. Scores are written into `state` (if given) at `ids` (N,), or row i at
    i without `ids`."""
    shape, n = labels.shape, labels.numel()
    labels = readable_labels(labels)
    beta, tensors = 1.0, None
    if state is not None:
        beta, tensors = state.beta, state_tensors(state)
        ids = None if ids is None else int64_ids(ids)
    # Allocated by torch, whose code is already in the caches during a training step.
    result = torch.empty(shape if reduction == "none" else (), dtype=torch.float32, device=DEVICE)
    loss = torch.empty(n, dtype=torch.float32, device=DEVICE)
    lse = torch.empty(n, dtype=torch.float32, device=DEVICE)
    counted, bad_label, bad_id = native.module.cross_entropy(
        logit_rows(logits),
        labels,
        ignore_index,
        _REDUCTION_CODES[reduction],
        beta,
        tensors,
        ids,
        result,
        loss,
        lse,
        torch.get_num_threads(),
    )
    if bad_label >= 0:
        raise_bad_label(function, labels, bad_label, logits.shape[-1])
    if bad_id >= 0:
        raise_id_out_of_range(function, bad_id, int(ids[bad_id]), state.num_samples)
    return result, loss, lse, counted


def cross_entropy_backward(
    logits, labels, loss, lse, scales, divisor=1, ignore_index=None, maximum=None
) -> torch.Tensor:
    """Gradient (..., C) in the logits' dtype: row i is (softmax - onehot) * scales[i] / divisor,
    zero where the scale is 0, whatever the row contains, and for ignored rows. `loss` and `lse`
    (N,) are those of the forward pass; labels are (...), `scales` has N elements, or one for all
    rows.

    For rows whose columns are sharded, `maximum` (N,) is the whole row's and `lse` is relative to
    it; a label outside [0, C) is on another shard."""
    out = torch.empty(logits.shape, dtype=logits.dtype, device=DEVICE)
    native.module.cross_entropy_backward(
        logit_rows(logits),
        readable_labels(labels),
        ignore_index,
        loss,
        lse,
        scales,
        divisor,
        maximum,
        out,
        torch.get_num_threads(),
    )
    return out
