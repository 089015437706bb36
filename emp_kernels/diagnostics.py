"""Diagnostics of a state: how stale its scores are, how selections follow one another.

Hard top-k can collapse (rescoring everything at each epoch's start and then training the
top share alone falls far behind random selection). It shows in the overlap of successive selections
and the mean loss of all samples: the loss does not fall, while the selections hardly overlap (each
epoch forgets what the previous one learned) or stay the same (what is selected is not learned).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

import torch

from .cautions import EMPWarning

if TYPE_CHECKING:
    from .state import EMPState

WINDOWS = 256  # how many windows a state remembers
COLUMNS = ("share", "overlap", "loss", "never_seen")

# Neither training on stale scores nor random selection reaches these thresholds, while hard top-k
# on scores refreshed each epoch mostly does (tests/test_diagnostics.py trains both).
_PRUNED = 0.9  # a window with a larger share is not pruned
_CHURN, _CHURNS = 0.75, 2  # this many consecutive overlaps below this fraction of the expected one
_STUCK, _STUCKS = 0.9, 3  # this many consecutive overlaps above this


class Diagnostics(NamedTuple):
    """Result of :meth:`emp_kernels.EMPState.diagnostics`.

    A window is an epoch of a sampler, or the time between two calls of ``diagnostics``.

    Attributes:
        never_seen: share of the samples that have no score yet, in [0, 1].
        median_age: median over the samples with a score of how many calls ago it was written; NaN
            if there are none.
        share: share of the samples drawn in the last window; NaN before the first window.
        overlap: share of the last window's samples that were also drawn in the previous one; NaN
            before the second window.
        expected_overlap: what `overlap` would be if the last window had been drawn at random.
        training_counts: (M,) int64; entry c counts the samples that were selected c times.
        windows: (W, 4) float64, the latest last: share, overlap (0 in the first), mean loss of the
            seen samples in nats (0 without any), and share never seen, of up to 256 windows.
        warning: why hard selection seems to be collapsing; None if it does not.
    """

    never_seen: float
    median_age: float
    share: float
    overlap: float
    expected_overlap: float
    training_counts: torch.Tensor
    windows: torch.Tensor
    warning: str | None


def close_window(state: EMPState) -> None:
    """Record which samples were drawn since the last call, if any."""
    drawn = state.selections != state._counted
    count = _total(state, drawn)
    if count == 0:
        return
    seen = _total(state, state.updates)
    row = (
        count / state.num_samples,
        _total(state, drawn & state._drawn) / count,
        state.total(float(state.loss.sum(dtype=torch.float64))) / max(1, seen),
        1 - seen / state.num_samples,
    )
    windows = state._windows.roll(-1, 0)
    windows[-1] = windows.new_tensor(row)
    state._windows.copy_(windows)
    state._drawn.copy_(drawn)
    state._counted.copy_(state.selections)


def _total(state: EMPState, counted: torch.Tensor) -> int:
    """Number of nonzero entries over all samples; much faster than a sum of bools."""
    return int(state.total(int(torch.count_nonzero(counted))))


def diagnose(state: EMPState) -> Diagnostics:
    """Close the window and describe the state; warn of a collapse once per state."""
    close_window(state)
    windows = state._windows.cpu()
    windows = windows[windows[:, 0] >= 0]
    ages = state.counts(state.age()[state.updates > 0]).cumsum(0)  # samples up to each age
    num_seen = int(ages[-1]) if len(ages) else 0
    nan = torch.nan
    warning = _collapse(windows)
    if warning is not None and not state.warned:
        state.warned = True
        warnings.warn(f"EMPState: {warning}", EMPWarning, stacklevel=3)
    return Diagnostics(
        never_seen=1 - num_seen / state.num_samples if state.num_samples else 0.0,
        median_age=float((ages <= (num_seen - 1) // 2).sum()) if num_seen else nan,
        share=float(windows[-1, 0]) if len(windows) else nan,
        overlap=float(windows[-1, 1]) if len(windows) > 1 else nan,
        expected_overlap=float(windows[-2, 0]) if len(windows) > 1 else nan,
        training_counts=state.counts(state.selections),
        windows=windows,
        warning=warning,
    )


def _collapse(windows: torch.Tensor) -> str | None:
    """The reason of the most recent collapse among the windows (W, 4), or None."""
    for last in reversed(range(_CHURNS, len(windows))):
        reason = _churns(windows[last - _CHURNS : last + 1])
        if reason is None and last >= _STUCKS:
            reason = _stuck(windows[last - _STUCKS : last + 1])
        if reason is not None:
            return f"{reason} (seen in selection {last + 1} of the last {len(windows)})"
    return None


def _churns(windows: torch.Tensor) -> str | None:
    """Whether each window forgets what the previous one learned."""
    share, overlap, loss, never_seen = windows.unbind(1)
    expected = share[:-1]
    if (share > _PRUNED).any() or never_seen[-1] > 0:  # never-seen samples are drawn only once
        return None
    if not (overlap[1:] < _CHURN * expected).all() or loss[-1] < loss[0]:
        return None
    return (
        f"hard selection is collapsing: only {overlap[-1]:.0%} of a selection was in the one "
        f"before, where chance would give {expected[-1]:.0%}, and the mean loss of all samples "
        f"went from {loss[0]:.3g} to {loss[-1]:.3g} nats: each epoch forgets what the one before "
        "learned. Refresh a sample's score only when it is trained, keep more, or end with epochs "
        "on all samples (anneal_epochs)"
    )


def _stuck(windows: torch.Tensor) -> str | None:
    """Whether the windows keep drawing the same samples, or samples without a score, without
    progress."""
    share, overlap, loss, never_seen = windows.unbind(1)
    if (share > _PRUNED).any():
        return None
    same = bool((overlap[1:] > _STUCK).all()) and bool(loss[-1] >= loss[0])
    waiting = bool((never_seen == never_seen[0]).all()) and bool(never_seen[0] > 0)
    again = f"{overlap[-1]:.0%} of a selection was in the one before"
    # If more samples have no score than are drawn, only such samples are drawn.
    if waiting and (same or never_seen[0] >= share.max()):
        return (
            f"what is drawn does not reach the state: {again}, and {never_seen[-1]:.0%} of all "
            "samples stay without a score, which are drawn first; pass the state and indices= to "
            "emp.cross_entropy or emp.score_and_select"
        )
    if not same:
        return None
    return (
        f"hard selection is collapsing: it draws the same samples again and again, {again}, and "
        f"the mean loss of all samples went from {loss[0]:.3g} to {loss[-1]:.3g} nats: what is "
        "selected is not learned, as with wrong labels. Keep more, or draw some samples at random"
    )
