"""A picture of a ranking: histograms of kept and dropped scores, and the kept share of each
class."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib
from matplotlib.figure import Figure

from ...plots import COLOURS, INK, LEFT_OUT, STYLE
from ...ranking import as_measured

if TYPE_CHECKING:
    from .summary import Summary


def picture(summary: Summary) -> Figure:
    """Left: histogram of all valid rows. Right: kept share of each class, descending."""
    ranked, colour = summary.ranked, COLOURS["EMP"]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.4, 4.0), dpi=160, layout="constrained")
        values, classes = figure.subplots(1, 2)
        width = (summary.high - summary.low) / summary.bins.shape[1]
        edges = [summary.low + width * i for i in range(summary.bins.shape[1] + 1)]
        everything, kept = summary.bins.tolist()
        fill: Any = {"fill": True, "linewidth": 0}
        values.stairs(everything, edges, color=LEFT_OUT, label="left out", **fill)
        values.stairs(kept, edges, color=colour, label="kept", **fill)
        if not ranked.per_class and ranked.num_kept:
            threshold = float(as_measured(summary.by, ranked.threshold)[0])
            values.axvline(
                threshold, color=INK, linewidth=1, linestyle=(0, (4, 2)), label="threshold"
            )
        if any(everything):
            values.set_yscale("log")
            values.set_ylim(bottom=0.5)
        values.set_title(f"{ranked.num_kept:,} rows kept")
        values.set_xlabel(summary.by)
        values.set_ylabel("rows")
        values.legend(loc="upper right")
        there = ranked.rows_of_class > 0
        share = ranked.kept_of_class[there] / ranked.rows_of_class[there]
        shares = (100 * share).sort(descending=True).values.tolist()
        classes.stairs(shares, range(len(shares) + 1), color=colour, **fill)
        if ranked.num_kept:
            overall = 100 * ranked.num_kept / int(ranked.rows_of_class.sum())
            classes.axhline(
                overall, color=INK, linewidth=1, linestyle=(0, (4, 2)), label="of all rows"
            )
            classes.legend(loc="upper right")
        classes.set_ylim(0, 105)
        classes.set_xlim(0, max(1, len(shares)))
        classes.set_title(f"{len(shares):,} classes")
        classes.set_xlabel("classes, the most kept first")
        classes.set_ylabel("kept (%)")
    return figure
