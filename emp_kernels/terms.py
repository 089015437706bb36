"""The terms of losses with options: sums over a row of adjusted logits, and their gradient.

With raw logits z, the adjusted ones are a_j = softcap * tanh(z_j / softcap) / temperature (without
softcap z_j / temperature), p = softmax(a), and d_j = a_j - max a. Every option is then arithmetic
on a few numbers per row, which backends compute in one read (``row_terms``), and every gradient
is::

    d / d a_j = A p_j + B p_j (d_j - mean) - S q_j - L [j = y]

with a few coefficients per row (``row_terms_backward``): nothing of size N * C is stored.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .results import Scores
from .validation import as_int64


class Adjustment(NamedTuple):
    """How logits are adjusted.

    Attributes:
        temperature: a positive float, or one per row, (N,) float32.
        softcap: a positive float, or None for none.
    """

    temperature: float | torch.Tensor = 1.0
    softcap: float | None = None

    @property
    def changes_nothing(self) -> bool:
        plain = not isinstance(self.temperature, torch.Tensor) and self.temperature == 1.0
        return plain and self.softcap is None


class Targets(NamedTuple):
    """Weights of a row's log-probabilities, in addition to or instead of its label's::

        q_j = weight_j * (share * probabilities_j + uniform)

    Attributes:
        weight: (C,) float32 of each class, or None for 1.
        probabilities: (N, C) of unit inner stride, or None for 0.
        share, uniform: the factor that label smoothing leaves, and what it adds per class.
    """

    weight: torch.Tensor | None
    probabilities: torch.Tensor | None
    share: float
    uniform: float


class RowTerms(NamedTuple):
    """Terms of each row, (N,) float32 (float64 for float64 logits), 0 for ignored rows.

    Attributes:
        loss: -log p_y; for probabilities t_j, -sum t_j log p_j.
        entropy, lse: of p, and log(sum(exp(a))).
        target: -sum q_j log p_j; None without Targets.
        total: sum q_j; None without Targets.
        maximum: max z, the raw logit; None if loss and lse are reused from a Selection.
        above: lse - max a.
        mean: sum p_j d_j.
        others: sum q_j without one maximal element; None if the gradient pass computes it.
    """

    loss: torch.Tensor
    entropy: torch.Tensor
    lse: torch.Tensor
    target: torch.Tensor | None = None
    total: torch.Tensor | None = None
    maximum: torch.Tensor | None = None
    above: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    others: torch.Tensor | None = None


class Coefficients(NamedTuple):
    """The coefficients of each row's gradient, (N,) each; a row where all are 0 is not read.

    Attributes:
        probability: A.
        entropy: B, or None for 0.
        target: S, or None for 0.
        rest: A - L - S q_y, the coefficient left at the label (for probabilities A - S * total of
            the local columns): computed without a difference, so that the gradient stays accurate
            for p_y near 1.
    """

    probability: torch.Tensor
    entropy: torch.Tensor | None
    target: torch.Tensor | None
    rest: torch.Tensor


def coefficients_of(
    terms: RowTerms,
    targets: Targets | None,
    labels: torch.Tensor,
    ignore_index: int | None,
    by_loss: torch.Tensor | None,
    by_entropy: torch.Tensor | None,
    by_lse: torch.Tensor | None,
    by_target: torch.Tensor | None,
    elsewhere: torch.Tensor | None = None,
) -> Coefficients | None:
    """Coefficients from the gradients with respect to loss, entropy, lse and target, whose
    derivatives are p_j - [j = y], -p_j (d_j - mean), p_j and total p_j - q_j. For sharded rows
    targets and labels are the local ones, and `elsewhere` (N,) is the other shards' part of the
    total."""
    if targets is None:
        by_target = None
    elif targets.probabilities is not None:
        by_loss = None
    if by_loss is by_entropy is by_lse is by_target is None:
        return None
    probability = rest = torch.zeros_like(terms.loss)
    if by_lse is not None:
        probability = rest = by_lse
    if by_loss is not None:
        probability = probability + by_loss
    if by_target is not None and targets is not None:
        assert terms.total is not None
        probability = probability + _product(by_target, terms.total)
        if targets.probabilities is None:  # total - q_y
            others: Any = terms.total - targets.uniform
            if targets.weight is not None:
                classes = len(targets.weight)
                y = as_int64(labels).reshape(-1).clamp(0, max(0, classes - 1))
                weight = targets.weight
                others = weight.sum(dtype=torch.float64)
                if classes:
                    others = others - weight.double()[y]
                others = targets.uniform * others + (0.0 if elsewhere is None else elsewhere)
            rest = rest + _product(by_target, others.to(rest.dtype))
        elif elsewhere is not None:
            rest = rest + _product(by_target, elsewhere)
    entropy = None if by_entropy is None else -by_entropy
    ignored = None
    if ignore_index is not None:
        ignored = as_int64(labels).reshape(-1) == ignore_index
    fields = [
        None if x is None else (x if ignored is None else x.masked_fill(ignored, 0.0))
        for x in (probability, entropy, by_target, rest)
    ]
    return Coefficients(*fields)  # type: ignore[arg-type]


def _product(scale: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """scale * x, and 0 where scale is 0, whatever x is."""
    return torch.where(scale == 0, 0.0, scale * x)


def scores_of(
    terms: RowTerms, beta: float, labels: torch.Tensor, ignore_index: int | None
) -> Scores:
    """Scores of rows with labels (...), of their shape."""
    loss, entropy, lse = (x.detach().reshape(labels.shape) for x in terms[:3])
    score = loss + beta * entropy
    score = torch.where(loss.isfinite() & entropy.isfinite(), score, torch.nan)
    if ignore_index is not None:
        score = score.masked_fill(as_int64(labels) == ignore_index, -torch.inf)
    return Scores(score, loss, entropy, lse)
