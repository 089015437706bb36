"""Finds the loader's iterator that holds a sampler's iterator, which torch does not tell the
sampler.

A loop holds the iterator of its DataLoader, not the sampler's, and worker processes request ids
long before their batches are trained. Private names of torch and torchdata, all collected here,
show which loader draws and which batches it has not delivered yet. Without them (another library's
loader, or none) the sampler's own iterator is used instead.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator
from typing import Any

_ASKS = "_next_index"  # the method in which a loader's iterator draws ids
_BEGIN = frozenset({_ASKS, "_reset", "__init__"})  # the methods in which it may draw the first one
_UNDELIVERED = "_task_info"  # a dictionary of the batches that workers are making
_DATASET = "_dataset"
_WORKERS, _SHUT = "_num_workers", "_shutdown"
_FINISHED = "_finished"  # of torchdata, whose loader keeps exhausted iterators
_DEPTH = 24  # frames to search between a sampler and its loader (batch samplers, wrappers)


def asking() -> Any:
    """The iterator of the loader that is drawing ids from the caller's caller, or None."""
    frame = sys._getframe(2)
    for _ in range(_DEPTH):
        # Only of this frame: reading f_locals keeps a frame's variables alive.
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
        undelivered: the batches drawn and not delivered, of a loader with workers; it outlives the
            loader.
    """

    def __init__(self, iterator: Iterator[int], loader: Any) -> None:
        self._iterator = weakref.ref(iterator)
        self._loader = None if loader is None else weakref.ref(loader)
        self.undelivered: Any = ()

    @property
    def loader(self) -> Any:
        """The loader's iterator, or None if it is gone."""
        return None if self._loader is None else self._loader()

    def look(self) -> None:
        """Called when the first id is drawn: by then the loader has created its bookkeeping of the
        epoch."""
        self.undelivered = getattr(self.loader, _UNDELIVERED, ())

    @property
    def held(self) -> bool:
        """Whether the iterator is alive: its loop still runs, or trains its last batches."""
        loader = self.loader
        if loader is None:
            return self._iterator() is not None
        return not getattr(loader, _FINISHED, False)

    def finished(self, stopped: bool) -> bool:
        """Whether the loop of an epoch that is over has certainly ended; `stopped`: the sampler's
        iterator was exhausted, as batch samplers do for a short last batch."""
        loader, gone = self.loader, self._iterator() is None
        if loader is None:
            return stopped or gone
        if hasattr(loader, _FINISHED):
            return bool(getattr(loader, _FINISHED))
        if getattr(loader, _WORKERS, 0):
            return bool(getattr(loader, _SHUT, False))
        return gone


def dataset_of(loader: Any) -> Any:
    """The data set of a loader's iterator, or None if unknown."""
    return getattr(loader, _DATASET, None)


def prefetches(hold: Hold) -> bool:
    """Whether worker processes of a running loop hold ids that were drawn but not delivered, so
    that the number of ids drawn exceeds that of ids trained."""
    return bool(hold.held and hold.undelivered and getattr(hold.loader, _WORKERS, 0))


def asked_by_loader() -> bool:
    """Whether the caller's caller's caller is torchdata's loader."""
    return str(sys._getframe(3).f_globals.get("__name__")).startswith("torchdata.")
