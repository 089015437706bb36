"""Gradients of the cross-entropy."""

import torch

from .scoring import CHUNK


def cross_entropy_backward(logits, labels, loss, lse, scales, maximum=None) -> torch.Tensor:
    """Gradient (..., C) in the logits' dtype: row i is (softmax - onehot) * scales[i], zero where
    the scale is 0, whatever the row contains, NaN where the loss is NaN. `loss` and `lse` (N,) come
    from `score`; labels are (...), `scales` (N,).

    For rows whose columns are sharded, `maximum` (N,) is the whole row's and `lse` is relative to
    it; a label outside [0, C) is on another shard."""
    gradient = torch.zeros(logits.shape, dtype=logits.dtype, device=logits.device)
    if gradient.numel() == 0:
        return gradient
    classes = logits.shape[-1]
    rows, out = logits.reshape(-1, classes), gradient.view(-1, classes)
    labels = labels.reshape(-1).to(torch.int64)
    step = max(1, CHUNK // max(1, classes))
    for i in range(0, len(rows), step):
        part, scale = slice(i, i + step), scales[i : i + step].double()
        trained = scale != 0
        z, above = rows[part].double(), lse[part].double()
        if maximum is None:
            p = z.softmax(1)
        else:
            m = maximum[part].double()
            above += m - m  # NaN where the row has no softmax
            p = ((z - m[:, None]) - above[:, None]).exp()
        # p - 1 at the label, computed from the loss: p itself would round to 1. NaN for a +inf
        # logit.
        at_label = torch.expm1(-loss[part].double()) + (above - above)
        here = trained & (labels[part] >= 0) & (labels[part] < classes)
        y = torch.where(here, labels[part], 0)[:, None]
        p.scatter_(1, y, torch.where(here[:, None], at_label[:, None], p.gather(1, y)))
        scale = torch.where(loss[part].isnan(), torch.nan, scale)  # invalid rows
        out[part] = torch.where(trained[:, None], p * scale[:, None], 0.0).to(out.dtype)
    return gradient
