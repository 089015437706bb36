"""The time to an accuracy with two candidates and without: python -m bench.methods.fair.saving

A run's rate falls over its own steps, so that it is at its best only at its end: the time to an
accuracy is that of the shortest training that reaches it. Full data and two candidates are trained
for several lengths each, all of them once a round, so that a busy machine slows all alike; a round
is a seed, a row of FOLDER/saving.jsonl a run. Rows that are there are not repeated.
"""

import argparse
import itertools
import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import harness
from bench.methods.fair.methods import Candidates, Full, Method
from bench.methods.fair.plan import RECIPES
from bench.methods.fair.student import paired
from bench.methods.fair.texts import load
from bench.methods.fair.training import steps_of, train
from bench.tables import markdown
from emp_kernels.experiments import provenance

FULL, OURS = Full(), Candidates(2)
LENGTHS = {FULL: (0.35, 0.5, 0.7, 1.0, 1.4), OURS: (0.2, 0.35, 0.5, 0.7, 1.0)}
TARGETS = (0.5, 0.7, 1.0)  # full data's mean accuracy after so many passes
DATA = ("wordnet", "debian")
ROUNDS = 8
KEY = ("data", "method", "epochs", "seed")


def rate(method: Method, epochs: float) -> float:
    """What the fair comparison's tuning took on the glosses."""
    return 0.2 if method == OURS and epochs >= 0.7 else 0.4


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.methods.fair.saving")
    parser.add_argument("--rows", type=Path, default=harness.results_folder(), metavar="FOLDER")
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    origin = harness.origin() | {"commit": provenance.commit("bench/methods")}
    file = options.rows / "saving.jsonl"
    done = {tuple(row[name] for name in KEY) for row in _rows(file)}
    options.rows.mkdir(parents=True, exist_ok=True)
    for name, seed, method in itertools.product(options.data, range(ROUNDS), LENGTHS):
        data, size = load(name), RECIPES[name].batch_size
        for epochs in LENGTHS[method]:
            own = dict(zip(KEY, (name, method.name, epochs, seed), strict=True))
            if tuple(own.values()) in done:
                continue
            steps = steps_of(len(data.train.labels), epochs, size)
            result = train(data, method, rate(method, epochs), steps, seed, "test", batch_size=size)
            numbers = {name: round(x, 4) for name, x in result._asdict().items()}
            row = origin | own | {"rate": rate(method, epochs), "batch_size": size} | numbers
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")


def _rows(file: Path) -> list[dict[str, Any]]:
    return harness.read_rows(file) if file.exists() else []


def time_to(accuracy: float, runs: Sequence[dict[str, Any]]) -> float | None:
    """Seconds of the shortest training that reaches the accuracy, by straight lines between runs
    in the order of their lengths; None where the longest does not."""
    found = sorted(runs, key=lambda row: row["epochs"])
    if found[0]["accuracy"] >= accuracy:
        return float(found[0]["seconds"])
    for a, b in itertools.pairwise(found):
        if b["accuracy"] >= accuracy:
            part = (accuracy - a["accuracy"]) / (b["accuracy"] - a["accuracy"])
            return float(a["seconds"] + part * (b["seconds"] - a["seconds"]))
    return None


def _whole(rows: Sequence[dict[str, Any]]) -> list[int]:
    """The seeds of rounds that have all their runs."""
    count = Counter(row["seed"] for row in rows)
    return sorted(seed for seed in count if count[seed] == sum(map(len, LENGTHS.values())))


def table(rows: Sequence[dict[str, Any]], folder: str = "") -> str:
    """Of each target the time that full data and two candidates need, and the share saved: means
    over rounds in which both reach it."""
    heads = ["data", "target: full data after", "accuracy, %", "rounds", "full data, s"]
    heads += ["2x candidates, s", "time saved, %"]
    lines = []
    for data in dict.fromkeys(row["data"] for row in rows):
        own = [row for row in rows if row["data"] == data]
        for epochs in TARGETS:
            full = [r for r in own if (r["method"], r["epochs"]) == (FULL.name, epochs)]
            target = statistics.fmean(row["accuracy"] for row in full)
            pairs = []
            for seed in _whole(own):
                times = [
                    time_to(target, [r for r in own if (r["method"], r["seed"]) == (m.name, seed)])
                    for m in LENGTHS
                ]
                if None not in times:
                    pairs.append(times)
            if len(pairs) < 2:
                continue
            saved = paired([100 * (1 - ours / theirs) for theirs, ours in pairs])
            seconds = [f"{statistics.fmean(part):.2f}" for part in zip(*pairs, strict=True)]
            line = [data, f"{epochs:g} passes", f"{target:.1f}", str(len(pairs)), *seconds]
            lines.append([*line, str(saved)])
    commits = ", ".join(dict.fromkeys(row["commit"][:12] for row in rows))
    said = (
        "Processor time of one thread, choosing included; ± half of the 95 % t interval over rounds"
    )
    return f"{markdown(heads, lines)}\n\n{said}; commit {commits}."


if __name__ == "__main__":
    main()
