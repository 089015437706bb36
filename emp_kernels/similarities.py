"""The parts of `score_contrastive` that all backends share: its forms, row blocks and results.

The similarity matrix is divided into blocks by view. Block (v, w) compares this rank's rows of view
v with all ranks' rows of view w. A row's softmax runs over all blocks of its view; the diagonal of
block (v, w) is the row itself if v = w, and left out, else its positive.
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
        own: both views of this rank's samples, each (n, D).
        all: both views of all ranks' samples, each (N, D); the same tensors as `own` without a
            group.
        start: the position of this rank's first sample among all.
    """

    own: tuple[torch.Tensor, torch.Tensor]
    all: tuple[torch.Tensor, torch.Tensor]
    start: int

    @property
    def alone(self) -> bool:
        """Whether `own` are all samples, so that block (w, v) is block (v, w) transposed."""
        return self.own[0] is self.all[0]


class Problem(NamedTuple):
    """The checked arguments of a `score_contrastive` call, with gathered views.

    `hidden` is None if the projections also give the entropy.
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
    """Loss, entropy and lse (n,) of the rows of one view."""

    loss: torch.Tensor
    entropy: torch.Tensor
    lse: torch.Tensor


def norms(vectors: torch.Tensor, rows: int = 512) -> torch.Tensor:
    """Euclidean lengths (n,) float64 of vectors (n, D), never below `SMALLEST_NORM`; computed
    `rows` at a time in float64."""
    lengths = torch.empty(len(vectors), dtype=torch.float64, device=vectors.device)
    # Into one result: small allocations between the large temporaries would prevent freeing them,
    # 64 MB in a first call.
    for part, out in zip(vectors.split(rows), lengths.split(rows), strict=True):
        torch.linalg.vector_norm(part, dim=1, dtype=torch.float64, out=out)
    return lengths.clamp_(min=SMALLEST_NORM)


def row_values(
    m: torch.Tensor, u: torch.Tensor, t: torch.Tensor, positive: torch.Tensor
) -> RowValues:
    """Row values from sums relative to the maximum that leave one maximal element out, (n,) float64
    each."""
    log_sum = torch.log1p(u)
    return RowValues((m - positive) + log_sum, log_sum - t / (1 + u) + (m - m), m + log_sum)


def merged(
    m: torch.Tensor, u: torch.Tensor, t: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Merge sums (parts, n) float64 of row parts into sums (n,) of rows; all leave one maximal
    element out and are relative to it. An empty part is (-inf, 0, 0)."""
    top, where = m.max(0)
    below = (m - top).nan_to_num(nan=-torch.inf)
    factor = below.exp()
    below = below.clamp(min=-1e4)  # where every exponential is 0
    left_in = torch.ones_like(m).scatter_(0, where[None], 0.0)  # the largest stays left out
    whole = u + left_in
    return top, (factor * whole).sum(0), (factor * (t + below * whole)).sum(0)


def combined(
    problem: Problem, rows_of: Callable[[Problem, Views, float], list[RowValues]]
) -> Scores:
    """Scores (n,) as means over the directions, from a backend's `rows_of`: loss of the
    projections, entropy of the hidden features if given."""
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
