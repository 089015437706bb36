"""A state that grows, for streams of unknown length."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .validation import check_size

if TYPE_CHECKING:
    from .state import EMPState

# The fields of a sample that was never seen.
NEVER_SEEN = dict.fromkeys(
    ("loss", "entropy", "updates", "selections", "seen_at", "_counted", "_drawn"), 0.0
) | {"score": torch.inf}
_SPARE = 4  # growing allocates size / _SPARE samples more, at least _LEAST
_LEAST = 1024


def grow(state: EMPState, num_samples: int) -> None:
    """:meth:`emp_kernels.EMPState.grow`. Fields are views of longer tensors, whose rest has
    never been written; growing within these copies nothing."""
    function = "EMPState.grow"
    size, before = check_size(function, "num_samples", num_samples), state.num_samples
    if size < before:
        raise ValueError(
            f"{function}: num_samples must be at least this state's {before}, got {size}"
        )
    if size == before:
        return
    with torch.inference_mode(False), torch.no_grad():
        buffers = {name: _buffer(state, name, size) for name in NEVER_SEEN}
        vars(state).update({name: buffer[:size] for name, buffer in buffers.items()})
    state._buffers = buffers
    state.num_samples = size


def _buffer(state: EMPState, name: str, size: int) -> torch.Tensor:
    """A tensor of at least `size` entries: the state's field, then entries of samples never seen.
    The field's own buffer where that is long enough, else a copy."""
    field: torch.Tensor = getattr(state, name)
    buffer = state._buffers.get(name)
    if buffer is not None and len(buffer) >= size and buffer.data_ptr() == field.data_ptr():
        return buffer
    buffer = field.new_full((size + max(size // _SPARE, _LEAST),), NEVER_SEEN[name])
    buffer[: len(field)] = field
    return buffer
