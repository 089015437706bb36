"""The main call: score a batch, store the scores, select the top rows."""

import torch
from torch.compiler import is_compiling

from . import backends, ops, tokens
from .keep import Keep, check_keep_of
from .results import Selection
from .row_ids import check_ids_of_rows
from .state import EMPState
from .tracing import records
from .validation import (
    check_ignore_index,
    check_labels,
    check_logits,
)


def score_and_select(
    logits: torch.Tensor,
    labels: torch.Tensor,
    state: EMPState | None,
    keep: Keep = 0.3,
    *,
    indices: torch.Tensor | None = None,
    ignore_index: int | None = None,
    per: str = "all",
    backend: str | None = None,
) -> Selection:
    """Score N rows, write the scores into `state`, and select the K highest.

    Scores are those of :func:`emp_kernels.score` with the state's beta, in the order of
    :func:`emp_kernels.select` over the rows that count: invalid and ignored rows are never selected
    and never written.

    A language model's tokens, logits (B, T, C) with padding labelled -100, without a state::

        kept = emp.score_and_select(logits, labels, None, keep=0.3, ignore_index=-100)
        loss = emp.cross_entropy(logits, labels, rows=kept, ignore_index=-100)

    This trains the share 0.3 of the batch's tokens that are not padding, those with the highest
    loss + entropy, at ``kept.indices`` in the flattened (B, T).

    Args:
        logits: (N, C) or, for tokens, (B, T, C), float32, float16 or bfloat16 (float64: reference
            backend).
        labels: (N,) or (B, T) of any integer dtype, in [0, C) or equal to `ignore_index`.
        state: where the scores are stored. Its beta, given to :class:`emp_kernels.EMPState`, is
            that of score = loss + beta * entropy. None stores nothing, and beta is then 1; for
            another one call ``emp.score(..., beta=...)`` and ``emp.select``.
        keep: a float in (0, 1] keeps K = max(1, round(keep * N)) rows, an int keeps that many.
            Fewer are returned if fewer are valid. With `ignore_index`, K is a fraction of, or at
            most, the number of rows that count. Per "row" this applies within each sequence, with T
            for N; per "sequence" to sequences, with B for N, and a sequence counts if one of its
            tokens does.
        indices: (N,) the rows' sample ids in the data set, in [0, state.num_samples). Without
            them the state must hold exactly N samples, and row i is sample i. For tokens (B, T) or
            (N,); per "sequence" (B,), the sequences' ids, and the state stores their means.
        ignore_index: rows with this label are not read and do not count.
        per: "all", or for logits (B, T, C) also "row" or "sequence".
        backend: None for the fastest, or "reference", "cpu" or "triton".

    Returns:
        Selection(indices, scores, threshold, num_invalid): the selected positions (K,) int64
        ascending, the Scores of all N rows, the K-th score (+inf if nothing is selected) and the
        count of invalid rows. For tokens: positions in the flattened (B, T) (per "sequence": in B),
        Scores of shape (B, T), the lowest selected score (per "sequence": mean), and the count of
        invalid tokens.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, a label or id out of range (on CPU), different devices; raised
            before anything is written.
        RuntimeError: the named backend is not available.
    """
    function = "score_and_select"
    ordinary = backend is None and per == "all" and (state is None or type(state) is EMPState)
    if ordinary and not is_compiling():
        plain = backends.plain(function)
        selection: Selection | None = plain and plain(
            logits, labels, state, keep, indices, ignore_index
        )
        if selection is not None:
            return selection
    check_logits(function, logits)
    recorded = records(function)
    if logits.dim() != 2 or per != "all":
        return tokens.select_tokens(
            logits, labels, state, keep, indices, ignore_index, per, backend, function
        )
    check_labels(function, labels, logits)
    n = logits.shape[0]
    keep = check_keep_of(function, keep, n)
    ignore_index = check_ignore_index(function, ignore_index)
    state, indices = check_ids_of_rows(function, state, indices, logits, n)
    if recorded:
        return ops.score_and_select(logits, labels, state, keep, indices, ignore_index, backend)
    chosen = backends.resolve(function, backend, logits)
    return chosen.score_and_select(logits, labels, state, keep, indices, ignore_index, function)
