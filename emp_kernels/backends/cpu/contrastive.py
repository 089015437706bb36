"""Scores without labels, from tiles of similarities."""

import torch

from ...results import Scores
from ...similarities import Problem, RowValues, Views, combined, norms, row_values
from . import native
from .native import DEVICE

_ROWS, _COLUMNS = 2048, 512  # tile size at which the product reaches its full speed


def score_contrastive(problem: Problem) -> Scores:
    """Scores (n,) of two views."""
    return combined(problem, _similarity_rows)


def _similarity_rows(problem: Problem, views: Views, temperature: float) -> list[RowValues]:
    """The rows of each direction, one tile of similarities at a time. Without a group no product is
    computed twice: a tile's columns are rows of the transposed block."""
    threads = torch.get_num_threads()
    sums = {}  # per view: m, u, t and the positive's similarity, (4, n)
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
            offset = r + views.start - c  # the diagonal's offset
            if -len(tile) < offset < tile.shape[1]:
                diagonal = tile.diagonal(offset)
                if v == w:
                    diagonal.fill_(-torch.inf)
                else:
                    first = r + max(0, -offset)
                    for view in (v, w) if transposed else (v,):
                        sums[view][3, first : first + len(diagonal)] = diagonal
            add(tile, v, r, columns=False)
            if transposed and (v != w or c >= r + len(tile)):
                add(tile, w, c, columns=True)
    return [row_values(*sums[v]) for v in problem.directions]


def _tiles(rows, columns, temperature, upper):
    """(first row, first column, similarities) of every tile of rows (n, D) against columns (N, D),
    in one buffer. With `upper`, tiles below the diagonal are skipped; the first columns of each
    remaining tile form a square on the diagonal."""
    row_norms = (norms(rows) * temperature).float()[:, None]
    column_norms = norms(columns).float()[:, None]
    height, width = _ROWS // 2 if upper else _ROWS, rows.shape[1]
    own = torch.empty((min(height, len(rows)), width), dtype=torch.float32, device=DEVICE)
    against = own.new_empty((min(_COLUMNS, len(columns)), width))
    buffer = own.new_empty(len(own) * len(against))
    for r in range(0, len(rows), height):
        these = _divided(rows, row_norms, r, own)
        for c in range(r if upper else 0, len(columns), _COLUMNS):
            those = _divided(columns, column_norms, c, against)
            shape = len(these), len(those)
            tile = buffer[: shape[0] * shape[1]].view(shape)
            yield r, c, torch.mm(these, those.T, out=tile)


def _divided(vectors, lengths, start, buffer):
    """vectors (n, D) / lengths (n, 1) from row `start` on, as many rows as `buffer` (., D) holds,
    written into `buffer`: allocating each part anew would fragment memory."""
    part = vectors[start : start + len(buffer)]
    return torch.div(part.float(), lengths[start : start + len(part)], out=buffer[: len(part)])
