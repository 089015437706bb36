"""A worker process that performs runs."""

import signal
from pathlib import Path
from typing import Any

import torch

from bench.methods.plan import STUDIES, Trial
from bench.methods.trial import measured

STEPS_AT_ONCE = 10  # increment of the shared counter


class Stopped(Exception):
    """The run's process was told to stop."""


class _Counter:
    """Counts steps in a shared value, and ends the run if `stop` is set."""

    def __init__(self, shared: Any, stop: Any) -> None:
        self.shared, self.stop, self.pending = shared, stop, 0

    def advance(self) -> None:
        if self.stop.is_set():
            raise Stopped
        self.pending += 1
        if self.pending == STEPS_AT_ONCE:
            with self.shared.get_lock():
                self.shared.value += self.pending
            self.pending = 0


def begin(steps: Any, stop: Any) -> None:
    """Once a process: count steps into the shared value `steps`, until the event `stop`. Ctrl-C,
    which a terminal sends to every process, is handled by the main process."""
    global _counter
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _counter = _Counter(steps, stop)


def measure(trial: Trial, directory: Path | None) -> dict[str, Any]:
    """The row of `trial`, which runs on its study's threads."""
    threads = STUDIES[trial.data].threads
    torch.set_num_threads(threads)
    return measured(trial, directory, _counter.advance) | {"threads": threads}
