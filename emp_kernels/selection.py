"""Selection: the exact top-k, the same on every backend, run and thread count."""

import torch
from torch.compiler import is_compiling

from . import backends, ops
from .arrays import as_tensor
from .keep import Keep, check_ignored, check_keep, check_keep_of, kept_count
from .tracing import check_recordable, records
from .validation import check_scores


def select(
    scores: torch.Tensor,
    keep: Keep,
    *,
    ignored: torch.Tensor | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """Ascending positions of the K highest scores.

    Ties go to the lowest index, -0.0 equals +0.0, -inf ranks last except for NaN, which ranks last
    of all.

    Args:
        scores: (N,) float32, float16 or bfloat16 (float64: reference backend); a tensor, a NumPy
            array, or anything with DLPack or ``__array__``.
        keep: a float in (0, 1] keeps K = max(1, round(keep * N)), Python's round in float64; an
            int keeps that many, 1 <= keep <= N. N = 0 keeps nothing.
        ignored: (N,) bool; rows where it is True are neither counted nor returned, and N above is
            the number of the others, which is read back to the host.
        backend: None for the fastest, or "reference", "cpu", "triton" or "cuda".

    Returns:
        (K,) int64, ascending, on the scores' device.

    Raises:
        TypeError: scores is not a floating tensor, keep is a bool or not a number, ignored is not a
            bool tensor.
        ValueError: scores is not 1-D, keep is out of range, ignored has another shape or device.
        RuntimeError: the named backend is not available.
    """
    if ignored is None and backend is None and not is_compiling():
        plain = backends.plain("select")
        served: torch.Tensor | None = plain and plain(scores, keep)
        if served is not None:
            return served
    scores = as_tensor("select", "scores", scores)
    check_scores("select", scores)
    recorded = records("select")
    if ignored is not None:
        ignored = as_tensor("select", "ignored", ignored)
        check_ignored("select", ignored, "scores", scores)
        if recorded:  # the number of rows that count is unknown then
            if type(scores) is torch.Tensor:
                check_recordable("select", "scores")
            return ops.select_counted(scores, ignored, check_keep("select", keep), backend)
        chosen = backends.resolve("select", backend, scores)
        return ops.highest_counted(chosen, scores, ignored, keep)
    n = scores.shape[0]
    keep = check_keep_of("select", keep, n)
    if recorded:
        if type(scores) is torch.Tensor:  # such as a state's
            check_recordable("select", "scores")
        return ops.select(scores, keep, backend)
    return backends.resolve("select", backend, scores).select(scores, kept_count(keep, n))
