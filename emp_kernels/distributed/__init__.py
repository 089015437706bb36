"""Scoring, selection and states over many devices, on torch.distributed."""

from .group import initialised, ranks
from .selection import select
from .sharded import ShardedState
from .states import sync
from .vocab_parallel import score_vocab_parallel

__all__ = ["ShardedState", "initialised", "ranks", "score_vocab_parallel", "select", "sync"]
