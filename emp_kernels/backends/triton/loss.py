"""Gradients of the cross-entropy."""

import torch

from . import runtime


def cross_entropy_backward(logits, labels, loss, lse, scales, maximum=None) -> torch.Tensor:
    """Gradient (..., C) in the logits' dtype: row i is (softmax - onehot) * scales[i], zero where
    the scale is 0, whatever the row contains, NaN where the loss is NaN. `loss` and `lse` (N,) come
    from `score`; labels are (...), `scales` (N,).

    For rows whose columns are sharded, `maximum` (N,) is the whole row's and `lse` is relative to
    it; a label outside [0, C) is on another shard."""
    if logits.numel() == 0:
        return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    gradient = runtime.launch_loss.gradient(
        runtime.launch.rows_of(logits), labels, loss, lse, scales, maximum
    )
    return gradient.view(logits.shape)
