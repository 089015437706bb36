"""Differentiable log-probabilities and entropies from one read of the logits."""

from __future__ import annotations

import torch
import torch.distributed as dist

from . import backends
from .compiling import outside_compiler
from .distributed.columns import Columns, is_sharded, shard_of
from .one_row import batched, is_one_row
from .options import check_adjustment
from .results import LogProbs
from .tracing import records
from .validation import check_ignore_index, check_labels, check_logits
from .weighted_loss import Rows, differentiable_terms


def log_prob_and_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    softcap: float | None = None,
    ignore_index: int | None = None,
    group: dist.ProcessGroup | None = None,
    vocab_start: int | None = None,
    backend: str | None = None,
) -> LogProbs:
    """Log-probability of each label and entropy of each row, both with a gradient.

    With p = softmax(a) of the adjusted logits a = softcap * tanh(z / softcap) / temperature::

        log_prob = log p_y,   d log_prob / d a_j = [j = y] - p_j
        entropy  = -sum p_j log p_j,   d entropy / d a_j = -p_j (log p_j + entropy)
        lse      = log(sum(exp(a))),   d lse / d a_j = p_j

    The forward pass reads the logits once; one backward pass for all three results reads them once
    and writes the gradient once. Nothing of size N * C is stored but the logits. Values and
    gradients keep their relative accuracy for nearly certain rows. A row's results and its gradient
    are the same bits whatever rows stand beside it, and however many: replayed alone, in another
    batch or packed otherwise, a row has the log-probability that it had.

    Differentiable once with respect to `logits`, by ``backward``. ``torch.compile`` (also with
    ``fullgraph=True``), ``torch.export`` and ``make_fx`` take the call as an operator; with columns
    on several ranks it is a graph break. Autocast has no effect.

    Args:
        logits: (..., C) float32, float16 or bfloat16 (float64: reference backend), any strides.
        labels: (...) of any integer dtype, in [0, C) or equal to `ignore_index`.
        temperature: a positive number, or float32 of the labels' shape; some models call 1 /
            temperature logit_scale.
        softcap: a positive number, or None for none.
        ignore_index: rows with this label are not read: all results 0, without gradient.
        group, vocab_start: logits are this rank's columns [vocab_start, vocab_start + C_local) of
            the whole rows, as in :func:`emp_kernels.distributed.score_vocab_parallel`, or a DTensor
            sharded on its last dimension. All ranks of `group` must call with otherwise equal
            arguments. With one collective, in the forward pass, each gets bitwise equal results of
            whole rows, and the gradient of its columns.
        backend: None for the fastest, or "reference", "cpu" or "triton".

    Returns:
        LogProbs(log_prob, entropy, lse), float32 nats of the labels' shape.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or value, a label out of range (on CPU), different devices.
        RuntimeError: the named backend is not available; differentiated twice; a rank of `group`
            died or did not call.
    """
    function = "log_prob_and_entropy"
    if is_one_row(logits, labels):
        rows = log_prob_and_entropy(
            logits[None], labels[None], temperature=batched(temperature), softcap=softcap,
            ignore_index=ignore_index, group=group, vocab_start=vocab_start, backend=backend,
        )  # fmt: skip
        return LogProbs(*(field[0] for field in rows))
    if is_sharded(logits, vocab_start, group):
        return _of_shard(
            function, logits, labels, temperature, softcap, ignore_index, group, vocab_start,
            backend,
        )  # fmt: skip
    return _found(function, logits, labels, temperature, softcap, ignore_index, backend, None)


@outside_compiler
def _of_shard(
    function: str,
    logits: torch.Tensor,
    labels: torch.Tensor,
    temperature: float | torch.Tensor,
    softcap: float | None,
    ignore_index: int | None,
    group: dist.ProcessGroup | None,
    vocab_start: int | None,
    backend: str | None,
) -> LogProbs:
    logits, labels, columns = shard_of(function, logits, labels, vocab_start, group)
    return _found(function, logits, labels, temperature, softcap, ignore_index, backend, columns)


def _found(
    function: str,
    logits: torch.Tensor,
    labels: torch.Tensor,
    temperature: float | torch.Tensor,
    softcap: float | None,
    ignore_index: int | None,
    backend: str | None,
    columns: Columns | None,
) -> LogProbs:
    check_logits(function, logits)
    check_labels(function, labels, logits)
    ignore_index = check_ignore_index(function, ignore_index)
    adjustment = check_adjustment(function, temperature, softcap, labels)
    recorded = columns is None and records(function)
    chosen = None if recorded else backends.resolve(function, backend, logits)
    rows = Rows(function, chosen, labels, ignore_index, adjustment, backend=backend)
    rows = rows.over(columns, (logits,))
    _, (loss, entropy, lse, _) = differentiable_terms(rows, logits)
    return LogProbs(*(x.reshape(labels.shape) for x in (-loss, entropy, lse)))
