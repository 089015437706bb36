"""More samples in a state: what a stream needs, whose length is not known before its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .validation import check_size

if TYPE_CHECKING:
    from .state import EMPState

# What each sample's fields hold before it is seen.
NEVER_SEEN = dict.fromkeys(
    ("loss", "entropy", "updates", "selections", "seen_at", "counted", "drawn"), 0.0
) | {"score": torch.inf}
_SPARE = 4  # one sample in so many is allocated ahead of need, and then costs no copy
_LEAST = 1024


def grow(state: EMPState, num_samples: int) -> None:
    """:meth:`emp_kernels.EMPState.grow`. Fields lie at the beginning of longer tensors, whose rest
    has never been written; growing within these copies nothing."""
    function = "EMPState.grow"
    size, before = check_size(function, "num_samples", num_samples), state.num_samples
    if size < before:
        raise ValueError(
            f"{function}: num_samples must be at least this state's {before}, got {size}"
        )
    if size == before:
        return
    with torch.inference_mode(False), torch.no_grad():
        rooms = {name: _room(state, name, size) for name in NEVER_SEEN}
        vars(state).update({name: room[:size] for name, room in rooms.items()})
    state.rooms = rooms
    state.num_samples = size


def _room(state: EMPState, name: str, size: int) -> torch.Tensor:
    """A tensor of at least `size` entries that begins with the state's field and goes on as of
    samples never seen: the one that the field lies in already, or a copy."""
    field: torch.Tensor = getattr(state, name)
    room = state.rooms.get(name)
    if room is not None and len(room) >= size and room.data_ptr() == field.data_ptr():
        return room
    room = field.new_full((size + max(size // _SPARE, _LEAST),), NEVER_SEEN[name])
    room[: len(field)] = field
    return room
