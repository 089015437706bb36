"""Who holds a sampler's iterator: a loader's iterator, which torch does not tell its sampler of.

A loop holds the iterator of its DataLoader, not the sampler's, and worker processes ask for ids
long before their batches are trained. Private names of torch and torchdata, all of them here, say
which loader asks and what it has not yet handed over. Without them (another library's loader) the
sampler's iterator stands for its loop, as it does where there is no loader.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from typing import Any

_ASKS = "_next_index"  # the method in which a loader's iterator draws
_BEGIN = frozenset({_ASKS, "_reset", "__init__"})  # those in which it may begin to
_UNDELIVERED = "_task_info"  # of batches that worker processes make: a dictionary
_DATASET = "_dataset"
_WORKERS, _SHUT = "_num_workers", "_shutdown"
_FINISHED = "_finished"  # torchdata's: its loader keeps an iterator that has told its end
_DEPTH = 24  # frames between a sampler and its loader: batch samplers, wrapped ones


def asking() -> Any:
    """The iterator of the loader that is asking the caller's caller for ids, or None."""
    frame = sys._getframe(2)
    for _ in range(_DEPTH):
        # Of no other frame: where f_locals was read, a frame keeps what its variables held.
        if frame.f_code.co_name in _BEGIN:
            owner = frame.f_locals.get("self")
            if hasattr(type(owner), _ASKS):
                return owner
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None


class Hold:
    """A loop's hold on a sampler's `iterator`, through the iterator of its `loader` if it has one.

    Attributes:
        undelivered: the batches that are drawn and not handed over, of a loader with workers; it
            outlives the loader.
    """

    def __init__(self, iterator: Iterator[int], loader: Any) -> None:
        self._iterator = weakref.ref(iterator)
        self._loader = None if loader is None else weakref.ref(loader)
        self.undelivered: Any = ()

    @property
    def loader(self) -> Any:
        """The loader's iterator, as long as somebody has it."""
        return None if self._loader is None else self._loader()

    def look(self) -> None:
        """Called as the first id is drawn, when the loader has made its own book of the epoch."""
        self.undelivered = getattr(self.loader, _UNDELIVERED, ())

    @property
    def held(self) -> bool:
        """Whether somebody has the iterator: a loop goes on, or trains its last batches."""
        loader = self.loader
        if loader is None:
            return self._iterator() is not None
        return not getattr(loader, _FINISHED, False)

    def finished(self, stopped: bool) -> bool:
        """Whether the loop of an epoch that is over has surely ended; `stopped`: the sampler's
        iterator was asked for more than it had, as batch samplers ask for a short last batch."""
        loader, gone = self.loader, self._iterator() is None
        if loader is None:
            return stopped or gone
        if hasattr(loader, _FINISHED):
            return bool(getattr(loader, _FINISHED))
        if getattr(loader, _WORKERS, 0):
            return bool(getattr(loader, _SHUT, False))
        return gone


def dataset_of(loader: Any) -> Any:
    """The data set of a loader's iterator; None where there is no telling."""
    return getattr(loader, _DATASET, None)


def prefetches(hold: Hold) -> bool:
    """Whether worker processes hold ids that were drawn and not handed over to a loop that goes on,
    so that a count of what is drawn is not one of what is trained."""
    return bool(hold.held and hold.undelivered and getattr(hold.loader, _WORKERS, 0))


def asked_by_loader() -> bool:
    """Whether the caller's caller's caller is torchdata's loader."""
    return str(sys._getframe(3).f_globals.get("__name__")).startswith("torchdata.")
