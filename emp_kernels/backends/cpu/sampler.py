"""The order of an epoch."""

import torch

from . import native


def shuffle(ids: torch.Tensor, seed: int) -> torch.Tensor:
    """The ids (K,) int64 in an order that depends on K and `seed` (64 bits) alone."""
    shuffled: torch.Tensor = native.module.shuffle(ids, seed, torch.get_num_threads())
    return shuffled
