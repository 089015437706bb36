"""Tables of the fair comparison, from its rows alone."""

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from bench.methods.fair import plan
from bench.methods.fair.methods import Candidates
from bench.methods.fair.plan import Family
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


def in_equal_steps(rows: Sequence[Row], family: Family) -> list[Compared]:
    """All comparisons of the family that have rows."""
    pairs = [(data, method.name, n, n) for data, method, n in family.compared()]
    return _compared(rows, pairs)


def in_equal_time(rows: Sequence[Row], family: Family) -> list[Compared]:
    """Those of its `equal_time`: full data is trained for more steps."""
    pairs = [
        (data, method.name, epochs, round(times * epochs, 6))
        for data in family.methods
        for method, times in family.equal_time.items()
        for epochs in family.lengths(data, plan.FULL)
    ]
    return _compared(rows, pairs)


def _compared(
    rows: Sequence[Row], pairs: Sequence[tuple[str, str, float, float]]
) -> list[Compared]:
    """Of each (data, method, its epochs, full data's), with the seeds that both have, at least two;
    corrected for all of them, with rows or without."""
    found = []
    for data, name, epochs, of_full in pairs:
        ours, full = tested(rows, data, name, epochs), tested(rows, data, "full", of_full)
        seeds = sorted(set(ours) & set(full))
        if len(seeds) > 1:
            for end in ENDPOINTS:
                difference = paired([ours[s][end] - full[s][end] for s in seeds])
                found.append(Compared(data, name, epochs, end, difference, difference.p))
    corrected = holm([one.p for one in found], len(pairs) * len(ENDPOINTS))
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


def table(rows: Sequence[Row], folder: str = "", *, family: Family = plan.TEXTS) -> str:
    """A line for each data set, length and method; bold where the corrected p is below 0.05."""
    rows = _of_family(rows, family)
    heads = ["data", "steps, epochs", "method", "seeds", "accuracy, %", "macro-F1, %"]
    heads += ["accuracy − full", "macro-F1 − full"]
    heads += ["in equal time"] if family.equal_time else []
    steps = {one[:4]: one for one in in_equal_steps(rows, family)}
    times = {one[:4]: one for one in in_equal_time(rows, family)}
    lines = []
    for data, methods in family.methods.items():
        for epochs in family.lengths(data, plan.FULL):
            for method in (plan.FULL, *methods):
                ours = tested(rows, data, method.name, epochs)
                if len(ours) < 2:
                    continue
                keys = [(data, method.name, epochs, end) for end in ENDPOINTS]
                line = [data, f"{epochs:g}", method.name, str(len(ours))]
                line += [mean(ours.values(), end) for end in ENDPOINTS]
                line += [str(steps[key]) if key in steps else NOTHING for key in keys]
                if family.equal_time:
                    lengths = [times[key] for key in keys if key in times]
                    line.append("; ".join(map(str, lengths)) or NOTHING)
                lines.append(line)
    if not steps:
        return "Not measured."
    return f"{markdown(heads, lines)}\n\n{origin(rows, family)}"


def short(rows: Sequence[Row], folder: str = "") -> str:
    """Of each data set and length what the hardest of two candidates add to full data, and what two
    drawn by importance; bold as in the family that named the comparison."""
    shown = (Candidates(2), Candidates(2, choose="importance"))
    heads = ["data", "steps, epochs", "full data, accuracy / macro-F1, %"]
    heads += ["the hardest of 2x − full", "by importance of 2x − full", "seeds"]
    found: dict[tuple[Any, ...], Compared] = {}
    for family in plan.FAMILIES:
        for one in in_equal_steps(rows, family):
            found.setdefault(one[:4], one)
    lines = []
    for data, recipe in plan.RECIPES.items():
        for epochs in recipe.lengths:
            names = [(data, method.name, epochs) for method in shown]
            if (*names[0], ENDPOINTS[0]) not in found or data not in plan.UNBIASED.methods:
                continue
            full = tested(rows, data, plan.FULL.name, epochs).values()
            line = [data, f"{epochs:g}", " / ".join(mean(full, end) for end in ENDPOINTS)]
            for name in names:
                ends = [found.get((*name, end)) for end in ENDPOINTS]
                line.append("; ".join(NOTHING if one is None else str(one) for one in ends))
            firsts = [found[key] for name in names if (key := (*name, ENDPOINTS[0])) in found]
            seeds = dict.fromkeys(str(one.difference.pairs) for one in firsts)
            lines.append([*line, ", ".join(seeds)])
    return markdown(heads, lines)


def _of_family(rows: Iterable[Row], family: Family) -> list[Row]:
    """Its methods' rows and full data's, of the lengths that its methods have."""
    found = []
    for row in rows:
        methods = family.methods.get(row["data"], ())
        known = {method.name: family.lengths(row["data"], method) for method in methods}
        full = family.lengths(row["data"], plan.FULL) if methods else []
        longer = [round(times * n, 6) for times in family.equal_time.values() for n in full]
        known[plan.FULL.name] = full + longer
        if row["epochs"] in known.get(row["method"], ()):
            found.append(row)
    return found


def origin(rows: Sequence[Row], family: Family) -> str:
    """Where the rows come from, and how rates were tuned."""
    first = rows[0]
    sets = dict.fromkeys(row["data"] for row in rows)
    known = ", ".join(f"{name} {value}" for name, value in first["versions"].items() if value)
    commits = ", ".join(dict.fromkeys(row["commit"][:12] for row in rows))
    number = len(ENDPOINTS) * sum(1 for _ in family.compared())
    lengths = sum(len(family.lengths(data, plan.FULL)) for data in family.methods)
    timed = len(ENDPOINTS) * len(family.equal_time) * lengths
    also = f", or the {timed} in equal time" if timed else ""
    return (
        f"Mean difference of the same seeds ± half of its 95 % t interval; bold: p < {CLEAR:g} by "
        f"Holm's correction for all {number} comparisons in equal steps{also}. {_recipes(sets)}, "
        f"tuned for each method and length on the validation split. {first['machine']['cpu']}, one "
        f"thread; {known}; commit {commits}."
    )


def _recipes(sets: Iterable[str]) -> str:
    """Batches and rates of the data sets, those that share them in one."""
    found: dict[str, list[str]] = {}
    for data in sets:
        recipe = plan.RECIPES[data]
        rates = ", ".join(f"{rate:g}" for rate in recipe.rates)
        found.setdefault(f"batches of {recipe.batch_size}, rates of {rates}", []).append(data)
    if len(found) == 1:
        return next(iter(found)).capitalize()
    return "; ".join(f"{', '.join(names)}: {said}" for said, names in found.items())


def mean(rows: Iterable[Row], endpoint: str) -> str:
    return f"{statistics.fmean(row[endpoint] for row in rows):.1f}"


def wins(rows: Sequence[Row], family: Family) -> Iterator[tuple[str, str]]:
    """(data, method) that is clearly ahead of full data somewhere, and clearly behind nowhere."""
    found = in_equal_steps(rows, family)
    for data, methods in family.methods.items():
        for method in methods:
            own = [one for one in found if (one.data, one.method) == (data, method.name)]
            ahead = any(one.clear and one.difference.mean > 0 for one in own)
            behind = any(one.difference.mean + one.difference.half < 0 for one in own)
            if ahead and not behind:
                yield data, method.name
