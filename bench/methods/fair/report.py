"""Tables of the fair comparison, from its rows alone."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from bench.methods.fair import plan
from bench.methods.fair.student import Difference, holm, paired
from bench.tables import markdown

Row = dict[str, Any]
ENDPOINTS = ("accuracy", "macro_f1")
CLEAR = 0.05
NOTHING = "–"


class Compared(NamedTuple):
    """A method minus full data, on the test split; `clear`: by the corrected p."""

    data: str
    method: str
    epochs: float
    endpoint: str
    difference: Difference
    p: float

    @property
    def clear(self) -> bool:
        return self.p < CLEAR

    def __str__(self) -> str:
        return f"**{self.difference}**" if self.clear else str(self.difference)


def family() -> int:
    """How many comparisons were named in advance."""
    others = [method for method in plan.METHODS if method != plan.FULL]
    lengths = sum(plan.applies(method, epochs) for method in others for epochs in plan.LENGTHS)
    return len(plan.DATA) * len(ENDPOINTS) * lengths


def in_equal_steps(rows: Sequence[Row]) -> list[Compared]:
    """All comparisons of the family that have rows."""
    names = [method.name for method in plan.METHODS if method != plan.FULL]
    pairs = [(name, epochs, epochs) for name in names for epochs in plan.LENGTHS]
    return _compared(rows, pairs, family())


def in_equal_time(rows: Sequence[Row]) -> list[Compared]:
    """The comparisons of EQUAL_TIME, in which full data is trained for more steps."""
    pairs = [
        (method.name, epochs, round(times * epochs, 6))
        for method, times in plan.EQUAL_TIME.items()
        for epochs in plan.LENGTHS
    ]
    return _compared(rows, pairs, len(plan.DATA) * len(ENDPOINTS) * len(pairs))


def _compared(
    rows: Sequence[Row], pairs: Iterable[tuple[str, float, float]], number: int
) -> list[Compared]:
    """For each (method, its epochs, full data's), over the common seeds, at least two."""
    found = []
    for data in plan.DATA:
        for name, epochs, of_full in pairs:
            ours, full = tested(rows, data, name, epochs), tested(rows, data, "full", of_full)
            seeds = sorted(set(ours) & set(full))
            if len(seeds) > 1:
                for end in ENDPOINTS:
                    difference = paired([ours[s][end] - full[s][end] for s in seeds])
                    found.append(Compared(data, name, epochs, end, difference, difference.p))
    corrected = holm([one.p for one in found], number)
    return [one._replace(p=p) for one, p in zip(found, corrected, strict=True)]


def tested(rows: Iterable[Row], data: str, method: str, epochs: float) -> dict[int, Row]:
    """A method's rows on the test split, by seed."""
    place = (data, method, epochs, "test")
    found: dict[int, Row] = {}
    for row in rows:
        if (row["data"], row["method"], row["epochs"], row["split"]) == place:
            if row["seed"] in found:
                raise ValueError(f"tested: a seed must stand once at {place}, got two")
            found[row["seed"]] = row
    return found


def table(rows: Sequence[Row], folder: str = "") -> str:
    """A line for each data set, length and method; bold where the corrected p is below 0.05."""
    heads = ["data", "steps, epochs", "method", "seeds", "accuracy, %", "macro-F1, %"]
    heads += ["accuracy − full", "macro-F1 − full", "in equal time"]
    steps = {one[:4]: one for one in in_equal_steps(rows)}
    times = {one[:4]: one for one in in_equal_time(rows)}
    lines = []
    for data in plan.DATA:
        for epochs in plan.LENGTHS:
            for method in plan.METHODS:
                ours = tested(rows, data, method.name, epochs)
                if len(ours) < 2:
                    continue
                keys = [(data, method.name, epochs, end) for end in ENDPOINTS]
                lengths = [times[key] for key in keys if key in times]
                lines.append(
                    [
                        *(data, f"{epochs:g}", method.name, str(len(ours))),
                        *(_mean(ours.values(), end) for end in ENDPOINTS),
                        *(str(steps[key]) if key in steps else NOTHING for key in keys),
                        "; ".join(map(str, lengths)) or NOTHING,
                    ]
                )
    return f"{markdown(heads, lines)}\n\n{origin(rows)}"


def short(rows: Sequence[Row], folder: str = "") -> str:
    """For each data set and length the candidates by EMP minus full data."""
    shown = [method.name for method in plan.METHODS[1:3]]
    heads = ["data", "steps, epochs", "full data, accuracy / macro-F1"]
    heads += [f"{name} − full" for name in shown]
    found = {one[:4]: one for one in in_equal_steps(rows)}
    lines = []
    for data in plan.DATA:
        for epochs in plan.LENGTHS:
            full = tested(rows, data, "full", epochs).values()
            if not full:
                continue
            line = [data, f"{epochs:g}", " / ".join(_mean(full, end) for end in ENDPOINTS)]
            for name in shown:
                ends = [found.get((data, name, epochs, end)) for end in ENDPOINTS]
                line.append(" / ".join(NOTHING if one is None else str(one) for one in ends))
            lines.append(line)
    return markdown(heads, lines)


def origin(rows: Sequence[Row]) -> str:
    """Where the rows come from, and how rates were tuned."""
    first = rows[0]
    rates = ", ".join(f"{rate:g}" for rate in plan.RATES)
    known = ", ".join(f"{name} {value}" for name, value in first["versions"].items() if value)
    commits = ", ".join(dict.fromkeys(row["commit"][:12] for row in rows))
    return (
        f"Mean difference of the same seeds ± half of its 95 % t interval; bold: p < {CLEAR:g} by "
        f"Holm's correction for all {family()} comparisons in equal steps, or the "
        f"{len(plan.EQUAL_TIME) * len(plan.LENGTHS) * len(plan.DATA) * len(ENDPOINTS)} in equal "
        f"time. Batches of {first['batch_size']}, rates of {rates} tuned for each method and "
        f"length on the validation split. {first['machine']['cpu']}, one thread; "
        f"{known}; commit {commits}."
    )


def _mean(rows: Iterable[Row], endpoint: str) -> str:
    return f"{statistics.fmean(row[endpoint] for row in rows):.1f}"


def wins(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """(data, method) that is clearly ahead of full data somewhere, and clearly behind nowhere."""
    found = in_equal_steps(rows)
    for data in plan.DATA:
        for method in plan.METHODS:
            own = [one for one in found if (one.data, one.method) == (data, method.name)]
            ahead = any(one.clear and one.difference.mean > 0 for one in own)
            behind = any(one.difference.mean + one.difference.half < 0 for one in own)
            if ahead and not behind:
                yield data, method.name
