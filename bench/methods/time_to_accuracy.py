"""Time to full data's accuracy, and the cost of selection, from rows of timed runs."""

import statistics
from collections.abc import Mapping, Sequence

from bench.methods.cells import Method, Row, cells, difference, in_cell, methods, of_method
from bench.methods.report import NOTHING, average, or_nothing, origin
from bench.tables import markdown
from emp_kernels.experiments.summary import cell


def table(rows: Sequence[Row], folder: str = "") -> str:
    """Seconds of training until the full-data accuracy minus one point, from timed runs, and how
    the time is spent."""
    aims = targets(rows)
    if not aims:
        return "Not measured."
    headings = [
        *("method", "keep", "steps", "accuracy, %", "− full, equal steps"),
        *("s to the target", "s a run", "choosing, s", "losses, s", "of it scoring, %"),
    ]
    lines = []
    for keep, noise, protocol in cells(rows):
        found = in_cell(rows, keep, noise, protocol)
        for method in methods(found):
            runs = of_method(found, method)
            own = list(runs.values())
            lines.append(
                [
                    *(str(method), f"{keep:g}", f"{own[0]['steps']:,}"),
                    str(cell([row["accuracy"] for row in own])),
                    or_nothing(difference(found, method, "full")),
                    _time_to(aims, runs),
                    *(
                        f"{statistics.fmean(row[name] for row in own):.1f}"
                        for name in ("seconds", "choosing_seconds", "loss_seconds")
                    ),
                    average(_overheads(found, runs)),
                ]
            )
    place = f"{folder}/" if folder else ""
    picture = f"![Accuracy against seconds]({place}methods-{rows[0]['data']}-alone.png)"
    parts = [markdown(headings, lines), _about_targets(aims, rows), picture, origin(rows)]
    return "\n\n".join(parts)


def targets(rows: Sequence[Row]) -> dict[int, float]:
    """By seed, the accuracy of everything in every epoch minus one point; empty if runs were not
    timed."""
    if not all(row["alone"] for row in rows):
        return {}
    full = of_method(in_cell(rows, 1.0, 0.0), Method("full", None))
    return {seed: row["accuracy"] - 1 for seed, row in full.items()}


def _time_to(targets: Mapping[int, float], runs: Mapping[int, Row]) -> str:
    """Mean seconds to the seed's target if all runs reach it, else the number of runs that do."""
    seeds = sorted(set(targets) & set(runs))
    times = [_reached(runs[seed]["curve"], targets[seed]) for seed in seeds]
    known = [seconds for seconds in times if seconds is not None]
    if not seeds or not known:
        return "not reached" if seeds else NOTHING
    some = "" if len(known) == len(seeds) else f" ({len(known)} of {len(seeds)} runs)"
    return f"{statistics.fmean(known):.1f}{some}"


def _reached(curve: Sequence[Sequence[float]], target: float) -> float | None:
    return next((seconds for _, seconds, accuracy in curve if accuracy >= target), None)


def _overheads(found: Sequence[Row], runs: Mapping[int, Row]) -> list[float | None]:
    """Percentage of each run spent on selection and scoring beyond full data's order and losses, in
    as many steps with the same seed."""
    full = of_method(found, Method("full", None))
    names = ("choosing_seconds", "loss_seconds")
    return [
        100 * sum(row[name] - full[seed][name] for name in names) / row["seconds"]
        if seed in full
        else None
        for seed, row in runs.items()
    ]


def _about_targets(targets: Mapping[int, float], rows: Sequence[Row]) -> str:
    listed = ", ".join(f"{target:.1f} % (seed {seed})" for seed, target in targets.items())
    looks = len(rows[0]["curve"])
    return (
        f"Targets, everything in every epoch less one point: {listed}. A run's learning rate rises "
        "and falls over its own steps, so that it reaches its accuracy near its end, and its "
        "budget is its time: *full* at a keep below 1 is full data with the steps of the pruned "
        f"runs. The accuracy is looked at {looks} times a run, evenly spread, and a time to the "
        "target is that of the first look above it. *Of it scoring* is what choosing and scoring "
        "take beyond that full data's order and losses, in percent of the run."
    )
