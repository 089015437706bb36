"""Triton backend: scoring and selection on CUDA with one read of the logits, one write of the
scores and no synchronisation with the host.

With TRITON_INTERPRET=1 set before the import, Triton's interpreter runs the same kernels on CPU
tensors, slowly, for tests.
"""

from .contrastive import score_contrastive
from .linear import (
    linear_cross_entropy_backward,
    linear_terms,
    linear_terms_backward,
    score_linear,
)
from .loss import cross_entropy_backward
from .pruning import score_and_select
from .runtime import DEVICE, DTYPES, describe, reading_memory, require, serves_device
from .scoring import row_sums, sample_statistics, score
from .selection import select, select_rows
from .state import update_state
from .terms import row_terms, row_terms_backward

__all__ = [
    "DEVICE",
    "DTYPES",
    "cross_entropy_backward",
    "describe",
    "linear_cross_entropy_backward",
    "linear_terms",
    "linear_terms_backward",
    "require",
    "row_sums",
    "row_terms",
    "row_terms_backward",
    "sample_statistics",
    "score",
    "score_and_select",
    "score_contrastive",
    "score_linear",
    "select",
    "select_rows",
    "serves_device",
    "update_state",
]

for _name in set(__all__) - {"DEVICE", "DTYPES", "describe", "require", "serves_device"}:
    globals()[_name] = reading_memory(globals()[_name])
