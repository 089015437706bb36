"""Progress bars of all commands: the share done and the time left."""

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

WITH_BAR, WIDE = 80, 100  # terminal widths


def progress_bars(
    console: Console, *, transient: bool = False, seconds_averaged: float = 30.0
) -> Progress:
    """Progress bars on `console`. A terminal with fewer than 80 columns shows only the numbers, one
    with at least 100 also counts and the elapsed time.

    Args:
        transient: whether the bars disappear at the end.
        seconds_averaged: period over which the speed is averaged to estimate the time left.
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
