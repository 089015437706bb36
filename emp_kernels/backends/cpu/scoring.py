"""One pass over the logits."""

import torch

from ...results import SampleStatistics, Scores
from . import native
from .native import logit_rows, raise_bad_label, readable_labels


def score(logits, labels, beta, ignore_index, function="score") -> Scores:
    """Scores of logits (..., C) and labels (...)."""
    labels = readable_labels(labels)
    bad, found = native.module.score(
        logit_rows(logits), labels, ignore_index, beta, torch.get_num_threads()
    )
    if bad >= 0:
        raise_bad_label(function, labels, bad, logits.shape[-1])
    scores: Scores = found
    return scores


def sample_statistics(logits, labels, ignore_index) -> SampleStatistics:
    """Statistics of logits (..., C) and labels (...)."""
    labels = readable_labels(labels)
    bad, found = native.module.sample_statistics(
        logit_rows(logits), labels, ignore_index, torch.get_num_threads()
    )
    if bad >= 0:
        raise_bad_label("sample_statistics", labels, bad, logits.shape[-1])
    statistics: SampleStatistics = found
    return statistics


def row_sums(logits, labels, ignore_index) -> torch.Tensor:
    """Partial sums of rows whose columns are sharded, (4, N), from logits (..., C) and labels
    (...).

    m = max z; over all elements but one maximal one, u = sum exp(z - m) and t = sum exp(z - m) (z -
    m); and z_y, NaN where the label is not in [0, C). A NaN logit makes m, u or t NaN; otherwise u
    and t are 0 where m is infinite. Ignored rows are 0."""
    sums: torch.Tensor = native.module.row_sums(
        logit_rows(logits), readable_labels(labels), ignore_index, torch.get_num_threads()
    )
    return sums
