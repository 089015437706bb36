"""The rows that a loss trains on, and the results reused from a Selection of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import ops
from .results import Scores, Selection
from .state import EMPState
from .terms import Adjustment
from .tracing import recording
from .validation import as_int64, check_ids, check_rows_in

REDUCTIONS = ("mean", "sum", "none")
_UNREAD = torch.iinfo(torch.int64).min  # label of rows that are not read; never an ignore_index


def check_reduction(function: str, reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"{function}: reduction must be one of {', '.join(REDUCTIONS)}, got {reduction!r}"
        )


def check_unremembered(function: str, state: EMPState | None) -> None:
    if state is not None:
        raise ValueError(
            f"{function}: state must be None when rows is a Selection (its scores were "
            "written when it was made), got an EMPState"
        )


def check_rows(function: str, rows: torch.Tensor, n: int, logits: torch.Tensor) -> torch.Tensor:
    """Positions (K,) int64 on the logits' device, checked to be in [0, n) on the CPU."""
    check_ids(function, "rows", rows)
    if recording():
        return ops.positions(rows.to(logits.device), n, function)
    rows = rows.to(device=logits.device, dtype=torch.int64)
    rows = rows.resolve_neg()  # required by torch's indexing
    check_rows_in(function, rows, n)
    return rows


def reused_scores(
    function: str, selection: Selection, labels: torch.Tensor, dtype: torch.dtype
) -> Scores:
    """The selection's scores, flattened, in the dtype that logits of `dtype` give."""
    shape = selection.scores.loss.shape
    if shape.numel() != labels.numel():
        raise ValueError(
            f"{function}: rows must be a Selection of the {labels.numel()} rows of logits, got one "
            f"of {shape.numel()} rows"
        )
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    # Inference tensors cannot be saved for the backward pass.
    reused = (x.to(wide, copy=not recording() and x.is_inference()) for x in selection.scores)
    return Scores(*(field.reshape(-1) for field in reused))


def check_reused_adjustment(
    function: str,
    inputs: Sequence[torch.Tensor | None],
    scores: Scores,
    positions: torch.Tensor,
    adjustment: Adjustment,
) -> None:
    """Raise if a Selection's `scores` are those of the logits as given, although the loss adjusts
    them. This compares the first row at `positions`, of logits (..., C) or of a product of hidden,
    weight and bias; on the CPU only, as elsewhere it would wait for the device."""
    first, *others = inputs
    if adjustment.changes_nothing or first is None or first.device.type != "cpu":
        return
    row = positions[:1]
    with torch.no_grad():
        z = first.reshape(-1, first.shape[-1])[row]
        if others:
            weight, bias = others
            assert weight is not None
            z = torch.nn.functional.linear(z, weight, bias)
        given = z.double()
        temperature, softcap = adjustment
        if isinstance(temperature, torch.Tensor):
            temperature = temperature.reshape(-1)[row].double()[:, None]
        adjusted = given if softcap is None else softcap * (given / softcap).tanh()
        reused = scores.lse[row].double()

        def close(logits: torch.Tensor) -> bool:
            return torch.allclose(logits.logsumexp(1), reused, rtol=1e-3, atol=1e-3)

        if len(row) and close(given) and not close(adjusted / temperature):
            raise ValueError(
                f"{function}: rows must be a Selection of scores with the loss's temperature and "
                "softcap, got one of scores without them; pass rows=selection.indices"
            )


def only(
    labels: torch.Tensor, positions: torch.Tensor, ignore_index: int | None
) -> tuple[torch.Tensor, int]:
    """Labels and an ignore_index such that only the rows at `positions` are read."""
    flat = as_int64(labels).reshape(-1)
    if ignore_index is not None:
        flat = flat.masked_fill(flat == ignore_index, _UNREAD)
    unread = torch.ones_like(flat, dtype=torch.bool)
    if len(flat):
        unread[positions.clamp(0, len(flat) - 1)] = False
    return flat.masked_fill(unread, _UNREAD).reshape(labels.shape), _UNREAD
