"""The README's picture, from committed rows: python -m bench.overview

Next to the data flow it shows the times of `score_and_select` and of the same computation in
PyTorch, on a CPU and a GPU. The rows are those of the tables in docs/benchmarks.md.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import readme_tables
from emp_kernels.plots import COLOURS, FAINT, GRID, INK, STYLE

PICTURE = readme_tables.ROOT / "docs/overview.svg"
CASES = {  # by table of the page
    "cpu": "score_and_select 8192×32000 bfloat16",
    "gpu": "score_and_select C=128256 bfloat16",
}
SHADES = {"emp_kernels": COLOURS["EMP"], "torch.compile": COLOURS["LFL"], "torch": FAINT}
BOXES = {  # centre, text
    "logits": (0.13, 0.80, "logits of a batch\n(N, C)"),
    "scores": (0.50, 0.80, "loss, entropy,\nscore"),
    "memory": (0.87, 0.80, "memory: last score\nof each sample"),
    "top": (0.87, 0.26, "exact top k"),
    "epoch": (0.50, 0.26, "samples of the\nnext epoch"),
    "network": (0.13, 0.26, "your network"),
}
ARROWS = (
    ("logits", "scores", "one read"),
    ("scores", "memory", "by id"),
    ("memory", "top", ""),
    ("top", "epoch", "shuffled"),
    ("epoch", "network", ""),
    ("network", "logits", ""),
)
# Points by which arrows between boxes are shortened at both ends.
ACROSS, DOWN = {"shrinkA": 57, "shrinkB": 57}, {"shrinkA": 26, "shrinkB": 26}


class Bars(NamedTuple):
    """One case: its title, and the seconds of each implementation."""

    title: str
    seconds: dict[str, float]


def bars() -> list[Bars]:
    """What the picture shows, from the rows."""
    page = (readme_tables.ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    files = {name: file for _, name, file, _ in readme_tables.BLOCK.findall(page)}
    found = []
    for table, case in CASES.items():
        lines = (readme_tables.ROOT / files[table]).read_text(encoding="utf-8").splitlines()
        (row,) = (row for row in map(json.loads, lines) if row["case"] == case)
        ours = row["seconds"]["median"]
        seconds = {"emp_kernels": ours}
        seconds |= {name: ours * row["opponents"][name]["ratio"] for name in list(SHADES)[1:]}
        shape = f"{row['n']}×{row['c']} {row['dtype']}"
        found.append(Bars(f"{_machine(row)}: {shape}", seconds))
    return found


def draw(path: Path) -> None:
    """Write the picture as SVG, byte for byte reproducible from the rows."""
    settings = STYLE | {"svg.fonttype": "none", "svg.hashsalt": "emp_kernels"}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(12, 3.7), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(1.2, 1))
        left.suptitle("One read of the logits serves the loss and the choice", fontsize=10.5)
        right.suptitle("Time of score_and_select, and of the same in PyTorch", fontsize=10.5)
        _flow(left.subplots())
        for axes, case in zip(right.subplots(2, 1), bars(), strict=True):
            _times(axes, case)
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def _flow(axes: Axes) -> None:
    """Boxes and arrows: the data flow from the logits to the next epoch."""
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.axis("off")
    for name, (x, y, text) in BOXES.items():
        edge = COLOURS["EMP"] if name in ("scores", "memory", "top") else FAINT
        axes.text(
            *(x, y, text),
            ha="center",
            va="center",
            fontsize=9.5,
            bbox={"boxstyle": "round,pad=0.55", "facecolor": "white", "edgecolor": edge},
        )
    for start, end, text in ARROWS:
        (x0, y0, _), (x1, y1, _) = BOXES[start], BOXES[end]
        axes.annotate(
            "",
            xy=(x1, y1),
            xytext=(x0, y0),
            arrowprops={"arrowstyle": "->", "color": INK} | (ACROSS if y0 == y1 else DOWN),
        )
        axes.text((x0 + x1) / 2, y0 + 0.06, text, ha="center", fontsize=8, color=FAINT)


def _times(axes: Axes, case: Bars) -> None:
    """One bar per implementation, on a scale from zero, with its time and the ratio to ours."""
    names = list(case.seconds)
    ours = case.seconds["emp_kernels"]
    axes.barh(names, list(case.seconds.values()), color=[SHADES[name] for name in names])
    for y, (name, seconds) in enumerate(case.seconds.items()):
        times = "" if name == "emp_kernels" else f", {seconds / ours:.1f}×"
        axes.annotate(
            f"{_shown(seconds)}{times}",
            (seconds, y),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
        )
    axes.set_xlim(0, 1.3 * max(case.seconds.values()))
    axes.set_title(case.title, fontsize=9.5)
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines[["bottom", "left"]].set_color(GRID)
    axes.tick_params(axis="y", length=0, labelcolor=INK)


def _machine(row: dict[str, Any]) -> str:
    machine = row["machine"]
    return row.get("device") or f"{machine['cpu']}, {row['threads']} threads"


def _shown(seconds: float) -> str:
    """Milliseconds with three significant digits."""
    ms = 1e3 * seconds
    return f"{ms:.0f} ms" if ms >= 100 else f"{ms:#.3g} ms"


if __name__ == "__main__":
    draw(PICTURE)
