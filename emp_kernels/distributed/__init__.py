"""What many devices do together, on torch.distributed."""

from .group import initialised, ranks
from .states import sync

__all__ = ["initialised", "ranks", "sync"]
