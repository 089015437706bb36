"""Tables of the comparison, from its rows alone."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from bench.methods.cells import (
    BASELINES,
    Difference,
    Method,
    Row,
    at_most,
    cells,
    difference,
    fitted,
    gains,
    in_cell,
    methods,
    most_trained,
    of_method,
)
from bench.methods.choosing import PER_BATCH, STALE
from bench.tables import markdown
from emp_kernels.experiments.summary import cell

HEAD_KEEP = 0.3  # of the tables that show one keep
NOTHING = "–"


def accuracy(rows: Sequence[Row], folder: str = "") -> str:
    """Test accuracy of every method, a column a setting, and the difference to LFL at one keep."""
    settings = [
        (protocol, noise, keep)
        for protocol in (STALE, PER_BATCH)
        for noise in (0.0, 0.1)
        for keep in (0.5, 0.3, 0.1)
        if in_cell(rows, keep, noise, protocol)
        and (protocol == STALE or keep == HEAD_KEEP)
        and (noise == 0.0 or keep == HEAD_KEEP)
    ]
    headings = ["method", f"− LFL, keep {HEAD_KEEP:g}"]
    for protocol, noise, keep in settings:
        parts = [f"keep {keep:g}"]
        parts += [f"{100 * noise:g} % wrong labels"] if noise else []
        parts += [protocol] if protocol != STALE else []
        headings.append(", ".join(parts))
    head = in_cell(rows, HEAD_KEEP, 0.0)
    most = max(len(of_method(head, method)) for method in methods(head))
    lines = []
    for method in methods(row for row in rows if row["keep"] < 1.0):
        values = [of_method(in_cell(rows, k, n, p), method) for p, n, k in settings]
        lines.append(
            [
                str(method),
                or_nothing(difference(head, method, "LFL")),
                *(_mean(found.values(), most) for found in values),
            ]
        )
    everything = of_method(in_cell(rows, 1.0, 0.0), Method("full", None))
    parts = [markdown(headings, lines)]
    if everything:
        steps = next(iter(everything.values()))["steps"]
        parts.append(
            f"Everything in every epoch ({steps:,} steps) reaches "
            f"{_mean(everything.values(), most)} %."
        )
    parts.append(origin(rows))
    return "\n\n".join(parts)


def why(rows: Sequence[Row], folder: str = "") -> str:
    """Which samples each method trained on, at one keep under the stale protocol without noise."""
    head, noisy = in_cell(rows, HEAD_KEEP, 0.0), in_cell(rows, HEAD_KEEP, 0.1)
    headings = [
        "method",
        "accuracy",
        "− random",
        "trained at most twice, %",
        "of training, on the most trained tenth, %",
        "overlap of epochs, %",
        "rarely trained right, %",
        "others right, %",
        "kept as by loss, %",
        "wrong labels of what is trained, %",
    ]
    lines = []
    for method in methods(head):
        found = list(of_method(head, method).values())
        wrong = list(of_method(noisy, method).values())
        lines.append(
            [
                str(method),
                str(cell([row["accuracy"] for row in found])),
                or_nothing(difference(head, method, "random")),
                average([100 * at_most(row["counts"], 2) for row in found]),
                average([100 * most_trained(row["counts"], 0.1) for row in found]),
                average([_percent(row["overlap"]) for row in found]),
                average([row["rare_accuracy"] for row in found]),
                average([row["other_accuracy"] for row in found]),
                average([_percent(row["as_by_loss"]) for row in found]),
                average([100 * row["wrong_share"] for row in wrong]),
            ]
        )
    return f"{markdown(headings, lines)}\n\n{origin(head)}"


def regimes(rows: Sequence[Row], folder: str = "") -> str:
    """A line for each data set of `rows`, ordered by how well its network fits: the gains of
    selection. Timed runs are repetitions and left out."""
    rows = [row for row in rows if not row["alone"]]
    shown = [Method("LFL", 0.0), *(Method("EMP", beta) for beta in (1.0, 3.0, 10.0))]
    shown += [Method("entropy", 0.0), Method("EMP Gumbel", 1.0), Method("EMP half random", 3.0)]
    headings = ["data", "seeds", "training set right, %", "random", "LFL − random"]
    headings += [f"{method} − {name}" for method, name in zip(shown[1:], _AGAINST, strict=True)]
    heads = {
        data: in_cell([row for row in rows if row["data"] == data], HEAD_KEEP, 0.0)
        for data in dict.fromkeys(row["data"] for row in rows)
    }
    fits = {
        data: statistics.fmean(fitted(row) for row in of_method(head, shown[0]).values())
        for data, head in heads.items()
    }
    lines = []
    for data in sorted(heads, key=fits.__getitem__):
        random = of_method(heads[data], Method("random", None)).values()
        gained = [
            or_nothing(difference(heads[data], method, name))
            for method, name in zip(shown, ("random", *_AGAINST), strict=True)
        ]
        accuracy = str(cell([row["accuracy"] for row in random]))
        lines.append([data, str(len(random)), f"{fits[data]:.1f}", accuracy, *gained])
    return markdown(headings, lines)


def against_full(rows: Sequence[Row], folder: str = "") -> str:
    """One line per data set and setting of the stale protocol: each method minus full data,
    shuffled, for as many steps."""
    rows = [row for row in rows if not row["alone"]]
    places = [
        (data, keep, noise)
        for data in sorted({row["data"] for row in rows})
        for keep, noise, protocol in cells(row for row in rows if row["data"] == data)
        if protocol == STALE and keep < 1.0
    ]
    shown = [Method("random", None), Method("LFL", 0.0), Method("EMP", 1.0)]
    shown += [Method("EMP Gumbel", 1.0), Method("InfoBatch", 0.0)]
    headings = ["data", "keep", "wrong labels", "seeds", "full data, %"]
    headings += [f"{method} − full" for method in shown]
    lines = []
    for data, keep, noise in places:
        found = in_cell([row for row in rows if row["data"] == data], keep, noise)
        full = of_method(found, Method("full", None))
        if not full:
            continue
        gained = [or_nothing(difference(found, method, "full")) for method in shown]
        accuracy = str(cell([row["accuracy"] for row in full.values()]))
        lines.append([data, f"{keep:g}", f"{100 * noise:g} %", str(len(full)), accuracy, *gained])
    return markdown(headings, lines)


_AGAINST = ("LFL", "LFL", "LFL", "LFL", "random", "random")


def clear_gains(rows: Sequence[Row], folder: str = "") -> str:
    """Every cell in which a method beats LFL and random selection, both clearly."""
    lines, compared = [], 0
    for method, (keep, noise, protocol), over in gains(rows):
        compared += 1
        if all(gain.clear for gain in over):
            setting = [f"{keep:g}", f"{100 * noise:g} %", protocol]
            lines.append([str(method), *setting, *map(str, over), str(over[0].seeds)])
    if not compared:
        return "No method has three seeds beside both baselines yet."
    headings = ["method", "keep", "wrong labels", "protocol", "− LFL", "− random", "seeds"]
    said = f"{len(lines)} of {compared} comparisons"
    return f"{markdown(headings, lines)}\n\n{said}." if lines else f"None: {said}."


def verdict(sets: Iterable[Sequence[Row]]) -> str:
    """Which methods beat both baselines clearly in the same cell of two data sets."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for rows in sets:
        for method, place, over in gains(rows):
            won = found.setdefault((method, *place), [])
            if all(gain.clear for gain in over):
                won.append(rows[0]["data"])
    lines = [
        f"- {method} at keep {keep:g}, {100 * noise:g} % wrong labels, {protocol}: "
        + " and ".join(won)
        for (method, keep, noise, protocol), won in found.items()
        if len(won) > 1
    ]
    return "\n".join(lines) or "None."


