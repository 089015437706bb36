"""Inputs of a case, and the floating-point modes that it runs under."""

from __future__ import annotations

import sys
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

FLUSHED = " under flush_denormal"  # what such cases count ends so, too


class Case:
    """Case `number` of `kind` under `seed`: its random numbers, and what it counts."""

    def __init__(self, seed: int, kind: str, number: int) -> None:
        self.random = np.random.default_rng([seed, zlib.crc32(kind.encode()), number])
        self.number = number
        self.counts: Counter[str] = Counter()
        # One case in four runs in a thread that flushes denormal numbers to zero.
        self.flushed = number % 4 == 3

    def count(self, what: str, many: int = 1) -> None:
        self.counts[what] += many
        if self.flushed:
            self.counts[what + FLUSHED] += many

    def one_of(self, choices):
        return choices[int(self.random.integers(len(choices)))]

    def below(self, end: int) -> int:
        return int(self.random.integers(end))

    @contextmanager
    def mode(self) -> Iterator[None]:
        """The case's mode, only for the calls under test: the expected results need denormals."""
        if not self.flushed:
            yield
            return
        torch.set_flush_denormal(True)
        try:
            yield
        finally:
            torch.set_flush_denormal(False)


@contextmanager
def meanwhile(work: Callable[[], object]) -> Iterator[None]:
    """Calls `work` repeatedly in another thread while the body runs; its error is raised in the
    body."""
    stop = threading.Event()
    started = threading.Event()
    errors: list[BaseException] = []

    def repeat() -> None:
        try:
            while not stop.is_set():
                work()
                started.set()
        except BaseException as error:
            errors.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=repeat)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that small calls overlap, too
    thread.start()
    try:
        started.wait()
        yield
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    if errors:
        raise errors[0]
