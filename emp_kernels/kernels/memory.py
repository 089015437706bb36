"""Memory of a call that scores and selects: results in one allocation, and counts that are zero
between calls."""

from typing import NamedTuple

import torch

from .launching import stream_of


class Outcome(NamedTuple):
    """What a launch that selects writes: score, loss, entropy and lse (N,), indices (K,), threshold
    () and the number of invalid rows (), all in the memory at `address`."""

    scores: list[torch.Tensor]
    indices: torch.Tensor
    threshold: torch.Tensor
    invalid: torch.Tensor
    address: int


def outcome(n: int, keep: int, device: torch.device) -> Outcome:
    """Uninitialised results of n rows, `keep` of them selected: indices come first."""
    memory = torch.empty(2 * keep + 4 * n + 2, dtype=torch.float32, device=device)
    indices, *scores, threshold, invalid = memory.split_with_sizes((2 * keep, n, n, n, n, 1, 1))
    return Outcome(
        scores, indices.view(torch.int64), threshold.squeeze(0),
        invalid.view(torch.int32).squeeze(0), memory.data_ptr(),
    )  # fmt: skip


def addresses(found: Outcome, n: int, keep: int) -> tuple[int, int, int, int]:
    """Of the scores (4, N), indices, threshold and the number of invalid rows."""
    values = found.address + 8 * keep
    return values, found.address, values + 16 * n, values + 16 * n + 4


_counts: dict[tuple[int | None, int], torch.Tensor] = {}
_ROOM = 2**14  # ints, for the tickets of so many rows


def counts(size: int, device: torch.device) -> torch.Tensor:
    """int32 zeros, `size` or more of them, for launches that leave them zero again. Calls on one
    stream come one after another and share them. A graph may be replayed beside anything: while one
    is captured they are its own, and are zeroed by it."""
    stream = _lasting_stream(device)
    if stream is None:
        return torch.zeros(size, dtype=torch.int32, device=device)
    found = _counts.get((device.index, stream))
    if found is None or found.shape[0] < size:
        found = torch.zeros(max(size, _ROOM), dtype=torch.int32, device=device)
        _counts[device.index, stream] = found
    return found


def _lasting_stream(device: torch.device) -> int | None:
    """The stream whose counts a launch uses; None where it needs counts of its own."""
    if device.type == "cpu" or torch.cuda.is_current_stream_capturing():
        return None
    return stream_of(device)
