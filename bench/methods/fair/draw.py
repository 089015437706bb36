"""The crossover from committed rows: python -m bench.methods.fair.draw FOLDER

Reads FOLDER/fair-*.jsonl; writes beside them crossover.png, of all data sets, and of each a
crossover-DATA.png: what a way of choosing adds to full data in as many steps, against the length
of the training. Nothing is measured here.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench import harness
from bench.methods.fair import plan, report
from bench.methods.fair.methods import Balanced, Candidates, Method, Sampling
from emp_kernels.plots import COLOURS, FAINT, INK, OTHERS, STYLE

LOOKS: dict[Method, tuple[str, str]] = {  # colour, marker
    Candidates(2): (COLOURS["EMP"], "o"),
    Candidates(): (OTHERS[3], "s"),
    Candidates(2, choose="importance"): (INK, "p"),
    Candidates(choose="importance"): (OTHERS[2], "P"),
    Sampling("importance"): (OTHERS[0], "^"),
    Sampling("gumbel"): (COLOURS["LFL"], "v"),
    Sampling("pool"): (OTHERS[1], "X"),
    Balanced(): (FAINT, "D"),
}
SHORT = (
    Candidates(2),
    Candidates(),
    Candidates(2, choose="importance"),
    Sampling("importance"),
    Sampling("gumbel"),
)
NAMES = {"accuracy": "accuracy − full (points)", "macro_f1": "macro-F1 − full (points)"}
TITLES = {
    "wordnet": "WordNet's glosses",
    "debian": "Debian's descriptions",
    "digits": "digits",
    "cifar100": "CIFAR-100, 16×16",
}
APART = 0.025  # of the axis between the points of two methods
Row = dict[str, Any]


def crossover(sets: dict[str, Sequence[Row]], methods: Sequence[Method]) -> Figure:
    """A column for each data set, accuracy above macro-F1; bars are 95 % t intervals."""
    size = max(6.6, 0.8 + 3.1 * len(sets)), 6.0
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    panels: Any = figure.subplots(2, len(sets), squeeze=False)
    for column, (data, rows) in enumerate(sets.items()):
        for axes, endpoint in zip(panels[:, column], NAMES, strict=True):
            _lines(axes, data, rows, endpoint, methods)
        panels[0, column].set_title(TITLES[data])
        panels[1, column].set_xlabel("steps, in passes over the data")
    for axes, said in zip(panels[:, 0], NAMES.values(), strict=True):
        axes.set_ylabel(said)
    found = {}
    for axes in panels.flat:
        handles, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(found.values(), found.keys(), loc="outside lower left", ncols=max(2, len(sets)))
    title = "Chosen samples less full data, shuffled, in equal steps (0): mean, 95 % t interval"
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=FAINT)
    return figure


def _lines(
    axes: Axes, data: str, rows: Sequence[Row], endpoint: str, methods: Sequence[Method]
) -> None:
    found = [
        one
        for family in plan.FAMILIES
        for one in report.in_equal_steps(rows, family)
        if (one.data, one.endpoint) == (data, endpoint)
    ]
    lengths = sorted({one.epochs for one in found})
    for place, method in enumerate(methods):
        own = [one for one in found if one.method == method.name]
        colour, marker = LOOKS[method]
        shift = 1 + APART * (place - (len(methods) - 1) / 2)
        if own:
            axes.errorbar(
                [one.epochs * shift for one in own],
                [one.difference.mean for one in own],
                yerr=[one.difference.half for one in own],
                color=colour,
                marker=marker,
                markersize=5,
                elinewidth=1.2,
                capsize=2,
                label=method.name,
            )
    axes.axhline(0, color=INK, linewidth=1)
    axes.set_xscale("log")
    of_full = [
        report.mean(report.tested(rows, data, "full", n).values(), endpoint) for n in lengths
    ]
    places = [f"{n:g}\n(full {value} %)" for n, value in zip(lengths, of_full, strict=True)]
    axes.set_xticks(lengths, places)
    axes.minorticks_off()
    axes.grid(axis="y")


def draw(folder: Path) -> None:
    """Write the figures of the rows in `folder` beside them."""
    files = {data: folder / f"fair-{data}.jsonl" for data in TITLES}
    sets = {data: harness.read_rows(file) for data, file in files.items() if file.exists()}
    figures = {"crossover": crossover(sets, SHORT)}
    for data, rows in sets.items():
        known = {row["method"] for row in rows}
        methods = [method for method in LOOKS if method.name in known]
        figures[f"crossover-{data}"] = crossover({data: rows}, methods)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", metadata={"Software": None})


if __name__ == "__main__":
    with matplotlib.rc_context(STYLE):
        draw(Path(sys.argv[1]))
