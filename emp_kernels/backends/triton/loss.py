"""Gradients of the cross-entropy."""

import torch

from . import runtime


def cross_entropy_backward(logits, labels, loss, lse, scales, maximum=None) -> torch.Tensor:
    """Gradient (..., C) in the logits' dtype: row i is (softmax - onehot) * scales[i], zero where
    that is 0, whatever the row holds, NaN where its loss is. `loss` and `lse` (N,) are what `score`
    found; labels are (...), `scales` (N,).

    Of rows with columns elsewhere, `maximum` (N,) is the whole row's and `lse` stands above it; a
    label outside [0, C) is one elsewhere."""
    if logits.numel() == 0:
        return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    gradient = runtime.launch_loss.gradient(
        runtime.launch.rows_of(logits), labels, loss, lse, scales, maximum
    )
    return gradient.view(logits.shape)
