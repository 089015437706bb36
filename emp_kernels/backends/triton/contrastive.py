"""Scores of two views, one launch per block of their similarities."""

import torch

from ...results import Scores
from ...similarities import Problem, RowValues, Views, combined, merged, norms, row_values
from . import runtime


def score_contrastive(problem: Problem) -> Scores:
    """Scores (n,) of two views; one launch per block of the form."""
    runtime.check_capability(problem.projections.own[0].device)
    return combined(problem, _similarity_rows)


def _similarity_rows(problem: Problem, views: Views, temperature: float) -> list[RowValues]:
    """The rows of each direction."""
    if len(views.own[0]) == 0:
        nothing = torch.empty(0, dtype=torch.float64, device=views.own[0].device)
        return [RowValues(nothing, nothing, nothing)] * len(problem.directions)
    columns = [runtime.contrastive.scaled(vectors, norms(vectors)) for vectors in views.all]
    rows = columns
    if not views.alone:
        rows = [runtime.contrastive.scaled(vectors, norms(vectors)) for vectors in views.own]
    results = []
    with torch.cuda.device_of(views.own[0]):
        for v in problem.directions:
            vectors, factors = rows[v]
            sums = [
                runtime.contrastive.similarity_sums(
                    (vectors, (factors / temperature).float()),
                    (columns[w][0], columns[w][1].float()),
                    views.start,
                    w == v,
                )
                for x, w in problem.blocks
                if x == v
            ]
            m, u, t, positive = torch.cat(sums).double().unbind(1)
            results.append(row_values(*merged(m, u, t), positive.sum(0)))
    return results
