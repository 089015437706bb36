"""What the backends share of `score_contrastive`: its forms, its rows and its results.

The matrix of similarities is cut into blocks by view. Block (v, w) compares this rank's rows of
view v with everyone's rows of view w. A row's softmax runs over all blocks of its view; on the
diagonal of block (v, w) stands the row itself where v = w, and is left out, else its positive.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch

from .results import Scores

BLOCKS = {
    "infonce": ((0, 1),),
    "clip": ((0, 1), (1, 0)),
    "ntxent": ((0, 0), (0, 1), (1, 0), (1, 1)),
}
SMALLEST_NORM = 1e-12  # as in torch.nn.functional.normalize: a zero vector stays zero


class Views(NamedTuple):
    """Two views of the same samples.

    Attributes:
        own: both views of this rank's samples, (n, D) each.
        all: both views of every rank's, (N, D) each; the same tensors as `own` without a group.
        start: the position of this rank's first sample among all.
    """

    own: tuple[torch.Tensor, torch.Tensor]
    all: tuple[torch.Tensor, torch.Tensor]
    start: int

    @property
    def alone(self) -> bool:
        """Whether these are all samples: block (w, v) is then block (v, w) transposed."""
        return self.own[0] is self.all[0]


class Problem(NamedTuple):
    """A call of `score_contrastive`, its arguments checked and its views gathered.

    `hidden` is None where the projections give the entropy, too.
    """

    form: str
    projections: Views
    hidden: Views | None
    temperature: float
    hidden_temperature: float
    beta: float

    @property
    def blocks(self) -> tuple[tuple[int, int], ...]:
        return BLOCKS[self.form]

    @property
    def directions(self) -> tuple[int, ...]:
        """The views whose rows are scored."""
        return tuple(dict(self.blocks))


class RowValues(NamedTuple):
    """loss, entropy and lse (n,) of the rows of one view."""

    loss: torch.Tensor
    entropy: torch.Tensor
    lse: torch.Tensor


def norms(vectors: torch.Tensor, rows: int = 512) -> torch.Tensor:
    """Euclidean lengths (n,) float64 of vectors (n, D), never below `SMALLEST_NORM`; `rows` at a
    time are in float64."""
    lengths = torch.empty(len(vectors), dtype=torch.float64, device=vectors.device)
    # Into one result: small results between the large temporaries would keep those from being
    # given back, 64 MB of them in a first call.
    for part, out in zip(vectors.split(rows), lengths.split(rows), strict=True):
        torch.linalg.vector_norm(part, dim=1, dtype=torch.float64, out=out)
    return lengths.clamp_(min=SMALLEST_NORM)


def row_values(
    m: torch.Tensor, u: torch.Tensor, t: torch.Tensor, positive: torch.Tensor
) -> RowValues:
    """From sums that leave one maximal element out, relative to it: (n,) float64 each."""
    log_sum = torch.log1p(u)
    return RowValues((m - positive) + log_sum, log_sum - t / (1 + u) + (m - m), m + log_sum)


def merged(
    m: torch.Tensor, u: torch.Tensor, t: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sums (n,) of rows from those of their parts, (parts, n) float64, each of which leaves one
    of its maximal elements out and is relative to it. A part without elements is (-inf, 0, 0)."""
    top, where = m.max(0)
    below = (m - top).nan_to_num(nan=-torch.inf)
    factor = below.exp()
    below = below.clamp(min=-1e4)  # behind every exponential that is not 0
    left_in = torch.ones_like(m).scatter_(0, where[None], 0.0)  # the largest stays left out
    whole = u + left_in
    return top, (factor * whole).sum(0), (factor * (t + below * whole)).sum(0)


def combined(
    problem: Problem, rows_of: Callable[[Problem, Views, float], list[RowValues]]
) -> Scores:
    """Scores (n,), as means over the directions, of what a backend's `rows_of` finds for the rows
    of each: of the projections, and of the hidden features, where there are any, the entropy."""
    projections = rows_of(problem, problem.projections, problem.temperature)
    hidden = projections
    if problem.hidden is not None:
        hidden = rows_of(problem, problem.hidden, problem.hidden_temperature)

    def mean(values: list[torch.Tensor]) -> torch.Tensor:
        return values[0] if len(values) == 1 else (values[0] + values[1]) / 2

    float64 = problem.projections.own[0].dtype == torch.float64
    loss, entropy, lse = (
        mean(values).to(torch.float64 if float64 else torch.float32)
        for values in (
            [rows.loss for rows in projections],
            [rows.entropy for rows in hidden],
            [rows.lse for rows in projections],
        )
    )
    valid = loss.isfinite() & entropy.isfinite()
    return Scores(torch.where(valid, loss + problem.beta * entropy, torch.nan), loss, entropy, lse)
