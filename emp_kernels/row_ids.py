"""Checks the sample ids of scored rows against the state that they are written into."""

from __future__ import annotations

import torch

from .state import EMPState, recomputing
from .validation import check_ids, check_same_device


def check_ids_of_rows(
    function: str,
    state: EMPState | None,
    indices: torch.Tensor | None,
    logits: torch.Tensor,
    n: int,
    rows: str = "rows",
) -> tuple[EMPState | None, torch.Tensor | None]:
    """The state to write into and the sample ids (n,) of the scored rows, on the device of
    `logits`; None: row i is sample i. In a recomputation a temporary state is returned."""
    if indices is not None:
        check_ids(function, "indices", indices, n)
        if indices.device != logits.device:
            indices = indices.to(logits.device)
    if state is None:
        return None, indices
    if not isinstance(state, EMPState):
        raise TypeError(
            f"{function}: state must be an EMPState or None, got {type(state).__name__}"
        )
    check_same_device(function, "state", state.score, "logits", logits)
    if indices is None and state.num_samples != n:
        hint = ", as a keyword after keep" if function == "score_and_select" else ""
        raise ValueError(
            f"{function}: pass indices= (the ids of the {rows}{hint}): without them the state "
            f"must hold exactly the {n} {rows} of logits, got a state of {state.num_samples} "
            "samples"
        )
    if recomputing():
        return EMPState(n, beta=state.beta, device=logits.device), None
    return state.rows_of(function, indices, n)
