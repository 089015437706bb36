"""Launching the gradient of the cross-entropy."""

import torch

from .gradient import gradient_rows
from .launching import OPTIONS, on_device
from .layout import Rows
from .plan import layout_of, power_of_two


def gradient(
    rows: Rows, labels: torch.Tensor, loss: torch.Tensor, lse: torch.Tensor, scales: torch.Tensor,
    maximum: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The cross-entropy's gradient (N, C) of N * C > 0 logits, in their dtype; with the `maximum`
    of rows that have columns elsewhere, `lse` stands above it."""
    logits, n, classes = rows.logits, rows.count, rows.classes
    out = torch.empty((n, classes), dtype=logits.dtype, device=logits.device)
    vector, spread = layout_of(
        logits.data_ptr(), rows.group_stride, rows.row_stride, classes, logits.element_size()
    )
    vector = 1 if spread else vector
    width = min(4096, max(vector, power_of_two(classes)))
    several = max(1, 4096 // width)
    with on_device(logits.device):
        gradient_rows[(-(-n // several), -(-classes // width))](
            logits, labels.reshape(-1).contiguous(), loss.contiguous(), lse.contiguous(),
            None if maximum is None else maximum.contiguous(),
            scales.to(torch.float32).contiguous(), out, n, rows.per_group, rows.group_stride,
            rows.row_stride, classes // vector, classes, V=vector,
            GROUPED=rows.grouped, SHARD=maximum is not None, ROWS=several, WIDTH=width,
            num_warps=8, **OPTIONS,
        )  # fmt: skip
    return out