def everything(rows: Sequence[Row], folder: str = "") -> str:
    """A line for each method of each cell."""
    headings = [
        *("method", "keep", "wrong labels", "protocol", "seeds", "accuracy, %"),
        *("− LFL", "− random", "steps", "samples trained", "s a run", "of it choosing"),
    ]
    lines = []
    for keep, noise, protocol in cells(rows):
        found = in_cell(rows, keep, noise, protocol)
        for method in methods(found):
            own = list(of_method(found, method).values())
            trained = statistics.fmean(row["samples_trained"] for row in own)
            lines.append(
                [
                    *(str(method), f"{keep:g}", f"{100 * noise:g} %", protocol, str(len(own))),
                    str(cell([row["accuracy"] for row in own])),
                    *(or_nothing(difference(found, method, name)) for name in BASELINES),
                    f"{own[0]['steps']:,}",
                    f"{trained:,.0f}",
                    f"{statistics.median(row['seconds'] for row in own):.1f}",
                    f"{statistics.median(row['choosing_seconds'] for row in own):.2f}",
                ]
            )
    return f"{markdown(headings, lines)}\n\n{origin(rows)}"


def origin(rows: Sequence[Row]) -> str:
    """Recipe, seeds, machine, versions and commits of the rows; all but the last must agree."""
    first = rows[0]
    for name in ("data", "epochs", "batch_size", "machine", "versions", "threads"):
        if any(row[name] != first[name] for row in rows):
            raise ValueError(f"origin: rows must come from one {name}, got several")
    machine = first["machine"]
    known = ", ".join(f"{name} {value}" for name, value in first["versions"].items() if value)
    commits = dict.fromkeys(row["commit"] or "unknown" for row in rows)
    seeds = sorted({row["seed"] for row in rows})
    times = (
        f", {first['workers']} at a time and nothing beside them"
        if all(row["alone"] for row in rows)
        else "; a shared machine, so times are not exact"
    )
    return (
        f"{first['data']}, {first['epochs']} epochs, batches of {first['batch_size']}, seeds "
        f"{', '.join(map(str, seeds))}; {machine['cpu']}, {machine['cpus']} cores, "
        f"{first['threads']} thread{'s' if first['threads'] > 1 else ''} a run{times}; {known}; "
        f"commit {', '.join(_shown(commit) for commit in commits)}."
    )


def _mean(found: Iterable[Row], most: int) -> str:
    """Mean and deviation; the number of seeds where some are missing."""
    values = [row["accuracy"] for row in found]
    if not values:
        return NOTHING
    return str(cell(values)) + (f" ({len(values)})" if len(values) < most else "")


def average(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.fmean(known):.1f}" if known else NOTHING


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


def or_nothing(found: Difference | None) -> str:
    return NOTHING if found is None else str(found)


def _shown(commit: str) -> str:
    known, _, dirty = commit.partition("-")
    return known[:12] + (" with uncommitted changes" if dirty else "")
