"""Scores without labels, from tiles of similarities."""

import torch

from ...results import Scores
from ...similarities import Problem, RowValues, Views, combined, norms, row_values
from . import native
from .native import DEVICE

_TILE, _PANEL = 1024, 4096  # rows and columns of a tile; rows normalised at a time


def score_contrastive(problem: Problem) -> Scores:
    """Scores (n,) of two views."""
    projections = _similarity_rows(problem, problem.projections, problem.temperature)
    hidden = projections
    if problem.hidden is not None:
        hidden = _similarity_rows(problem, problem.hidden, problem.hidden_temperature)
    return combined(problem, projections, hidden)


def _similarity_rows(problem: Problem, views: Views, temperature: float) -> list[RowValues]:
    """Of each direction, from one tile of similarities at a time. Without a group no product is
    computed twice: a tile's columns are rows of the transposed block."""
    threads = torch.get_num_threads()
    sums = {}  # by view: m, u, t and the positive's similarity, (4, n)
    for v in problem.directions:
        sums[v] = torch.zeros((4, len(views.own[v])), dtype=torch.float64, device=DEVICE)
        sums[v][0] = -torch.inf

    def add(tile, view, start, columns):
        native.module.add_tile(tile, sums[view][:, start:], columns, threads)

    for v, w in problem.blocks:
        if views.alone and w < v:
            continue
        transposed = views.alone and (w, v) in problem.blocks
        for r, c, tile in _tiles(views.own[v], views.all[w], temperature, transposed and v == w):
            offset = r + views.start - c  # of the diagonal
            if -len(tile) < offset < tile.shape[1]:
                diagonal = tile.diagonal(offset)
                if v == w:
                    diagonal.fill_(-torch.inf)
                else:
                    first = r + max(0, -offset)
                    for view in (v, w) if transposed else (v,):
                        sums[view][3, first : first + len(diagonal)] = diagonal
            add(tile, v, r, columns=False)
            if transposed and (v != w or r != c):
                add(tile, w, c, columns=True)
    return [row_values(*sums[v]) for v in problem.directions]


def _tiles(rows, columns, temperature, upper):
    """(first row, first column, similarities) of every tile of rows (n, D) against columns (N, D),
    in one buffer; with `upper` only of those that are not below the diagonal."""
    row_norms = (norms(rows) * temperature).float()[:, None]
    column_norms = norms(columns).float()[:, None]
    buffer = torch.empty(_TILE * _TILE, dtype=torch.float32, device=DEVICE)
    for panel in range(0, len(rows), _PANEL):
        part = slice(panel, panel + _PANEL)
        units = rows[part].float() / row_norms[part]
        for c in range(panel if upper else 0, len(columns), _TILE):
            against = (columns[c : c + _TILE].float() / column_norms[c : c + _TILE]).T
            for start in range(0, len(units), _TILE):
                r = panel + start
                if upper and c < r:
                    break
                these = units[start : start + _TILE]
                shape = len(these), against.shape[1]
                tile = buffer[: shape[0] * shape[1]].view(shape)
                yield r, c, torch.mm(these, against, out=tile)
