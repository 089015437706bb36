"""C++ backend for CPU tensors: the SIMD kernels of csrc/cpu through emp_kernels._cpu."""

from typing import Any

from . import native
from .contrastive import score_contrastive
from .gathering import gather_rows
from .linear import (
    linear_cross_entropy_backward,
    linear_terms,
    linear_terms_backward,
    score_linear,
)
from .loss import cross_entropy, cross_entropy_backward, plain_cross_entropy
from .native import DEVICE, DTYPES, describe, require, serves_device
from .pruning import plain_score_and_select, score_and_select
from .sampler import draws, shuffle, shuffled_at, systematic
from .scoring import row_sums, sample_statistics, score
from .selection import select, select_rows
from .state import log_ids, update_state
from .terms import row_terms, row_terms_backward, row_terms_with_gradient

__all__ = [
    "DEVICE",
    "DTYPES",
    "cross_entropy",
    "cross_entropy_backward",
    "describe",
    "draws",
    "gather_rows",
    "linear_cross_entropy_backward",
    "linear_terms",
    "linear_terms_backward",
    "log_ids",
    "plain_cross_entropy",
    "plain_gather",
    "plain_sample_statistics",
    "plain_score",
    "plain_score_and_select",
    "plain_select",
    "require",
    "row_sums",
    "row_terms",
    "row_terms_backward",
    "row_terms_with_gradient",
    "sample_statistics",
    "score",
    "score_and_select",
    "score_contrastive",
    "score_linear",
    "select",
    "select_rows",
    "serves_device",
    "shuffle",
    "shuffled_at",
    "systematic",
    "update_state",
]


def __getattr__(name: str) -> Any:
    if name.startswith("plain_"):  # the native function itself, available once the module is loaded
        return getattr(native.module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
