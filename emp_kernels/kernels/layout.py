"""Logits as rows that lie in memory as kernels read them."""

from typing import NamedTuple

import torch


class Rows(NamedTuple):
    """Logits as `count` rows of unit inner stride, in groups of `per_group` equally spaced."""

    logits: torch.Tensor
    count: int
    classes: int
    per_group: int
    group_stride: int
    row_stride: int

    @property
    def grouped(self) -> bool:
        """Whether there is more than one group; their distance may be 0."""
        return self.per_group != self.count


def rows_of(logits: torch.Tensor) -> Rows:
    """Rows of logits (..., C); copied only where the inner stride is not 1 or the leading
    dimensions do not collapse to two."""
    logits, classes = logits.detach(), logits.shape[-1]
    if logits.dim() > 3:
        try:
            logits = logits.view(-1, *logits.shape[-2:])
        except RuntimeError:
            logits = logits.flatten(0, -2)
    if classes > 1 and logits.stride(-1) != 1:
        logits = logits.contiguous()
    *groups, per_group, _ = logits.shape
    *group_strides, row_stride, _ = logits.stride()
    count = per_group * groups[0] if groups else per_group
    group_stride = group_strides[0] if groups else 0
    if not groups or groups[0] == 1 or group_stride == per_group * row_stride:
        per_group, group_stride = count, 0
    return Rows(logits, count, classes, per_group, group_stride, row_stride)
