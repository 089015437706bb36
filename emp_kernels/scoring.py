"""Scoring: every pruning statistic of a row from one read of its logits."""

import torch
from torch.compiler import is_compiling

from . import backends, ops, term_ops
from .arrays import as_tensor
from .one_row import batched, is_one_row
from .options import all_defaults, check_adjustment
from .results import SampleStatistics, Scores
from .terms import scores_of
from .tracing import records
from .validation import check_beta, check_ignore_index, check_labels, check_logits


def score(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    beta: float = 1.0,
    temperature: float | torch.Tensor = 1.0,
    softcap: float | None = None,
    ignore_index: int | None = None,
    backend: str | None = None,
) -> Scores:
    """EMP score of each row: cross-entropy plus `beta` times the predictive entropy.

    With m = max z, s = sum_j exp(z_j - m), t = sum_j exp(z_j - m) (z_j - m)::

        loss = m + log s - z_y,   entropy = log s - t / s,   score = loss + beta * entropy

    in nats, within 1e-5 relative of float64 at every logit scale, also near zero. The plus sign
    is the paper's (EMP, arXiv 2408.16031); ``beta=0`` gives loss-only selection (LFL).
    A row's results are the same bits whatever rows stand beside it, and however many.

    Args:
        logits: (..., C), also one row (C,), float32, float16 or bfloat16 (float64 is served by the
            reference backend, which then answers in float64). Any strides; read once, never copied
            when the inner stride is 1 and at most two leading dimensions do not collapse. Also a
            NumPy array (possibly memory-mapped), or anything with DLPack or ``__array__``: its
            memory is read in place, and results are tensors.
        labels: (...) of any integer dtype, in [0, C) or equal to `ignore_index`; a tensor or an
            array.
        beta: weight of the memory term, from -1e29 to 1e29.
        temperature, softcap: scores are those of the adjusted logits
            ``softcap * tanh(z / softcap) / temperature`` (without softcap ``z / temperature``),
            computed inside the same read. temperature: a positive number, or float32 of the
            labels' shape; softcap: a positive number, or None for none.
        ignore_index: rows with this label are not read: score -inf, everything else 0.
            None ignores nothing.
        backend: None for the fastest, or "reference", "cpu" or "triton".

    Returns:
        Scores(score, loss, entropy, lse), float32 of the labels' shape, without autograd:
        :func:`emp_kernels.cross_entropy` is the loss that carries a gradient, and
        :func:`emp_kernels.log_prob_and_entropy` the entropy that does. An invalid row
        (loss or entropy not finite) has score NaN.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, a label out of range (on CPU), different devices.
        RuntimeError: the named backend is not available.
    """
    unadjusted = all_defaults(temperature, softcap)
    if unadjusted and backend is None and not is_compiling():
        plain = backends.plain("score")
        served: Scores | None = plain and plain(logits, labels, beta, ignore_index)
        if served is not None:
            return served
    logits = as_tensor("score", "logits", logits)
    labels = as_tensor("score", "labels", labels)
    if is_one_row(logits, labels):
        rows = score(
            logits[None], labels[None], beta=beta, temperature=batched(temperature),
            softcap=softcap, ignore_index=ignore_index, backend=backend,
        )  # fmt: skip
        return Scores(*(field[0] for field in rows))
    check_logits("score", logits)
    check_labels("score", labels, logits)
    beta = check_beta("score", beta)
    ignore_index = check_ignore_index("score", ignore_index)
    if not unadjusted:
        adjustment = check_adjustment("score", temperature, softcap, labels)
        if not adjustment.changes_nothing:
            if records("score"):
                terms, _ = term_ops.differentiable_terms(
                    (logits.detach(),), labels, adjustment, None, None, ignore_index, "score",
                    backend,
                )  # fmt: skip
            else:
                chosen = backends.resolve("score", backend, logits)
                terms = chosen.row_terms(logits, labels, adjustment, None, ignore_index, "score")
            return scores_of(terms, beta, labels, ignore_index)
    if records("score"):
        return ops.score(logits, labels, beta, ignore_index, backend)
    return backends.resolve("score", backend, logits).score(logits, labels, beta, ignore_index)


def sample_statistics(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    ignore_index: int | None = None,
    backend: str | None = None,
) -> SampleStatistics:
    """The statistics of other pruning methods, from the same single read as :func:`score`.

    With p = softmax(z)::

        confidence = p_y,   el2n = sqrt((1 - p_y)^2 + sum_{j != y} p_j^2),
        margin = z_y - max_{j != y} z_j,
        prediction = the lowest index of the maximum,   correct = (prediction = y)

    within rtol 2e-5, atol 1e-6 of float64. EL2N is from Paul et al. (arXiv 2107.07075), AUM
    averages the margin over epochs (Pleiss et al., arXiv 2001.10528), and forgetting events (Toneva
    et al., arXiv 1812.05159) follow from `correct`.

    Args:
        logits, labels, ignore_index, backend: as in :func:`score`.

    Returns:
        SampleStatistics(loss, entropy, lse, confidence, el2n, margin, correct, prediction) of the
        labels' shape, without autograd, as in :func:`score`; ignored rows are 0 and False, margin
        is +inf if C = 1. A row without a softmax (a NaN or +inf logit, or no finite one) is not
        correct, and its prediction is 0.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`score`.
    """
    if backend is None and not is_compiling():
        plain = backends.plain("sample_statistics")
        served: SampleStatistics | None = plain and plain(logits, labels, ignore_index)
        if served is not None:
            return served
    logits = as_tensor("sample_statistics", "logits", logits)
    labels = as_tensor("sample_statistics", "labels", labels)
    if is_one_row(logits, labels):
        rows = sample_statistics(
            logits[None], labels[None], ignore_index=ignore_index, backend=backend
        )
        return SampleStatistics(*(field[0] for field in rows))
    check_logits("sample_statistics", logits)
    check_labels("sample_statistics", labels, logits)
    ignore_index = check_ignore_index("sample_statistics", ignore_index)
    if records("sample_statistics"):
        return ops.sample_statistics(logits, labels, ignore_index, backend)
    chosen = backends.resolve("sample_statistics", backend, logits)
    return chosen.sample_statistics(logits, labels, ignore_index)
