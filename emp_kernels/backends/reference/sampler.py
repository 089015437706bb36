"""The shuffle of an epoch's ids, and an iterator that counts what it draws."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator

import torch

_FEW = 2**16


def shuffle(ids: torch.Tensor, seed: int) -> torch.Tensor:
    """The ids (K,) int64 in an order that depends on K and `seed` (64 bits) alone; see
    csrc/cpu/shuffle.h."""
    n = ids.shape[0]
    order = _shuffled(n, seed) if n <= _FEW else _permuted(n, seed, torch.arange(n, device="cpu"))
    return ids[order]


def shuffled_at(n: int, seed: int, positions: torch.Tensor) -> torch.Tensor:
    """As :func:`emp_kernels.backends.cpu.shuffled_at`."""
    return _shuffled(n, seed)[positions] if n <= _FEW else _permuted(n, seed, positions)


def _shuffled(n: int, seed: int) -> torch.Tensor:
    """A permutation (n,) by Fisher-Yates."""
    words = _draws(seed + 1, -(-n // 2))[:, None] >> torch.tensor([0, 32], device="cpu")
    random = (words & (2**32 - 1)).reshape(-1)[:n].tolist()
    order = list(range(n))
    for place in range(n):
        other = random[place] * (place + 1) >> 32
        order[place], order[other] = order[other], order[place]
    return torch.tensor(order, dtype=torch.int64, device="cpu")


def _permuted(n: int, seed: int, positions: torch.Tensor) -> torch.Tensor:
    """The images of `positions` under a Feistel network over a table of rows and columns; see
    csrc/cpu/permuted_places.h."""
    rows = math.isqrt(n - 1) + 1
    columns = -(-n // rows)
    lanes = (_draws(seed, 6)[:, None] >> torch.tensor([0, 16, 32], device="cpu")) & 0xFFFF

    def feistel_step(place: torch.Tensor) -> torch.Tensor:
        x, y, size, other = place // columns, place % columns, rows, columns
        for term, factor, factor2 in lanes.tolist():
            drawn = (y * (factor | 1) + term) & 0xFFFF
            drawn = ((drawn ^ (drawn >> 8)) * (factor2 | 1)) & 0xFFFF
            x = (x + (drawn * size >> 16)) % size
            x, y, size, other = y, x, other, size
        return x * columns + y

    positions = feistel_step(positions)
    while (outside := positions >= n).any():
        positions[outside] = feistel_step(positions[outside])
    return positions


def systematic(
    units: torch.Tensor,
    order: torch.Tensor,
    left: int,
    whole: int,
    first: int,
    drawn: torch.Tensor,
) -> None:
    """As :func:`emp_kernels.backends.cpu.systematic`."""
    ends = units.index_select(0, order).cumsum_(0)
    marks = ends.mul_(left).add_(first).div_(whole, rounding_mode="floor")  # up to each end
    met = marks.diff(prepend=marks.new_zeros(1)) > 0
    drawn[order[met]] = True


def draws(
    ids: torch.Tensor,
    progress: array[int],
    chunk: int,
    begin: Callable[[int], torch.Tensor | None],
    end: Callable[[], None],
) -> Iterator[int]:
    """As :func:`emp_kernels.backends.cpu.draws`."""
    while progress[0] < len(ids):
        found = begin(progress[0])
        counts = None if found is None else found.numpy()
        progress[2] = min(progress[0] + chunk, len(ids))
        for i in ids[progress[0] : progress[2]].tolist():
            if counts is not None:
                if not 0 <= i < len(counts):
                    raise IndexError(f"id {i} is out of range for {len(counts)} samples")
                counts[i] += 1
            progress[0] += 1
            yield i
            if progress[2] == 0:  # the counts have moved
                break
    progress[1] = 1
    end()


def _draws(seed: int, count: int) -> torch.Tensor:
    """The first `count` elements of the splitmix64 stream `seed`, as int64 bits."""

    def signed(x: int) -> int:
        return (x + 2**63) % 2**64 - 2**63

    def mixed(z: torch.Tensor, shift: int) -> torch.Tensor:
        return z ^ ((z >> shift) & (2 ** (64 - shift) - 1))

    z = torch.arange(1, count + 1, device="cpu") * signed(0x9E3779B97F4A7C15) + signed(seed)
    z = mixed(z, 30) * signed(0xBF58476D1CE4E5B9)
    z = mixed(z, 27) * signed(0x94D049BB133111EB)
    return mixed(z, 31)
