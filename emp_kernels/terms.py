"""What losses with options are made of: sums over a row of adjusted logits, and their gradient.

With raw logits z, the adjusted ones are a_j = softcap * tanh(z_j / softcap) / temperature (without
softcap z_j / temperature), p = softmax(a), and d_j = a_j - max a. Every option is then arithmetic
on a few numbers a row, which backends find in one read (``row_terms``), and every gradient is::

    d / d a_j = A p_j + B p_j (d_j - mean) - S q_j - L [j = y]

with a few numbers a row again (``row_terms_backward``): nothing of size N * C is kept.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class Adjustment(NamedTuple):
    """How logits are adjusted.

    Attributes:
        temperature: a positive float, or one of each row, (N,) float32.
        softcap: a positive float, or None for none.
    """

    temperature: float | torch.Tensor = 1.0
    softcap: float | None = None

    @property
    def changes_nothing(self) -> bool:
        plain = not isinstance(self.temperature, torch.Tensor) and self.temperature == 1.0
        return plain and self.softcap is None


class Targets(NamedTuple):
    """Weights of a row's log-probabilities besides its label's, or in its place::

        q_j = weight_j * (share * probabilities_j + uniform)

    Attributes:
        weight: (C,) float32 of each class, or None for 1.
        probabilities: (N, C) of unit inner stride, or None for 0.
        share, uniform: what label smoothing leaves of them, and adds for each class.
    """

    weight: torch.Tensor | None
    probabilities: torch.Tensor | None
    share: float
    uniform: float


class RowTerms(NamedTuple):
    """Numbers of each row, (N,) float32 (float64 of float64 logits), 0 where it is ignored.

    Attributes:
        loss: -log p_y; of probabilities t_j, -sum t_j log p_j.
        entropy, lse: of p, and log(sum(exp(a))).
        target: -sum q_j log p_j; None without Targets.
        total: sum q_j; None without Targets.
        maximum: max z; the raw logit. None where a Selection lent loss and lse.
        above: lse - max a.
        mean: sum p_j d_j.
        others: sum q_j but for one maximal element's; None where the gradient's pass finds it.
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
    """What the gradient of each row is made of, (N,) each; a row where all are 0 is not read.

    Attributes:
        probability: A.
        entropy: B, or None for 0.
        target: S, or None for 0.
        rest: what is left at the label, A - L - S q_y, of probabilities A - S * total: known
            without a difference, so that a row whose p_y is nearly 1 keeps its gradient's accuracy.
    """

    probability: torch.Tensor
    entropy: torch.Tensor | None
    target: torch.Tensor | None
    rest: torch.Tensor
