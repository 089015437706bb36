"""The order of an epoch, and an iterator that counts what it draws."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator

import torch

from . import native


def shuffle(ids: torch.Tensor, seed: int) -> torch.Tensor:
    """The ids (K,) int64 in an order that depends on K and `seed` (64 bits) alone."""
    shuffled: torch.Tensor = native.module.shuffle(ids, seed, torch.get_num_threads())
    return shuffled


def shuffled_at(n: int, seed: int, positions: torch.Tensor) -> torch.Tensor:
    """The ids that `shuffle` of 0 to n - 1 puts at `positions` (L,) int64, each in [0, n); long
    orders are not materialised."""
    ids: torch.Tensor = native.module.shuffled_at(n, seed, positions, torch.get_num_threads())
    return ids


def systematic(
    units: torch.Tensor,
    order: torch.Tensor,
    left: int,
    whole: int,
    first: int,
    drawn: torch.Tensor,
) -> None:
    """Systematic sampling: sets drawn (N,) bool for `left` of the items 0 to N - 1. Items are laid
    side by side in `order` (N,) int64, item i being units[i] (N,) int64 >= 0 long, `whole` in
    total; drawn are those that contain one of the marks whole / left apart, the first at (whole -
    first) / left.

    With `first` uniform in [0, whole), an item no longer than whole / left is drawn with
    probability units * left / whole. whole * (left + 1) must be below 2**63.
    """
    native.module.systematic(units, order, left, whole, first, drawn)


def draws(
    ids: torch.Tensor,
    progress: array[int],
    chunk: int,
    begin: Callable[[int], torch.Tensor | None],
    end: Callable[[], None],
) -> Iterator[int]:
    """A weakly referenceable iterator over ids (K,) int64 that counts the ids it draws.

    It keeps how many are drawn, and whether one more was asked for, in the first two of `progress`
    (three int64). `begin(position)`, called every `chunk` ids, and behind an id where the third was
    set to 0, returns the counts (N,) int32 to add 1 to at each id from there on, or None; `end()`
    is called once, by whom asks for one more.
    """
    iterator: Iterator[int] = native.module.draws(ids, progress, chunk, begin, end)
    return iterator
