"""Log-probabilities and entropies that are trained on, from one read of the logits."""

from __future__ import annotations

import torch

from . import backends
from .options import check_adjustment
from .results import LogProbs
from .validation import check_ignore_index, check_labels, check_logits
from .weighted_loss import Rows, differentiable_terms


def log_prob_and_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float | torch.Tensor = 1.0,
    softcap: float | None = None,
    ignore_index: int | None = None,
    backend: str | None = None,
) -> LogProbs:
    """Log-probability of each label and entropy of each row, both with a gradient.

    With p = softmax(a) of the adjusted logits a = softcap * tanh(z / softcap) / temperature::

        log_prob = log p_y,   d log_prob / d a_j = [j = y] - p_j
        entropy  = -sum p_j log p_j,   d entropy / d a_j = -p_j (log p_j + entropy)
        lse      = log(sum(exp(a))),   d lse / d a_j = p_j

    The forward pass reads the logits once; one backward pass for all three results reads them once
    and writes the gradient once. Of size N * C nothing is kept but the logits. Values and gradients
    keep their relative accuracy where a row is nearly certain.

    Differentiable once by `logits`, by ``backward``. ``torch.compile`` takes the call as an
    operator, also with ``fullgraph=True``. Autocast changes nothing.

    Args:
        logits: (..., C) float32, float16 or bfloat16 (float64: reference backend), any strides.
        labels: (...) of any integer dtype, in [0, C) or equal to `ignore_index`.
        temperature: a positive number, or float32 of the labels' shape; 1 / temperature is what
            some models call logit_scale.
        softcap: a positive number, or None for none.
        ignore_index: rows with this label are not read: all results 0, without gradient.
        backend: None for the fastest, or "reference", "cpu" or "triton".

    Returns:
        LogProbs(log_prob, entropy, lse), float32 nats of the labels' shape.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or value, a label out of range (on CPU), different devices.
        RuntimeError: the named backend is not available; differentiated twice.
    """
    function = "log_prob_and_entropy"
    check_logits(function, logits)
    check_labels(function, labels, logits)
    ignore_index = check_ignore_index(function, ignore_index)
    adjustment = check_adjustment(function, temperature, softcap, labels)
    chosen = None
    if not torch.compiler.is_compiling():
        chosen = backends.resolve(function, backend, logits)
    rows = Rows(function, chosen, labels, ignore_index, adjustment, backend=backend)
    _, (loss, entropy, lse, _) = differentiable_terms(rows, logits)
    return LogProbs(*(x.reshape(labels.shape) for x in (-loss, entropy, lse)))
