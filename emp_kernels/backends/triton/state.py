"""Writes scores into the state."""

from ...results import Scores
from ...validation import check_id_range
from . import runtime


def update_state(state, ids, scores: Scores, function: str) -> None:
    """Write valid rows of `scores` (N,) into `state` at `ids` (N,); the last row of a duplicate
    id wins."""
    runtime.check_capability(ids.device)
    check_id_range(function, ids, state.num_samples)
    # Programs read rows after others have written theirs, so scores must not alias the state.
    names = ("score", "loss", "entropy")
    own = {getattr(state, name).untyped_storage().data_ptr() for name in names}
    fields = [
        field.clone()
        if field.untyped_storage().data_ptr() in own
        else field.resolve_neg().contiguous()
        for field in scores[:3]
    ]
    runtime.launch.remember(state, ids.contiguous(), fields)
