"""Progress of the rank command: a bar on a terminal, otherwise a line every 30 seconds."""

import importlib.util
import sys
import time
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any

SECONDS_A_LINE = 30


class Progress:
    """A context manager; `follow` shows the progress of a loop."""

    def __init__(self) -> None:
        self.bar: Any = None
        if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
            return
        from rich.console import Console

        from ...terminal.progress_bars import progress_bars

        self.bar = progress_bars(Console(stderr=True), transient=True)

    def __enter__(self) -> "Progress":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def follow(
        self, name: str, spans: Iterable[tuple[int, int]], rows: int, begin: int = 0
    ) -> Iterator[tuple[int, int]]:
        """Yield the spans; there are `rows` rows in total, of which the first `begin` were done
        before."""
        task = None
        if self.bar is not None:
            task = self.bar.add_task(name, total=rows, completed=begin)
        start = said = time.monotonic()
        for span in spans:
            yield span
            done = span[1]
            if self.bar is not None:
                self.bar.update(task, completed=done)
            elif time.monotonic() - said > SECONDS_A_LINE:
                said = time.monotonic()
                left = (said - start) * (rows - done) / max(1, done - begin)
                print(f"{name}: {100 * done // rows} %, {_clock(left)} left", file=sys.stderr)
        if self.bar is not None:
            self.bar.remove_task(task)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
