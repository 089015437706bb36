"""The meaning of ``keep``: the share or the number of the N samples to keep."""

import numbers

import torch

from .validation import check_same_device, check_strided, describe

Keep = float | int


def check_keep(function: str, keep: Keep) -> Keep:
    """Return `keep` as a Python float in (0, 1] or an int >= 1.

    Raises:
        TypeError: `keep` is a bool or not a real number.
        ValueError: a float outside (0, 1] (NaN included) or an int below 1.
    """
    if type(keep) is float or (
        isinstance(keep, numbers.Real) and not isinstance(keep, bool | numbers.Integral)
    ):
        share = float(keep)
        if not 0.0 < share <= 1.0:
            raise ValueError(f"{function}: keep must be in (0, 1] when it is a float, got {keep}")
        return share
    if isinstance(keep, numbers.Integral) and not isinstance(keep, bool):
        count = int(keep)
        if count < 1:
            raise ValueError(f"{function}: keep must be at least 1 when it is an int, got {keep}")
        return count
    ids = hasattr(keep, "__len__") and function == "score_and_select"  # a misplaced argument
    instead = " (sample ids are passed by name, indices=ids)" if ids else ""
    raise TypeError(
        f"{function}: keep must be a float in (0, 1] or an int{instead}, got {type(keep).__name__}"
    )


def check_keep_of(function: str, keep: Keep, n: int) -> Keep:
    """`check_keep`, and an int `keep` must be at most the number `n` of rows; if `n` is 0 it must
    fit in int64."""
    keep = check_keep(function, keep)
    if isinstance(keep, int) and keep > n > 0:
        raise ValueError(
            f"{function}: keep must be between 1 and the number of rows {n}, got {keep}"
        )
    return keep if isinstance(keep, float) else min(keep, 2**63 - 1)


def kept_count(keep: Keep, n: int) -> int:
    """K for `n` rows that count: ``max(1, round(keep * n))`` in float64 for a float, at most
    `n` for an int, 0 when `n` is 0. ``round`` is Python's: halves go to the even neighbour."""
    if n == 0:
        return 0
    if isinstance(keep, float):
        return max(1, round(keep * n))
    return min(keep, n)


def check_ignored(
    function: str, ignored: torch.Tensor, scores_name: str, scores: torch.Tensor
) -> None:
    """`ignored` is a bool tensor of the scores' shape, on their device."""
    if not isinstance(ignored, torch.Tensor) or ignored.dtype != torch.bool:
        raise TypeError(f"{function}: ignored must be a torch.bool tensor, got {describe(ignored)}")
    check_strided(function, "ignored", ignored)
    if ignored.shape != scores.shape:
        raise ValueError(
            f"{function}: ignored must have the shape {tuple(scores.shape)} of {scores_name}, "
            f"got {tuple(ignored.shape)}"
        )
    check_same_device(function, "ignored", ignored, scores_name, scores)
