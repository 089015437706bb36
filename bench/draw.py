"""Plots and tables of the CPU benchmarks from committed rows: python -m bench.draw FOLDER

Reads FOLDER/cpu.jsonl; writes cpu.md and five PNG files next to it. Nothing is measured here.
"""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import grown, harness, roofline, tables
from emp_kernels.plots import COLOURS, FAINT, INK, OTHERS, STYLE

OURS = COLOURS["EMP"]
BFLOAT16 = COLOURS["LFL"]
SHADES = {
    "torch.compile": COLOURS["LFL"],
    "torch": FAINT,
    "numpy": OTHERS[0],
    "TRL": OTHERS[1],
    "verl": OTHERS[2],
    "verl, chunked": OTHERS[3],
    "Liger cross-entropy": INK,
    "topk + sort": COLOURS["LFL"],
    "topk": FAINT,
    "argpartition + sort": OTHERS[0],
    "index_select": FAINT,
    "InfoBatch": OTHERS[1],
    "Composer": OTHERS[2],
    "select": INK,
    "RandomSampler": FAINT,
    "matmul, score": COLOURS["LFL"],
    "matmul": FAINT,
    "cut-cross-entropy": OTHERS[0],
    "torch dense": COLOURS["LFL"],
    "torch dense, in place": FAINT,
}
MARKERS = {
    "TRL": "v",
    "verl": "v",
    "verl, chunked": "v",
    "topk + sort": "s",
    "topk": "s",
    "argpartition + sort": "s",
    "index_select": "D",
    "select": "D",
    "matmul, score": "^",
    "matmul": "^",
    "cut-cross-entropy": "^",
}
GROUPS = {  # of the roofline plot: benchmarks, colour, marker
    "logits scored": (("pruning", "scoring", "tokens"), OURS, "o"),
    "loss and gradient, selection of an epoch": (("training",), COLOURS["LFL"], "D"),
    "scores selected from": (("selection",), OTHERS[0], "s"),
    "numbers gathered": (("gathering",), OTHERS[1], "v"),
    "logits of a product": (("linear",), INK, "^"),
    "similarities": (("contrastive",), OTHERS[2], "P"),
}


def share_of_bandwidth(rows: Sequence[tables.Row]) -> Figure:
    """Share of the read bandwidth of each case that exceeds the caches; products are
    compute-bound."""
    found = [
        row
        for row in rows
        if row["benchmark"] in tables.BENCHMARKS
        and row["benchmark"] not in ("contrastive", "linear", "limits")  # compute-bound
        and row["bytes"] >= harness.IN_ROUNDS
        and "growth" not in row
    ]
    figure, axes = _figure(7.6, 1.2 + 0.34 * len(found))
    heights = range(len(found))
    axes.barh(heights, [row["share"] for row in found], color=OURS, height=0.62)
    for y, row in zip(heights, found, strict=True):
        goal = row["goals"].get("share")
        if goal:
            for key, style in (("required", "-"), ("stretch", ":")):
                label = key if y == 0 else None
                axes.plot([goal[key]] * 2, [y - 0.42, y + 0.42], style, c=INK, label=label)
    axes.axvline(1, color=FAINT, linewidth=1)
    axes.set_yticks(heights, [row["case"] for row in found])
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.set_xlabel("share of the read bandwidth measured in the same rounds")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="lower right", frameon=True)
    _title(figure, "Bytes moved, against a streaming read")
    return figure


def ratios(rows: Sequence[tables.Row]) -> Figure:
    """Each competitor's time relative to ours, for each case that has one."""
    found = [row for row in rows if row["opponents"]]
    figure, axes = _figure(7.6, 2.2 + 0.34 * len(found))
    for name in tables.OPPONENTS:
        points = [
            (row["opponents"][name]["ratio"], y)
            for y, row in enumerate(found)
            if name in row["opponents"]
        ]
        if points:
            x, y = zip(*points, strict=True)
            marker = MARKERS.get(name, "o")
            axes.scatter(x, y, s=34, c=SHADES[name], marker=marker, label=name, zorder=3)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xscale("log")
    ticks = [0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(found)), [row["case"] for row in found])
    axes.invert_yaxis()
    axes.grid(axis="both")
    axes.margins(y=0.02)
    axes.set_xlabel("time of the other / time of emp_kernels")
    figure.legend(loc="outside lower left", ncols=4, fontsize=9)
    _title(figure, "How many times as long the others take")
    return figure


