"""What many devices do together, on torch.distributed."""

from .group import initialised, ranks
from .orders import loaded_order, saved_order, shared_order
from .selection import select
from .sharded import ShardedState
from .states import sync
from .vocab_parallel import score_vocab_parallel

__all__ = [
    "ShardedState",
    "initialised",
    "loaded_order",
    "ranks",
    "saved_order",
    "score_vocab_parallel",
    "select",
    "shared_order",
    "sync",
]
