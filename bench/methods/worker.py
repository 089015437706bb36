"""A process that does one run after the other."""

from pathlib import Path
from typing import Any

import torch

from bench.methods.plan import STUDIES, Trial
from bench.methods.trial import measured

STEPS_AT_ONCE = 10  # the shared counter is advanced by so many


class _Counter:
    """Counts steps into a value that processes share."""

    def __init__(self, shared: Any) -> None:
        self.shared, self.pending = shared, 0

    def advance(self) -> None:
        self.pending += 1
        if self.pending == STEPS_AT_ONCE:
            with self.shared.get_lock():
                self.shared.value += self.pending
            self.pending = 0


def begin(steps: Any) -> None:
    """Once a process: count steps into the shared value `steps`."""
    global _counter
    _counter = _Counter(steps)


def measure(trial: Trial, directory: Path | None) -> dict[str, Any]:
    """The row of `trial`, which runs on its study's threads."""
    threads = STUDIES[trial.data].threads
    torch.set_num_threads(threads)
    return measured(trial, directory, _counter.advance) | {"threads": threads}
