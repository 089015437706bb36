"""What a state tells about its training: how stale its scores are, how selections succeed.

Hard top-k can collapse (METHOD: rescoring everything at each epoch's start and then training the
top share alone falls far behind random selection). What shows it is the overlap of successive
selections beside the mean loss of all samples: the loss does not fall, while the selections hardly
meet (each epoch forgets what the one before learned) or are always the same (what is selected is
not learned).
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from .state import EMPState

WINDOWS = 256  # how many windows a state remembers
COLUMNS = ("share", "overlap", "loss", "never_seen")

_JUDGED = 3  # successive windows that must agree before anything is said
_PRUNED = 0.9  # a window that drew a larger share is no selection
_CHURN = 0.5  # overlaps below this part of what chance gives
_STUCK = 0.9  # overlaps above this
_FALLING = 0.98  # the mean loss must fall below this part of what it was


class Diagnostics(NamedTuple):
    """Result of :meth:`emp_kernels.EMPState.diagnostics`.

    A window is what was drawn between two looks: an epoch of a sampler, or what happened between
    two calls of ``diagnostics``.

    Attributes:
        never_seen: share of the samples that have no score yet, in [0, 1].
        median_age: of the samples that have a score, how many calls ago half of them had it
            written; NaN when there are none.
        share: share of the samples that the last window drew; NaN before the first window.
        overlap: share of the last window's samples that the window before drew too; NaN before the
            second window.
        expected_overlap: what `overlap` would be if the last window had been drawn at random.
        training_counts: (M,) int64; entry c counts the samples that were selected c times.
        windows: (W, 4) float64, the latest last: share, overlap, mean loss of the seen samples in
            nats, and share never seen, of up to 256 windows.
        warning: why hard selection seems to be collapsing, in words; None when it does not.
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
    """Note what was drawn since the last call; nothing where nothing was."""
    drawn = state.selections != state.counted
    count = int(drawn.sum())
    if count == 0:
        return
    seen = int((state.updates > 0).sum())
    if bool(state.windows[-1, 0].isnan()):
        overlap = torch.nan
    else:
        overlap = int((drawn & state.drawn).sum()) / count
    row = (
        count / state.num_samples,
        overlap,
        float(state.loss.sum(dtype=torch.float64)) / seen if seen else torch.nan,
        1 - seen / state.num_samples,
    )
    windows = state.windows.roll(-1, 0)
    windows[-1] = windows.new_tensor(row)
    state.windows.copy_(windows)
    state.drawn.copy_(drawn)
    state.counted.copy_(state.selections)


def diagnose(state: EMPState) -> Diagnostics:
    """Close the window and describe the state; warn, once a state, of a collapse."""
    close_window(state)
    windows = state.windows.cpu()
    windows = windows[~windows[:, 0].isnan()]
    seen = state.updates > 0
    num_seen = int(seen.sum())
    ages = state.age()[seen]
    nan = torch.nan
    warning = _collapse(windows)
    if warning is not None and not state.warned:
        state.warned = True
        warnings.warn(f"EMPState: {warning}", UserWarning, stacklevel=3)
    return Diagnostics(
        never_seen=1 - num_seen / state.num_samples if state.num_samples else 0.0,
        median_age=float(ages.median()) if num_seen else nan,
        share=float(windows[-1, 0]) if len(windows) else nan,
        overlap=float(windows[-1, 1]) if len(windows) else nan,
        expected_overlap=float(windows[-2, 0]) if len(windows) > 1 else nan,
        training_counts=torch.bincount(state.selections.cpu()),
        windows=windows,
        warning=warning,
    )


def _collapse(windows: torch.Tensor) -> str | None:
    """Why the last windows (W, 4) look like a collapse, or None."""
    if len(windows) < _JUDGED + 1:
        return None
    before, judged = windows[-_JUDGED - 1 : -1], windows[-_JUDGED:]
    share, overlap, loss, never_seen = judged.unbind(1)
    expected, earlier_loss = before[:, 0], before[0, 2]
    if (share > _PRUNED).any() or (expected > _PRUNED).any():
        return None
    stuck, churning = (overlap > _STUCK).all(), (overlap < _CHURN * expected).all()
    last = f"{float(overlap[-1]):.0%} of the last selection was in the one before"
    if stuck and never_seen[-1] > 0 and never_seen[-1] == never_seen[0]:
        return (
            f"the same samples are drawn again and again ({last}) and {float(never_seen[-1]):.0%} "
            "of all samples were never scored: selections do not reach the state; pass state and "
            "indices= to emp.cross_entropy or emp.score_and_select for what is trained"
        )
    if not loss[-1] >= _FALLING * earlier_loss:
        return None
    trend = f"the mean loss went from {float(earlier_loss):.3g} to {float(loss[-1]):.3g} nats"
    if churning and never_seen[-1] == 0:
        return (
            f"hard selection is collapsing: successive selections hardly meet ({last}, chance "
            f"would give {float(expected[-1]):.0%}) and {trend}: each epoch forgets what the one "
            "before learned. Refresh a sample's score only when it is trained, keep more, or end "
            "with epochs on all samples (anneal_epochs)"
        )
    if stuck:
        return (
            f"hard selection is collapsing: it draws the same samples again and again ({last}) "
            f"and {trend}: what is selected is not learned, as with wrong labels. Keep more, or "
            "draw some samples at random"
        )
    return None
