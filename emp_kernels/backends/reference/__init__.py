"""Pure-PyTorch backend: the oracle that every kernel is tested against.

Clarity and exactness before speed: float64 arithmetic, a stable sort for selection. It runs on
every device and on CUDA synchronises with the host only to read back a size.
"""

from ...validation import FLOAT_DTYPES as DTYPES
from .contrastive import score_contrastive
from .gathering import gather_rows
from .linear import (
    linear_cross_entropy_backward,
    linear_terms,
    linear_terms_backward,
    score_linear,
)
from .loss import cross_entropy_backward
from .pruning import score_and_select
from .sampler import draws, shuffle, shuffled_at, systematic
from .scoring import row_sums, sample_statistics, score
from .selection import select, select_rows
from .state import log_ids, update_state
from .terms import row_terms, row_terms_backward

__all__ = [
    "DTYPES",
    "cross_entropy_backward",
    "describe",
    "draws",
    "gather_rows",
    "linear_cross_entropy_backward",
    "linear_terms",
    "linear_terms_backward",
    "log_ids",
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
    "shuffle",
    "shuffled_at",
    "systematic",
    "update_state",
]


def require() -> None:
    """The reference needs only torch."""


def serves_device(device_type: str) -> bool:
    return True


def describe() -> str:
    """A one-line description."""
    return "pure PyTorch, float64 inside; the oracle of every other backend"
