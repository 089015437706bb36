"""Run the missing runs: python -m bench.methods.fair

Method by method, full data first: learning rates on the validation split, then the test split with
other seeds. A finished run is one line of FOLDER/fair-DATA.jsonl and is not repeated: stop at any
time and start again.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import harness
from bench.methods.fair import plan
from bench.methods.fair.plan import KEY, Trial
from bench.methods.fair.texts import load
from bench.methods.fair.training import BATCH, steps_of, train
from emp_kernels.experiments import provenance

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.methods.fair", description=__doc__)
    parser.add_argument("--rows", type=Path, default=harness.results_folder(), metavar="FOLDER")
    parser.add_argument("--data", nargs="+", choices=plan.DATA, default=plan.DATA)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    origin = harness.origin() | {"commit": provenance.commit("bench/methods")}
    rows = [row for data in options.data for row in rows_of(options.rows, data)]
    done = {key_of(row) for row in rows}
    for trial in missing(rows, options.data, done):
        row = origin | measured(trial)
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


def missing(rows: list[Row], data: Iterable[str], done: set[tuple[Any, ...]]) -> Iterator[Trial]:
    """Trials without a row; `rows` and `done` grow during the runs."""

    def parts() -> Iterator[Iterator[Trial]]:
        for method in plan.METHODS:
            for name in data:
                yield plan.tuning(name, method)
                yield plan.testing(name, method, tuned(rows))
            if method == plan.LONGER_AFTER:
                yield from (plan.longer(name, tuned(rows)) for name in data)

    for part in parts():
        yield from (trial for trial in part if trial.key not in done)


def tuned(rows: Iterable[Row]) -> dict[tuple[str, str, float], float]:
    """The rate with the best mean accuracy on the validation split, for each (data, method, epochs)
    whose rates were all run."""
    found: dict[tuple[str, str, float], dict[float, list[float]]] = defaultdict(dict)
    for row in rows:
        if row["split"] == "validation" and row["rate"] in plan.RATES:
            place = (row["data"], row["method"], row["epochs"])
            found[place].setdefault(row["rate"], []).append(row["accuracy"])
    return {
        place: max(rates, key=lambda rate: statistics.fmean(rates[rate]))
        for place, rates in found.items()
        if sum(map(len, rates.values())) >= len(plan.RATES) * len(plan.TUNING_SEEDS)
    }


def measured(trial: Trial) -> Row:
    """Run `trial`; its row, but for where it comes from."""
    data = load(trial.data)
    steps = steps_of(len(data.train.labels), trial.epochs)
    result = train(data, trial.method, trial.rate, steps, trial.seed, trial.split)
    own = dict(zip(KEY, trial.key, strict=True)) | {"beta": trial.method.beta, "batch_size": BATCH}
    numbers = {name: round(x, 4) for name, x in result._asdict().items()}
    return own | numbers


if __name__ == "__main__":
    main()
