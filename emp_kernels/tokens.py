"""Logits of language models, (B, T, C): selection of tokens, or of sequences by their mean score.

One read of the logits gives the scores of all tokens; the rest works on (B, T) and (B,).
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch

from . import backends
from .compiling import outside_compiler
from .keep import Keep, check_keep_of, kept_count
from .results import Scores, Selection
from .row_ids import check_ids_of_rows
from .state import EMPState
from .validation import (
    check_ignore_index,
    check_labels,
    check_strided,
)

PER = ("all", "row", "sequence")


@functools.partial(outside_compiler, name="score_and_select")
def select_tokens(
    logits: torch.Tensor,
    labels: torch.Tensor,
    state: EMPState | None,
    keep: Keep,
    indices: torch.Tensor | None,
    ignore_index: int | None,
    per: str,
    backend: str | None,
    function: str,
) -> Selection:
    """The token level of :func:`emp_kernels.score_and_select`, documented there. A graph break
    under ``torch.compile``, as sizes depend on the data."""
    if not isinstance(per, str):
        raise TypeError(f"{function}: per must be a str, got {type(per).__name__}")
    if per not in PER:
        raise ValueError(f"{function}: per must be one of {', '.join(PER)}, got {per!r}")
    if logits.dim() != 3:
        shapes = "(N, C) or (B, T, C)" if per == "all" else f"(B, T, C) where per is {per!r}"
        images = ""
        shape = labels.shape if isinstance(labels, torch.Tensor) else None
        if logits.dim() > 3 and shape == (len(logits), *logits.shape[2:]):
            images = " (classes last and positions flat, as logits.movedim(1, -1).flatten(0, -2))"
        raise ValueError(
            f"{function}: logits must have shape {shapes}{images}, got {tuple(logits.shape)}"
        )
    check_labels(function, labels, logits)
    sequences, length = labels.shape
    n = sequences if per == "sequence" else sequences * length
    keep = check_keep_of(function, keep, length if per == "row" else n)
    ignore_index = check_ignore_index(function, ignore_index)
    state, indices = _check_ids(function, state, indices, labels, per)
    chosen = backends.resolve(function, backend, logits)

    beta = 1.0 if state is None else state.beta
    scores = chosen.score(logits.detach(), labels, beta, ignore_index, function)
    ranked = Scores(*(field.reshape(-1) for field in scores))
    if per == "sequence":
        ranked = sequence_means(scores)
    ids = indices
    if state is not None:
        ids = torch.arange(n, device=labels.device) if indices is None else indices
        chosen.update_state(state, ids, ranked, function)
        if labels.device.type != "cpu":  # an id out of range makes its row invalid
            ids = ids.to(torch.int64)
            known = (ids >= 0) & (ids < state.num_samples) | (ranked.score == -torch.inf)
            ranked = ranked._replace(score=ranked.score.masked_fill(~known, torch.nan))
            if per != "sequence":
                scores = scores._replace(score=ranked.score.view(labels.shape))
    of_all = ignore_index is None
    waits = labels.device.type == "cpu" or not of_all
    if per == "row":
        score = ranked.score.view(labels.shape)
        positions = highest_of_each(chosen, score, keep, of_all, waits)
    else:
        positions = highest(chosen, ranked.score, keep, of_all, waits)
    threshold = _lowest(ranked.score, positions)
    if state is not None and ids is not None and n:
        drawn = ids.to(torch.int64)[positions.clamp(0, n - 1)].clamp(0, state.num_samples - 1)
        state.selections.index_add_(0, drawn, (positions >= 0).to(torch.int32))
    return Selection(positions, scores, threshold, scores.score.isnan().sum().to(torch.int32))


def _check_ids(
    function: str,
    state: EMPState | None,
    indices: torch.Tensor | None,
    labels: torch.Tensor,
    per: str,
) -> tuple[EMPState | None, torch.Tensor | None]:
    """The state to write into and the ids of tokens (flattened) or of sequences, on the logits'
    device."""
    what, n = "tokens", labels.numel()
    if per == "sequence":
        what, n = "sequences", labels.shape[0]
    if isinstance(indices, torch.Tensor) and per != "sequence" and indices.dim() == 2:
        check_strided(function, "indices", indices)
        if indices.shape != labels.shape:
            raise ValueError(
                f"{function}: indices must have shape {tuple(labels.shape)} or ({n},) where "
                f"per is {per!r}, got {tuple(indices.shape)}"
            )
        indices = indices.reshape(-1)
    return check_ids_of_rows(function, state, indices, labels, n, what)


def _counts(score: torch.Tensor) -> torch.Tensor:
    """Which rows are neither invalid (NaN) nor ignored (-inf)."""
    return score > -torch.inf


def sequence_means(scores: Scores) -> Scores:
    """The means (B,) over each sequence's tokens that count, computed in float64; score NaN if none
    counts, -inf if all are ignored."""
    counted = _counts(scores.score)
    number = counted.sum(1)
    means = [
        torch.where(counted, field.double(), 0.0).sum(1).div(number.clamp(min=1)).to(field.dtype)
        for field in scores
    ]
    ignored = (scores.score == -torch.inf).all(1)
    nothing = torch.where(ignored, -torch.inf, torch.nan).to(means[0].dtype)
    means[0] = torch.where(number > 0, means[0], nothing)
    return Scores(*means)


def highest(
    chosen: ModuleType, score: torch.Tensor, keep: Keep, of_all: bool, waits: bool
) -> torch.Tensor:
    """Ascending positions of the kept rows of score (N,), among those that count.

    K is relative to all rows if `of_all`, else to those that count, whose number is then read back.
    `waits` reads it back in any case; without it, the result is padded with -1 if fewer than K
    count.
    """
    n, counted = score.shape[0], _counts(score)
    if not waits:
        rows = chosen.select(score.masked_fill(~counted, torch.nan), kept_count(keep, n))
        return _padded(torch.where(counted[rows], rows, n), n)
    number = int(counted.sum())
    count = min(kept_count(keep, n if of_all else number), number)
    positions: torch.Tensor = chosen.select(score, count)
    return positions


def highest_of_each(
    chosen: ModuleType, score: torch.Tensor, keep: Keep, of_all: bool, waits: bool
) -> torch.Tensor:
    """As `highest`, within each row of score (B, T); positions in the flattened score."""
    sequences, length = score.shape
    number = _counts(score).sum(1)
    if of_all:
        counts = number.clamp(max=kept_count(keep, length))
    elif isinstance(keep, float):  # kept_count of each; torch.round also rounds halves to even
        counts = (number.double() * keep).round().long().clamp(min=1).minimum(number)
    else:
        counts = number.clamp(max=keep)
    if not waits:
        total = sequences * kept_count(keep, length)
        return _padded(chosen.select_rows(score, counts, total), sequences * length)
    positions: torch.Tensor = chosen.select_rows(score, counts, int(counts.sum()))
    return positions


def _padded(positions: torch.Tensor, end: int) -> torch.Tensor:
    """Ascending positions with `end`, the padding, replaced by -1."""
    positions = positions.sort().values
    return torch.where(positions < end, positions, -1)


def _lowest(score: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """() the lowest score at `positions`, except -1; +inf if there is none."""
    end = torch.full((1,), torch.inf, dtype=score.dtype, device=score.device)
    return torch.cat([score, end])[positions].amin() if len(positions) else end[0]
