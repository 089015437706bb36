"""Scores of two views, from float64 rows of their similarities."""

import torch

from ...results import Scores
from ...similarities import Problem, RowValues, Views, combined, norms
from .scoring import CHUNK, row_statistics


def score_contrastive(problem: Problem) -> Scores:
    """Scores (n,) of two views."""
    return combined(problem, _similarity_rows)


def _similarity_rows(problem: Problem, views: Views, temperature: float) -> list[RowValues]:
    """The rows of each direction, from float64 similarities, a block at a time."""

    def unit(vectors):
        return vectors.double() / norms(vectors)[:, None]

    count, total = len(views.own[0]), len(views.all[0])
    columns = [unit(vectors) for vectors in views.all]
    step = max(1, CHUNK // max(1, 2 * total))
    results = []
    for v in problem.directions:
        against = [w for x, w in problem.blocks if x == v]
        chunks = []
        for start in range(0, max(1, count), step):
            rows = unit(views.own[v][start : start + step])
            own = torch.arange(len(rows), device=rows.device)
            place = own + start + views.start
            blocks = [rows @ columns[w].T / temperature for w in against]
            if v in against:
                blocks[against.index(v)][own, place] = -torch.inf
            labels = place + total * against.index(1 - v)
            chunks.append(row_statistics(torch.cat(blocks, 1), labels, None)[:3])
        results.append(RowValues(*map(torch.cat, zip(*chunks, strict=True))))
    return results
