"""Plots of pruning runs: matplotlib figures, without using matplotlib's global state.

matplotlib is imported when a figure is drawn, never with the package.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from .keep import Keep
from .state import EMPState

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GRID, LEFT_OUT = "#22262e", "#6f7682", "#e4e7ec", "#b4bac4"
# The colour-blind safe palette of Okabe and Ito.
COLOURS = {"EMP": "#0072b2", "LFL": "#d55e00", "random": "#000000"}
OTHERS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # for other methods, in order
MARKERS = {"EMP": "o", "LFL": "s", "random": "D"}
OTHER_MARKERS = ("^", "v", "P", "X", "<")
LINES: dict[str, Any] = {"EMP": "-", "LFL": (0, (6, 2)), "random": (0, (1, 1.5))}
OTHER_LINES: tuple[Any, ...] = ((0, (6, 2, 1, 2)), (0, (3, 1)), (0, (6, 2, 1, 2, 1, 2)))
LABELS = {"LFL": "loss only (LFL)"}
FLOOR = 1e-6  # nats; smaller losses and entropies are drawn here
STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "grid.color": GRID,
    "legend.frameon": False,
}


class Look(NamedTuple):
    """A method's appearance in every figure."""

    colour: str
    marker: str
    line: Any


def accuracy_against_keep(rows: Iterable[Mapping[str, Any]]) -> Figure:
    """Test accuracy against the kept share: one line per method, mean and standard deviation over
    seeds.

    A single keep gives points without lines, a single seed no error bars.

    Args:
        rows: of the demo or a benchmark, each with `method`, `keep`, `seed` and `accuracy` (in
            percent).

    Returns:
        A matplotlib Figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there are no rows.
    """
    found: dict[str, dict[float, list[float]]] = {}
    for row in rows:
        found.setdefault(row["method"], {}).setdefault(row["keep"], []).append(row["accuracy"])
    if not found:
        raise ValueError("accuracy_against_keep: rows must hold at least one run, got none")
    with _style():
        figure, (axes,) = _figure(1, 6.6, 4.2)
        ticks = sorted({keep for runs in found.values() for keep in runs})
        seeds = max(len(values) for runs in found.values() for values in runs.values())
        for i, (method, look) in enumerate(_looks(found).items()):
            keeps = sorted(found[method])
            dodge = 1.025 ** (i - (len(found) - 1) / 2)  # so that all error bars are visible
            axes.errorbar(
                [keep * dodge for keep in keeps],
                [statistics.fmean(found[method][keep]) for keep in keeps],
                [_deviation(found[method][keep]) for keep in keeps] if seeds > 1 else None,
                color=look.colour,
                marker=look.marker,
                markersize=5.5,
                linestyle=look.line if len(ticks) > 1 else "none",
                linewidth=1.8,
                elinewidth=1.2,
                capsize=3,
                label=LABELS.get(method, method),
            )
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{100 * keep:g} %" for keep in ticks])
        axes.minorticks_off()
        axes.margins(x=0.07 if len(ticks) > 1 else 2)
        axes.grid(axis="y")
        axes.set_xlabel("share of the training set that an epoch trains on")
        axes.set_ylabel("test accuracy (%)")
        axes.legend(loc="lower right")
        title = "Accuracy against keep" if len(ticks) > 1 else f"Accuracy at keep {ticks[0]:g}"
        over = f"  (mean ± standard deviation, {seeds} seeds)" if seeds > 1 else ""
        figure.suptitle(title + over, x=0.01, ha="left", fontsize=12)
    return figure


def training_counts(counts: Mapping[Keep, Mapping[str, torch.Tensor]]) -> Figure:
    """How often each sample was trained, from the most to the least: low-frequency learning.

    One panel per keep and one curve per method. All curves of a panel have the same area below
    them, because every method trains equally often in total.

    Args:
        counts: for each keep, for each method, how often each sample was trained: integers (N,),
            concatenated for several runs.

    Returns:
        A matplotlib Figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there are no counts.
    """
    if not counts or not all(counts.values()):
        raise ValueError("training_counts: counts must hold at least one method a keep, got none")
    looks = _looks(itertools.chain.from_iterable(counts.values()))
    with _style():
        figure, panels = _figure(len(counts), 1.6 + 3.4 * len(counts), 4.0, sharey=True)
        for axes, (keep, methods) in zip(panels, counts.items(), strict=True):
            for i, (method, trained) in enumerate(methods.items()):
                ordered = trained.sort(descending=True).values.tolist()
                axes.stairs(
                    ordered,
                    [100 * i / len(ordered) for i in range(len(ordered) + 1)],
                    baseline=None,
                    color=looks[method].colour,
                    linestyle=looks[method].line,
                    linewidth=1.5 + 1.2 * (len(methods) - 1 - i),  # so that all are visible
                    label=LABELS.get(method, method),
                )
            axes.set_title(f"keep {keep:g}")
            axes.set_xlim(0, 100)
            axes.set_ylim(bottom=0)
            axes.grid(axis="both")
            axes.set_xlabel("training samples, most trained first (%)")
        panels[0].set_ylabel("times trained")
        panels[-1].legend(loc="upper right")
        figure.suptitle("How often each sample was trained", x=0.01, ha="left", fontsize=12)
    return figure


