"""Evaluation of rows: a method's runs in a cell, paired differences, shares of the training.

A cell is a data set, protocol, keep and noise; a method's runs in it differ by the seed. Methods
without a protocol (full data, InfoBatch) belong to the stale cells.
"""

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from bench.methods.choosing import PER_BATCH, STALE
from bench.methods.plan import BY_EPOCH
from bench.methods.trial import RARE

Row = dict[str, Any]
CLEAR = 2.0  # standard errors from which a difference is clear
FEWEST = 3  # minimum number of seeds for a clear difference
BASELINES = ("LFL", "random")


class Method(NamedTuple):
    """A method as named in rows."""

    name: str
    beta: float | None

    def __str__(self) -> str:
        if self.name == "LFL":
            return "loss only (LFL)"
        if self.name == "LFL Gumbel":
            return "loss, Gumbel"
        shown = self.beta is not None and self.name.startswith("EMP")
        return f"{self.name}, β = {self.beta:g}" if shown else self.name


PLANNED = [Method(method.name, method.beta) for method in BY_EPOCH]


class Difference(NamedTuple):
    """Mean over seeds of paired differences in points, and its standard error (None: one seed)."""

    mean: float
    error: float | None
    seeds: int

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.1f}"
        return f"{self.mean:+.1f}{error}"

    @property
    def clear(self) -> bool:
        """Above zero by more than two standard errors."""
        return (
            self.error is not None
            and self.seeds >= FEWEST
            and self.mean > CLEAR * self.error
            and self.mean > 0
        )


def methods(rows: Iterable[Row]) -> list[Method]:
    """Each that has a row, in the order of the plan."""
    found = {Method(row["method"], row["beta"]) for row in rows}
    return [method for method in PLANNED if method in found]


def in_cell(rows: Iterable[Row], keep: float, noise: float, protocol: str = STALE) -> list[Row]:
    return [
        row
        for row in rows
        if (row["keep"], row["noise"]) == (keep, noise)
        and row["protocol"] in ((protocol,) if protocol == PER_BATCH else (None, protocol))
    ]


def of_method(rows: Iterable[Row], method: Method) -> dict[int, Row]:
    """A cell's rows of one method, by seed."""
    found = {}
    for row in rows:
        if (row["method"], row["beta"]) == method:
            if row["seed"] in found:
                raise ValueError(f"of_method: a seed must stand once a cell, got two of {method}")
            found[row["seed"]] = row
    return found


def difference(rows: Sequence[Row], method: Method, baseline: str) -> Difference | None:
    """`method` minus the baseline within a cell's `rows`, over the seeds that both have."""
    base = Method(baseline, {"LFL": 0.0, "random": None, "full": None}[baseline])
    ours, theirs = of_method(rows, method), of_method(rows, base)
    seeds = sorted(set(ours) & set(theirs))
    if method == base or not seeds:
        return None
    found = [ours[seed]["accuracy"] - theirs[seed]["accuracy"] for seed in seeds]
    error = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else None
    return Difference(statistics.fmean(found), error, len(found))


Gains = tuple[Difference, ...]  # over each baseline


def gains(rows: Sequence[Row]) -> Iterator[tuple[Method, tuple[float, float, str], Gains]]:
    """For each cell of a data set, each method with at least three seeds in common with both
    baselines, and its gains over them."""
    for place in cells(rows):
        found = in_cell(rows, *place)
        for method in methods(found):
            over = tuple(difference(found, method, name) for name in BASELINES)
            if None not in over and min(gain.seeds for gain in over) >= FEWEST:
                yield method, place, over


def fitted(row: Row) -> float:
    """Percentage of the training samples that the final network classifies correctly."""
    return RARE * row["rare_accuracy"] + (1 - RARE) * row["other_accuracy"]


def at_most(counts: Sequence[int], times: int) -> float:
    """Share of the samples that were trained at most `times` times, by `counts` of a row."""
    return sum(counts[: times + 1]) / sum(counts)


def most_trained(counts: Sequence[int], share: float) -> float:
    """Share of all training spent on the most trained `share` of the samples."""
    left, taken = round(share * sum(counts)), 0
    for times in reversed(range(len(counts))):
        some = min(left, counts[times])
        taken, left = taken + some * times, left - some
    return taken / sum(times * count for times, count in enumerate(counts))


def cells(rows: Iterable[Row]) -> list[tuple[float, float, str]]:
    found = {(row["keep"], row["noise"], row["protocol"] or STALE) for row in rows}
    return sorted(found, key=lambda c: (c[2] != STALE, c[1], -c[0]))