def growth(rows: Sequence[tables.Row]) -> Figure:
    """Log-log plots of a call's time against each size that grows, with fitted slopes."""
    figure = Figure(figsize=(10.4, 7.6), dpi=130, layout="constrained")
    panels: Any = figure.subplots(2, 2)
    for axes, (benchmark, title, label, series) in zip(panels.flat, grown.PANELS, strict=True):
        for i, line in enumerate(grown.lines_of(rows, benchmark, series)):
            x, y = zip(*line.points, strict=True)
            text = f"{line.name}: slope {line.slope:.3f} from {_power(line.start)}"
            axes.plot(x, [1e3 * t for t in y], "o-", color=(OURS, BFLOAT16)[i], label=text)
        if label == "logits N·C":
            axes.axvline(2**31, color=FAINT, linewidth=1, linestyle=(0, (4, 2)), label="2³¹")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.grid(axis="both")
        axes.set_title(title)
        axes.set_xlabel(label)
        axes.set_ylabel("ms a call")
        if axes.lines:
            axes.legend(fontsize=9)
    _title(figure, "How the cost grows, from 10³ to what memory holds")
    return figure


def roofs(rows: Sequence[tables.Row]) -> Figure:
    """Each case's elements per second against elements per byte, with both limits."""
    found = roofline.points(rows)
    figure, axes = _figure(8.6, 6.4)
    ends = min(p.intensity for p in found) / 2, max(p.intensity for p in found) * 2
    reads = [row["read"]["gb_per_s"] for row in rows]
    low, high = ([end * rate for end in ends] for rate in (min(reads), max(reads)))
    label = f"memory read at {min(reads):.0f} to {max(reads):.0f} GB/s"
    axes.fill_between(ends, low, high, color=FAINT, alpha=0.3, linewidth=0, label=label)
    for dtype, style in (("float32", "-"), ("bfloat16", ":")):
        limit = roofline.scoring_limits(rows).get(dtype)
        if limit:
            label = f"{dtype} logits scored from cache, {limit:.1f}"
            axes.axhline(limit, color=OURS, linestyle=style, linewidth=1.4, label=label)
    for name, (benchmarks, colour, marker) in GROUPS.items():
        group = [p for p in found if p.row["benchmark"] in benchmarks]
        x, y = [p.intensity for p in group], [p.rate for p in group]
        axes.scatter(x, y, s=36, color=colour, marker=marker, label=name, zorder=3)
        bounded = [p for p in group if "d" in p.row and p.arithmetic]
        x, y = [p.intensity for p in bounded], [p.arithmetic for p in bounded]
        label = "what its arithmetic allows" if bounded and name.startswith("log") else ""
        axes.scatter(x, y, s=160, color=colour, marker="_", label=label or None, zorder=3)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(ends)
    axes.grid(axis="both")
    axes.set_xlabel("elements a byte that has to move")
    axes.set_ylabel("10⁹ elements a second")
    figure.legend(loc="outside lower left", ncols=3, fontsize=9)
    _title(figure, "Roofline: each case below the limits of memory and arithmetic")
    return figure


def selection(rows: Sequence[tables.Row]) -> Figure:
    """Time of select against n, with opponents and the floor: the bytes at read bandwidth."""
    found = [r for r in rows if r["benchmark"] == "selection" and "growth" not in r]
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
    "cpu-roofline": roofs,
}


def page(rows: Sequence[tables.Row]) -> str:
    """The tables: the goals, every case, and the origin of the numbers."""
    parts = [tables.goals(rows), tables.cases(rows), tables.errors(rows), grown.table(rows)]
    return "\n\n".join([*parts, roofline.table(rows), tables.origin(rows)]) + "\n"


def draw(folder: Path) -> None:
    """Write tables and plots of the rows in `folder` to that folder."""
    rows = harness.read_rows(folder / "cpu.jsonl")
    (folder / "cpu.md").write_text(page(rows), encoding="utf-8")
    with matplotlib.rc_context(STYLE):
        for name, figure in FIGURES.items():
            figure(rows).savefig(folder / f"{name}.png", metadata={"Software": None})


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    axes: Any = figure.subplots()
    return figure, axes


def _power(size: int) -> str:
    """10 with a superscript exponent, for the nearest power of ten."""
    return "10" + str(round(math.log10(size))).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=12)


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
