"""Run the missing runs: python -m bench.methods.fair

Method by method, full data first: learning rates on the validation split, then the test split with
other seeds. A finished run is one line of FOLDER/fair-DATA.jsonl and is not repeated: stop at any
time and start again.
"""

import argparse
import json
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench import harness
from bench.methods.fair import pictures, plan, texts
from bench.methods.fair.data import Data
from bench.methods.fair.plan import KEY, Family, Trial
from bench.methods.fair.training import steps_of, train
from emp_kernels.experiments import provenance
from emp_kernels.terminal.requirements import CommandError

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.methods.fair", description=__doc__)
    parser.add_argument("--rows", type=Path, default=harness.results_folder(), metavar="FOLDER")
    parser.add_argument(
        "--data", nargs="+", choices=plan.RECIPES, default=["wordnet", "debian", "digits"]
    )
    parser.add_argument("--data-dir", type=Path, help="the folder that holds CIFAR-100")
    parser.add_argument("--seeds", type=int, default=len(plan.SEEDS), help="only the first so many")
    parser.add_argument("--longest", type=float, default=math.inf, help="leave longer trainings")
    options = parser.parse_args(arguments)
    families = [replace(family, longest=options.longest) for family in plan.FAMILIES]
    torch.set_num_threads(1)
    origin = harness.origin() | {"commit": provenance.commit("bench/methods")}
    rows = [row for data in options.data for row in rows_of(options.rows, data)]
    done = {key_of(row) for row in rows}
    for trial in missing(rows, families, options.data, plan.SEEDS[: options.seeds], done):
        row = origin | measured(trial, options.data_dir)
        rows.append(row)
        done.add(key_of(row))
        options.rows.mkdir(parents=True, exist_ok=True)
        with rows_file(options.rows, trial.data).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"{trial.data}, {trial.method.name}, {trial.epochs:g} epochs, rate {trial.rate:g}, "
            f"seed {trial.seed}, {trial.split}: {row['accuracy']:.2f} %, macro-F1 "
            f"{row['macro_f1']:.2f} in {row['seconds']:.1f} s",
            flush=True,
        )


def rows_file(folder: Path, data: str) -> Path:
    return folder / f"fair-{data}.jsonl"


def rows_of(folder: Path, data: str) -> list[Row]:
    file = rows_file(folder, data)
    return harness.read_rows(file) if file.exists() else []


def key_of(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)


def missing(
    rows: list[Row],
    families: Iterable[Family],
    data: Sequence[str],
    seeds: Sequence[int],
    done: set[tuple[Any, ...]],
) -> Iterator[Trial]:
    """Trials without a row; `rows` and `done` grow during the runs."""
    for family in families:
        for trial in family.trials(data, seeds, lambda: tuned(rows)):
            if trial.key not in done:
                yield trial


def tuned(rows: Iterable[Row]) -> dict[tuple[str, str, float], float]:
    """The rate with the best mean accuracy on the validation split, for each (data, method, epochs)
    whose rates were all run."""
    found: dict[tuple[str, str, float], dict[float, list[float]]] = defaultdict(dict)
    for row in rows:
        if row["split"] == "validation" and row["rate"] in plan.RECIPES[row["data"]].rates:
            place = (row["data"], row["method"], row["epochs"])
            found[place].setdefault(row["rate"], []).append(row["accuracy"])
    return {
        place: max(rates, key=lambda rate: statistics.fmean(rates[rate]))
        for place, rates in found.items()
        if sum(map(len, rates.values())) >= _tunings(plan.RECIPES[place[0]])
    }


def _tunings(recipe: plan.Recipe) -> int:
    return len(recipe.rates) * len(recipe.tuning_seeds)


def load(name: str, directory: Path | None = None) -> Data:
    """The data set of that name; CIFAR-100 from `directory`."""
    image = name in plan.IMAGES.methods
    return pictures.load(name, directory) if image else texts.load(name)


def measured(trial: Trial, directory: Path | None = None) -> Row:
    """Run `trial`; its row, but for where it comes from."""
    data, size = load(trial.data, directory), plan.RECIPES[trial.data].batch_size
    steps = steps_of(len(data.train.labels), trial.epochs, size)
    result = train(data, trial.method, trial.rate, steps, trial.seed, trial.split, batch_size=size)
    own = dict(zip(KEY, trial.key, strict=True)) | {"beta": trial.method.beta, "batch_size": size}
    numbers = {name: round(x, 4) for name, x in result._asdict().items()}
    return own | numbers


if __name__ == "__main__":
    try:
        main()
    except CommandError as error:
        sys.exit(f"python -m bench.methods.fair: {error}")
