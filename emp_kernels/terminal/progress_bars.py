"""The progress bars of every command: the share done and the time left."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

WITH_BAR, WIDE = 80, 100  # columns of the terminal


def progress_bars(
    console: Console, *, transient: bool = False, seconds_averaged: float = 30.0
) -> Progress:
    """Bars on `console`; a terminal of fewer than 80 columns gets no bar but the numbers, one of
    100 also counts and the time so far.

    Args:
        transient: whether the bars disappear at the end.
        seconds_averaged: how far back the speed is measured for the time left.
    """
    wide = console.width >= WIDE
    columns: list[ProgressColumn] = [
        TextColumn("{task.description:<28}" if wide else "{task.description}")
    ]
    if console.width >= WITH_BAR:
        columns.append(BarColumn(bar_width=30))
    columns.append(TaskProgressColumn())
    if wide:
        columns += [MofNCompleteColumn(), TimeElapsedColumn()]
    columns.append(TimeRemainingColumn())
    return Progress(
        *columns, console=console, transient=transient, speed_estimate_period=seconds_averaged
    )
