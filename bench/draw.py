"""Plots and tables of the CPU benchmarks from committed rows: python -m bench.draw FOLDER

Reads FOLDER/cpu.jsonl; writes cpu.md and four PNG files beside it. Nothing is measured here.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import harness, tables
from emp_kernels.plots import COLOURS, FAINT, INK, OTHERS, STYLE

OURS = COLOURS["EMP"]
LINEAR_FROM = 10**6  # elements from which the slope of the cost is fitted
SHADES = {
    "torch.compile": COLOURS["LFL"],
    "torch": FAINT,
    "numpy": OTHERS[0],
    "topk + sort": COLOURS["LFL"],
    "argpartition + sort": OTHERS[0],
    "index_select": FAINT,
    "InfoBatch": OTHERS[1],
    "select": INK,
    "matmul, score": COLOURS["LFL"],
    "matmul": FAINT,
    "torch dense": COLOURS["LFL"],
}
MARKERS = {
    "topk + sort": "s",
    "argpartition + sort": "s",
    "index_select": "D",
    "select": "D",
    "matmul, score": "^",
    "matmul": "^",
}


def share_of_bandwidth(rows: Sequence[tables.Row]) -> Figure:
    """Share of the read bandwidth of each case that moves more than a cache holds; products are
    bound by arithmetic."""
    found = [
        row
        for row in rows
        if row["benchmark"] in tables.BENCHMARKS
        and row["benchmark"] not in ("contrastive", "linear")  # bound by arithmetic
        and row["bytes"] >= harness.IN_ROUNDS
        and not row["case"].startswith("growth")
    ]
    figure, axes = _figure(7.6, 1.2 + 0.34 * len(found))
    places = range(len(found))
    axes.barh(places, [row["share"] for row in found], color=OURS, height=0.62)
    for place, row in zip(places, found, strict=True):
        goal = row["goals"].get("share")
        if goal:
            for key, style in (("required", "-"), ("stretch", ":")):
                label = key if place == 0 else None
                axes.plot([goal[key]] * 2, [place - 0.42, place + 0.42], style, c=INK, label=label)
    axes.axvline(1, color=FAINT, linewidth=1)
    axes.set_yticks(places, [row["case"] for row in found])
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set_xlabel("share of the read bandwidth measured in the same rounds")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", frameon=True)
    _title(figure, "Bytes moved, against a streaming read")
    return figure


def ratios(rows: Sequence[tables.Row]) -> Figure:
    """How many times as long each opponent takes, for each case that has one."""
    found = [row for row in rows if row["opponents"]]
    figure, axes = _figure(7.6, 1.4 + 0.34 * len(found))
    for name in tables.OPPONENTS:
        points = [
            (row["opponents"][name]["ratio"], place)
            for place, row in enumerate(found)
            if name in row["opponents"]
        ]
        if points:
            x, y = zip(*points, strict=True)
            marker = MARKERS.get(name, "o")
            axes.scatter(x, y, s=34, c=SHADES[name], marker=marker, label=name, zorder=3)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xscale("log")
    ticks = [0.5, 1, 2, 5, 10, 20, 50, 100, 200]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(found)), [row["case"] for row in found])
    axes.invert_yaxis()
    axes.grid(axis="both")
    axes.set_xlabel("time of the other / time of emp_kernels")
    axes.legend(loc="lower right", frameon=True, fontsize=9)
    _title(figure, "How many times as long the others take")
    return figure


def growth(rows: Sequence[tables.Row]) -> Figure:
    """Time of score_and_select against N·C, log-log, with the fitted slope."""
    found = [row for row in rows if row["case"].startswith("growth")]
    figure, axes = _figure(6.6, 4.4)
    for dtype, colour in (("float32", OURS), ("bfloat16", COLOURS["LFL"])):
        points = [
            (row["n"] * row["c"], row["seconds"]["median"])
            for row in found
            if row["dtype"] == dtype
        ]
        if points:
            label = f"{dtype}, slope {slope(points):.3f} from 10⁶"
            x, y = zip(*points, strict=True)
            axes.plot(x, [1e3 * t for t in y], "o-", color=colour, label=label)
    axes.axvline(2**31, color=FAINT, linewidth=1, linestyle=(0, (4, 2)), label="2³¹ elements")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(axis="both")
    axes.set_xlabel("logits N·C (C = 1000)")
    axes.set_ylabel("ms a call")
    axes.legend(loc="upper left")
    _title(figure, "Cost of score_and_select against the size of the batch")
    return figure


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Exponent of the growth: least squares in logarithms over sizes from `LINEAR_FROM`."""
    logs = [(math.log(x), math.log(y)) for x, y in points if x >= LINEAR_FROM]
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    over = sum((x - mean_x) * (y - mean_y) for x, y in logs)
    return over / sum((x - mean_x) ** 2 for x, _ in logs)


def selection(rows: Sequence[tables.Row]) -> Figure:
    """Time of select against n, with opponents and the floor: the bytes at read bandwidth."""
    found = [row for row in rows if row["benchmark"] == "selection"]
    figure, axes = _figure(6.6, 4.4)
    sizes = [row["n"] for row in found]
    for name in [name for name in tables.OPPONENTS if name in found[0]["opponents"]]:
        times = [1e3 * row["opponents"][name]["seconds"]["median"] for row in found]
        axes.plot(sizes, times, "s-", color=SHADES[name], label=name)
    times = [1e3 * row["seconds"]["median"] for row in found]
    axes.plot(sizes, times, "o-", color=OURS, linewidth=2.2, label="emp_kernels.select")
    floor = [row["bytes"] / row["read"]["gb_per_s"] / 1e6 for row in found]
    axes.plot(sizes, floor, "--", color=INK, linewidth=1.2, label="4 n + 8 k bytes, read once")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(axis="both")
    axes.set_xlabel("scores n, of which 0.3 n are selected")
    axes.set_ylabel("ms")
    axes.legend(loc="upper left")
    _title(figure, "Exact selection, ascending")
    return figure


FIGURES = {
    "cpu-share": share_of_bandwidth,
    "cpu-ratios": ratios,
    "cpu-growth": growth,
    "cpu-selection": selection,
}


def page(rows: Sequence[tables.Row]) -> str:
    """The tables: what was aimed at, every case, and where the numbers come from."""
    return f"{tables.goals(rows)}\n\n{tables.cases(rows)}\n\n{tables.origin(rows)}\n"


def draw(folder: Path) -> None:
    """Write the tables and plots of the rows in `folder` beside them."""
    rows = harness.read_rows(folder / "cpu.jsonl")
    (folder / "cpu.md").write_text(page(rows), encoding="utf-8")
    with matplotlib.rc_context(STYLE):
        for name, figure in FIGURES.items():
            figure(rows).savefig(folder / f"{name}.png", metadata={"Software": None})


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    axes: Any = figure.subplots()
    return figure, axes


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=12)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
