"""``python -m emp_kernels demo``: EMP, loss-only and random selection on real images."""

import argparse
import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from .. import backends, plots
from ..experiments import images, provenance
from ..experiments.methods import Recipe, demo_methods
from ..experiments.training import Run, run
from ..terminal.requirements import CommandError, require_packages

BATCH_SIZES = {"digits": 32, "cifar100": 128}
ROWS = "rows.jsonl"
PLANE_KEEP = 0.3  # the plane is drawn at the keep nearest to this


def run_demo(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Train every method at every keep with every seed; write rows and plots into `options.out`, or
    into a numbered folder next to it if that holds an earlier demo's.

    Returns:
        The rows of ``rows.jsonl``, one per run.

    Raises:
        CommandError: a package is missing, the images cannot be read, or nothing can be written.
    """
    require_packages("demo", "rich", "matplotlib")
    from ..experiments.display import Display  # needs rich

    data = images.load(options.data, options.data_dir)
    recipe = Recipe(options.epochs, BATCH_SIZES[options.data])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.data == "digits":
        torch.set_num_threads(1)  # in steps of 1 ms a second thread costs more than it gains
    plan = [
        (method, keep, seed)
        for seed in options.seeds
        for keep in sorted(options.keep, reverse=True)
        for method in demo_methods(options.beta)
    ]
    try:
        out = _new_folder(options.out)
        rows_file = (out / ROWS).open("x", encoding="utf-8")
    except OSError as error:
        raise CommandError(f"--out must be a folder to write into: {error}") from None

    rows: list[dict[str, Any]] = []
    runs: list[Run] = []
    with rows_file, Display(data, recipe, plan) as display:
        origin = _origin(data, recipe, device)
        for method, keep, seed in plan:
            step = display.start(method, keep, seed)
            runs.append(run(method, keep, seed, data, recipe, device=device, on_step=step))
            rows.append(_row(runs[-1]) | origin)
            rows_file.write(json.dumps(rows[-1]) + "\n")
            rows_file.flush()
            display.show(rows)
    written = _draw(rows, runs, out)
    display.close(rows, [out / ROWS, *written])
    return rows


def _new_folder(wanted: Path) -> Path:
    """Create and return `wanted`, or `wanted`-2 and so on if that holds an earlier demo's rows."""
    folder, number = wanted, 1
    while (folder / ROWS).exists():
        number += 1
        folder = wanted.with_name(f"{wanted.name}-{number}")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _row(done: Run) -> dict[str, Any]:
    scored_by = backends.resolve("score", None, done.state.score).__name__.rpartition(".")[2]
    return {
        "benchmark": "demo",
        "method": done.method.name,
        "beta": done.method.beta,
        "keep": done.keep,
        "seed": done.seed,
        "accuracy": round(done.accuracy, 4),
        "steps": done.steps,
        "samples_trained": done.samples_trained,
        "seconds": round(done.seconds, 4),
        "backend": None if done.method.beta is None else scored_by,
    }


def _origin(data: images.Images, recipe: Recipe, device: str) -> dict[str, Any]:
    """The columns that all rows of a demo share."""
    return {
        "data": data.name,
        "train_images": len(data.train_labels),
        "test_images": len(data.test_labels),
        "epochs": recipe.epochs,
        "batch_size": recipe.batch_size,
        "device": device,
        "threads": torch.get_num_threads(),
        "machine": provenance.machine(),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def _draw(rows: list[dict[str, Any]], runs: list[Run], out: Path) -> list[Path]:
    """Draw the three plots and return their paths."""
    counts: dict[float, dict[str, torch.Tensor]] = {}
    for done in runs:
        at_keep = counts.setdefault(done.keep, {})
        trained = done.state.selections.cpu()
        earlier = at_keep.get(done.method.name, trained[:0])
        at_keep[done.method.name] = torch.cat([earlier, trained])
    pruned = {keep: found for keep, found in counts.items() if keep < 1.0} or counts

    keep = min(counts, key=lambda value: abs(value - PLANE_KEEP))
    seed = runs[0].seed
    states = {
        done.method.name: done.state
        for done in runs
        if done.method.beta is not None and done.keep == keep and done.seed == seed
    }
    figures = {
        "accuracy_against_keep.png": plots.accuracy_against_keep(rows),
        "training_counts.png": plots.training_counts(pruned),
        "loss_entropy_plane.png": plots.loss_entropy_plane(states, keep),
    }
    for name, figure in figures.items():
        figure.savefig(out / name)
    return [out / name for name in figures]
