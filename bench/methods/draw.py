"""Plots and tables of the comparison from committed rows: python -m bench.methods.draw FOLDER

Reads FOLDER/methods-*.jsonl; writes methods.md and next to it two PNG files per data set, or one
for timed runs. Nothing is measured here.
"""

import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.figure import Figure

from bench import harness
from bench.methods import cells, report, time_to_accuracy
from bench.methods.choosing import PER_BATCH, STALE
from emp_kernels.plots import COLOURS, FAINT, INK, OTHERS, STYLE, training_counts

SHADES = {0.5: OTHERS[0], 0.3: COLOURS["EMP"], 0.1: COLOURS["LFL"]}
COUNTED = ("random", "LFL", "InfoBatch", "EMP, β = 1", "EMP Gumbel, β = 1")


def differences(rows: Sequence[cells.Row]) -> Figure:
    """Paired differences to LFL with their standard errors: a panel for each protocol and noise."""
    settings = [
        (protocol, noise)
        for protocol in (STALE, PER_BATCH)
        for noise in (0.0, 0.1)
        if any(cells.in_cell(rows, keep, noise, protocol) for keep in SHADES)
    ]
    names = [m for m in cells.methods(r for r in rows if r["keep"] < 1) if m.name != "LFL"]
    size = max(7.6, 2.6 + 2.5 * len(settings)), 1.5 + 0.27 * len(names)  # the title needs 7.6
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    panels: Any = figure.subplots(1, len(settings), squeeze=False, sharey=True)[0]
    labelled = set()
    for axes, (protocol, noise) in zip(panels, settings, strict=True):
        for place, (keep, shade) in enumerate(SHADES.items()):
            found = cells.in_cell(rows, keep, noise, protocol)
            over = [cells.difference(found, name, "LFL") for name in names]
            points = [(i, gain) for i, gain in enumerate(over) if gain is not None]
            axes.errorbar(
                [gain.mean for _, gain in points],
                [i + 0.22 * (place - 1) for i, _ in points],
                xerr=[gain.error or 0.0 for _, gain in points],
                fmt="o",
                markersize=4,
                elinewidth=1.2,
                color=shade,
                label=f"keep {keep:g}" if points and keep not in labelled else None,
            )
            labelled |= {keep} if points else set()
        axes.axvline(0, color=INK, linewidth=1)
        axes.set_title(protocol + (f", {100 * noise:g} % wrong labels" if noise else ""))
        axes.set_xlabel("accuracy − LFL (points)")
        axes.grid(axis="both")
    panels[0].set_yticks(range(len(names)), [str(name) for name in names])
    panels[0].invert_yaxis()
    figure.legend(loc="outside lower left", ncols=3)
    data, seeds = rows[0]["data"], len({row["seed"] for row in rows})
    title = f"{data}: mean and standard error of paired differences, up to {seeds} seeds"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=FAINT)
    return figure


def counts(rows: Sequence[cells.Row]) -> Figure:
    """How often each sample was trained, at the keep that the tables show, without noise."""
    head = cells.in_cell(rows, report.HEAD_KEEP, 0.0)
    found = {}
    for method in cells.methods(head):
        if str(method) in COUNTED or method.name in COUNTED:
            runs = cells.of_method(head, method).values()
            known = method.name if method.name in COLOURS else str(method)
            found[known] = torch.cat([_times(row["counts"]) for row in runs])
    return training_counts({report.HEAD_KEEP: found})


def seconds(rows: Sequence[cells.Row]) -> Figure:
    """Accuracy against seconds of training, one curve per timed run; dotted lines are the
    targets."""
    figure = Figure(figsize=(7.6, 4.8), dpi=130, layout="constrained")
    axes: Any = figure.subplots()
    for keep, noise, protocol in cells.cells(rows):
        found = cells.in_cell(rows, keep, noise, protocol)
        for place, method in enumerate(cells.methods(found)):
            shade = INK if method.name == "full" else COLOURS.get(method.name)
            if shade is None or method.beta not in (None, 0.0, 1.0):
                shade = OTHERS[place % len(OTHERS)]
            label: str | None = f"{method}, keep {keep:g}"
            for row in cells.of_method(found, method).values():
                _, times, accuracies = zip(*row["curve"], strict=True)
                style = "-" if keep == 1 or method.name != "full" else (0, (4, 2))
                axes.plot(times, accuracies, linestyle=style, color=shade, alpha=0.8, label=label)
                axes.plot(times[-1], accuracies[-1], "o", color=shade)
                label = None
    for target in time_to_accuracy.targets(rows).values():
        axes.axhline(target, color=FAINT, linewidth=1, linestyle=":")
    axes.grid(axis="both")
    axes.set_xlabel("seconds of training")
    axes.set_ylabel("test accuracy, %")
    axes.legend(loc="lower right", fontsize=9)
    title = f"{rows[0]['data']}: accuracy against time, alone on the machine"
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=FAINT)
    return figure


def _times(histogram: Sequence[int]) -> torch.Tensor:
    """How often each sample was trained, ascending, from a histogram."""
    return torch.arange(len(histogram)).repeat_interleave(torch.tensor(histogram))


FIGURES = {False: {"": differences, "-counts": counts}, True: {"": seconds}}


def page(rows: Sequence[cells.Row]) -> str:
    """All tables of one data set."""
    title = rows[0]["data"] + (", alone on the machine" if rows[0]["alone"] else "")
    parts = [
        f"# {title}",
        report.accuracy(rows),
        "Gains over LFL and over random selection, both by more than two standard errors:",
        report.clear_gains(rows),
        f"What was trained at keep {report.HEAD_KEEP:g}, stale:",
        report.why(rows),
        "Every cell (means over seeds; seconds are medians):",
        report.everything(rows),
    ]
    if rows[0]["alone"]:
        parts += ["Time to accuracy:", time_to_accuracy.table(rows)]
    return "\n\n".join(parts)


def book(sets: Collection[Sequence[cells.Row]]) -> str:
    """A summary over data sets, and a page for each."""
    together = report.verdict(rows for rows in sets if not rows[0]["alone"])
    title = (
        "Methods that beat LFL and random selection, both by more than two standard errors, in the "
        "same setting of two data sets:"
    )
    return "\n\n".join([title, together, *map(page, sets)]) + "\n"


def read(folder: Path) -> dict[str, list[cells.Row]]:
    """The rows of each file of `folder`, by its name."""
    files = sorted(folder.glob("methods-*.jsonl"))
    return {file.stem: harness.read_rows(file) for file in files}


def draw(folder: Path) -> None:
    """Write the tables and plots of the rows in `folder` beside them."""
    found = read(folder)
    (folder / "methods.md").write_text(book(found.values()), encoding="utf-8")
    for name, rows in found.items():
        alone = rows[0]["alone"]  # a few runs, for their times
        with matplotlib.rc_context(STYLE):
            for part, figure in FIGURES[alone].items():
                path = folder / f"{name}{part}.png"
                figure(rows).savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]))
