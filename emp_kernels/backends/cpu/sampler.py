"""The order of an epoch, and the count of what it draws."""

from collections.abc import Callable

import torch

from . import native


def shuffle(ids: torch.Tensor, seed: int) -> torch.Tensor:
    """The ids (K,) int64 in an order that depends on K and `seed` (64 bits) alone."""
    shuffled: torch.Tensor = native.module.shuffle(ids, seed, torch.get_num_threads())
    return shuffled


def counter(selections: torch.Tensor) -> Callable[[int], int]:
    """A function that counts an id in `selections` (N,) int32 and returns it."""
    count: Callable[[int], int] = native.module.counter(selections)
    return count