def loss_entropy_plane(states: Mapping[str, EMPState], keep: Keep) -> Figure:
    """The samples of each state by loss and entropy, with the selection of ``select(keep)`` marked.

    The line is the selection's border, ``loss + beta * entropy = threshold``. Values below 1e-6
    nats are drawn at 1e-6; samples that were never scored are omitted.

    Args:
        states: one state per method; each gets a panel.
        keep: as in :meth:`emp_kernels.EMPState.select`.

    Returns:
        A matplotlib Figure.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: there are no states.
    """
    if not states:
        raise ValueError("loss_entropy_plane: states must hold at least one method, got none")
    looks = _looks(states)
    with _style():
        figure, panels = _figure(
            len(states), 1.0 + 4.3 * len(states), 4.6, sharex=True, sharey=True
        )
        for axes, (method, state) in zip(panels, states.items(), strict=True):
            _plane(axes, state, keep, looks[method])
            axes.set_title(
                f"{LABELS.get(method, method)}, β = {state.beta:g}: "
                f"{len(state.select(keep)):,} of {state.num_samples:,} selected"
            )
            axes.set_xlabel("loss (nats)")
            axes.legend(loc="upper left")
        panels[0].set_ylabel("entropy of the prediction (nats)")
        figure.suptitle(
            "What the next epoch trains on, by last seen loss and entropy",
            x=0.01,
            ha="left",
            fontsize=12,
        )
    return figure


def _plane(axes: Axes, state: EMPState, keep: Keep, look: Look) -> None:
    """One panel: points, with the selected ones marked, and the selection's border."""
    selected = torch.zeros(state.num_samples, dtype=torch.bool, device="cpu")
    selected[state.select(keep).cpu()] = True
    seen = state.updates.cpu() > 0
    loss, entropy = (x.cpu().clamp(min=FLOOR) for x in (state.loss, state.entropy))
    for mask, shade, marker, size, label in (
        (seen & ~selected, LEFT_OUT, ".", 16, "left out"),
        (seen & selected, look.colour, look.marker, 13, "selected"),
    ):
        points = loss[mask].tolist(), entropy[mask].tolist()
        style: Any = {"alpha": 0.65, "linewidths": 0, "label": label}
        axes.scatter(*points, s=size, c=shade, marker=marker, **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(axis="both")
    if (seen & selected).any():
        # The threshold is the lowest selected score; the limits stay those of the points.
        limits = axes.get_xlim(), axes.get_ylim()
        border = _border(float(state.score.cpu()[seen & selected].min()), state.beta)
        axes.plot(*border, color=INK, linewidth=1, linestyle=(0, (4, 2)), label="border")
        axes.set(xlim=limits[0], ylim=limits[1])


def _border(threshold: float, beta: float) -> tuple[list[float], list[float]]:
    """Losses and entropies, positive, along ``loss + beta * entropy = threshold``."""
    wide = torch.logspace(-9, 3, 600, dtype=torch.float64)
    if beta == 0:
        return [threshold] * len(wide), wide.tolist()
    losses = torch.cat([wide, threshold - beta * wide])
    entropies = torch.cat([(threshold - wide) / beta, wide])
    order = losses.argsort()
    losses, entropies = losses[order], entropies[order]
    inside = (losses > 0) & (entropies > 0)
    return losses[inside].tolist(), entropies[inside].tolist()


def _looks(methods: Iterable[str]) -> dict[str, Look]:
    """Each method's look, the same in every figure for the known names."""
    others = itertools.cycle(OTHERS), itertools.cycle(OTHER_MARKERS), itertools.cycle(OTHER_LINES)
    return {
        name: Look(COLOURS[name], MARKERS[name], LINES[name])
        if name in COLOURS
        else Look(*map(next, others))
        for name in dict.fromkeys(methods)
    }


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _style() -> Any:
    """A context manager that applies this module's style."""
    try:
        import matplotlib
    except ImportError:
        raise ImportError("plots: matplotlib must be installed: pip install matplotlib") from None
    return matplotlib.rc_context(STYLE)


def _figure(
    panels: int, width: float, height: float, *, sharex: bool = False, sharey: bool = False
) -> tuple[Figure, list[Axes]]:
    """A figure with `panels` axes side by side, `width` x `height` inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(wspace=0.06)
    figure = Figure(figsize=(width, height), dpi=160, layout=layout)
    axes = figure.subplots(1, panels, squeeze=False, sharex=sharex, sharey=sharey)
    return figure, list(axes[0])
