"""Scores and statistics of logits, in one read of them."""

import torch

from ...results import SampleStatistics, Scores
from ...validation import check_label_range
from . import runtime


def score(logits, labels, beta, ignore_index, function="score") -> Scores:
    """Scores of logits (..., C) and labels (...)."""
    runtime.check_capability(logits.device)
    check_label_range(function, labels, logits.shape[-1], ignore_index)
    if labels.numel():
        rows = runtime.launch.rows_of(logits)
        values = runtime.launch.score(rows, labels, beta, ignore_index).values
    else:
        values = torch.empty((4, 0), dtype=torch.float32, device=labels.device)
    return Scores(*values.view(4, *labels.shape).unbind())


def sample_statistics(logits, labels, ignore_index) -> SampleStatistics:
    """Statistics of logits (..., C) and labels (...)."""
    runtime.check_capability(logits.device)
    check_label_range("sample_statistics", labels, logits.shape[-1], ignore_index)
    values = torch.empty((6, 0), dtype=torch.float32, device=labels.device)
    correct = torch.empty(0, dtype=torch.bool, device=labels.device)
    prediction = torch.empty(0, dtype=torch.int64, device=labels.device)
    if labels.numel():
        rows = runtime.launch.rows_of(logits)
        values, correct, prediction, *_ = runtime.launch.score(
            rows, labels, 0.0, ignore_index, statistics=True
        )
    found = [x.view(labels.shape) for x in (correct, prediction)]
    return SampleStatistics(*values.view(6, *labels.shape).unbind(), *found)


def row_sums(logits, labels, ignore_index) -> torch.Tensor:
    """Partial sums of rows whose columns are sharded, (4, N), from logits (..., C) and labels
    (...).

    m = max z; over all elements but one maximal one, u = sum exp(z - m) and t = sum exp(z - m) (z -
    m); and z_y, NaN where the label is not in [0, C). A NaN logit makes m, u or t NaN; otherwise u
    and t are 0 where m is infinite. Ignored rows are 0."""
    runtime.check_capability(logits.device)
    if labels.numel() == 0:
        return torch.empty(4, 0, dtype=torch.float32, device=labels.device)
    return runtime.launch.score(
        runtime.launch.rows_of(logits), labels, 0.0, ignore_index, sums=True
    ).values
