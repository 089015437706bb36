"""Tables of mean and standard deviation over seeds, from the demo's rows."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]


class Cell(NamedTuple):
    """One method at one keep, over its seeds: `std` is the sample standard deviation, None for one
    seed."""

    mean: float
    std: float | None

    def __str__(self) -> str:
        return f"{self.mean:.1f}" + ("" if self.std is None else f" ± {self.std:.1f}")


def cell(values: Sequence[float]) -> Cell:
    """Mean and sample standard deviation (ddof 1) of at least one value."""
    return Cell(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None)


def title(method: str, beta: float | None) -> str:
    """The name of a method in tables."""
    if beta is None:
        return method
    return "loss only (LFL)" if method == "LFL" else f"{method} (β = {beta:g})"


def table(
    rows: Sequence[Row], titles: Mapping[str, str] | None = None
) -> tuple[list[str], list[list[str]]]:
    """Headings and lines: one line per keep, with the test accuracy in percent of each method.

    The steps are equal for every method at a keep; the last column is the mean wall time of the
    last method's runs. `titles` are the column headings by method, by default those of the rows.
    """
    titles = titles or {row["method"]: title(row["method"], row["beta"]) for row in rows}
    timed = list(titles)[-1]
    headings = ["keep", "steps", *titles.values(), f"s a run, {timed}"]
    lines = []
    for keep in dict.fromkeys(row["keep"] for row in rows):
        runs = {name: _at(rows, keep, name) for name in titles}
        accuracies = [
            str(cell([row["accuracy"] for row in runs[name]])) if runs[name] else "-"
            for name in titles
        ]
        seconds = [row["seconds"] for row in runs[timed]]
        steps = next(row["steps"] for found in runs.values() for row in found)
        lines.append(
            [
                f"{keep:g}",
                f"{steps:,}",
                *accuracies,
                f"{statistics.fmean(seconds):.1f}" if seconds else "-",
            ]
        )
    return headings, lines


def narrow(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """The table as one line per cell, below a heading for each keep."""
    width = max(map(len, headings))
    blocks = []
    for keep, steps, *cells in lines:
        blocks.append(f"keep {keep}, {steps} steps")
        for heading, text in zip(headings[2:], cells, strict=True):
            blocks.append(f"  {heading:<{width}}  {text}")
    return "\n".join(blocks)


def run(row: Row, number: int, runs: int) -> str:
    """One run as a line."""
    return (
        f"{number}/{runs} {row['method']}, keep {row['keep']:g}, seed {row['seed']}: "
        f"{row['accuracy']:.1f} %"
    )


def _at(rows: Sequence[Row], keep: float, method: str) -> list[Row]:
    return [row for row in rows if row["keep"] == keep and row["method"] == method]


def markdown(rows: Sequence[Row]) -> str:
    """The table, and a line with the origin of its numbers."""
    headings, lines = table(rows)
    marks = ["---:"] * len(headings)
    body = "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, marks, *lines))
    return f"{body}\n\n{origin(rows)}"


def origin(rows: Sequence[Row]) -> str:
    """Machine, versions, commit and seeds of the rows, which must agree on everything but the
    seed."""
    first = rows[0]
    for name in ("data", "machine", "versions", "commit", "epochs", "threads"):
        if any(row[name] != first[name] for row in rows):
            raise ValueError(f"origin: rows must come from one {name}, got several")
    known = ", ".join(f"{name} {value}" for name, value in first["versions"].items() if value)
    commit, _, dirty = (first["commit"] or "unknown").partition("-")
    seeds = ", ".join(str(seed) for seed in sorted({row["seed"] for row in rows}))
    machine = first["machine"]
    devices = "".join(f", {gpu}" for gpu in machine["gpus"])
    return (
        f"{first['data']}, {first['epochs']} epochs, seed{'s' if ',' in seeds else ''} {seeds}; "
        f"{machine['cpu']}, {machine['cpus']} cores{devices}, "
        f"{first['threads']} thread{'s' if first['threads'] > 1 else ''}; {known}; "
        f"commit {commit[:12]}{' with uncommitted changes' if dirty else ''}."
    )
