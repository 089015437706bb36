"""Texts as features of a hash table."""

from typing import NamedTuple

import torch

BUCKETS = 2**16  # of the hash: network.py sorts them as 16 bits


class Texts(NamedTuple):
    """Texts of one split: features of text i are `features[starts[i] : starts[i] + lengths[i]]`.

    Attributes:
        features: (F,) int64 in [0, BUCKETS).
        starts, lengths: (N,) int64; a length is at least 1.
        labels: (N,) int64.
    """

    features: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    labels: torch.Tensor
