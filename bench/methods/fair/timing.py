"""The time of a step with candidates: python -m bench.methods.fair.timing

Methods take turns, round by round, so that a busy machine slows all alike; a row of
FOLDER/candidates-time.jsonl is one method's half pass over WordNet's glosses in one round, of
FOLDER/candidates-time-wide.jsonl over Debian's descriptions with the large network.
"""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench import harness
from bench.methods.fair import plan
from bench.methods.fair.methods import Candidates, Full
from bench.methods.fair.proxy import Proxied
from bench.methods.fair.texts import load
from bench.methods.fair.training import steps_of, train
from bench.tables import markdown
from emp_kernels.experiments import provenance

WIDE = "debian-wide"
METHODS = {
    "wordnet": (Full(), Candidates(2), Candidates(4)),
    WIDE: (Full(), Candidates(2), Proxied()),
}
ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.methods.fair.timing")
    parser.add_argument("--rows", type=Path, default=harness.results_folder(), metavar="FOLDER")
    parser.add_argument("--data", choices=METHODS, default="wordnet")
    options = parser.parse_args()
    torch.set_num_threads(1)
    origin = harness.origin() | {"commit": provenance.commit("bench/methods")}
    data, batch_size = load(options.data), plan.RECIPES[options.data].batch_size
    steps = steps_of(len(data.train.labels), 0.5, batch_size)
    rows = []
    for number in range(ROUNDS):
        for method in METHODS[options.data]:
            result = train(data, method, 0.4, steps, number, "validation", batch_size=batch_size)
            own = {"data": options.data, "method": method.name, "round": number, "steps": steps}
            rows.append(origin | own | {"ms_a_step": round(1e3 * result.seconds / steps, 4)})
    name = "candidates-time-wide" if options.data == WIDE else "candidates-time"
    harness.write_rows(options.rows / f"{name}.jsonl", rows)
    print(table(rows))


def table(rows: Sequence[dict[str, Any]], folder: str = "") -> str:
    """The median over rounds of a step's processor time, and of its ratio to full data's."""
    names = [method.name for method in METHODS[rows[0].get("data", "wordnet")]]
    times = {name: [row["ms_a_step"] for row in rows if row["method"] == name] for name in names}
    full = times[names[0]]
    lines = [
        [
            name,
            f"{statistics.median(own):.2f}",
            f"{statistics.median(a / b for a, b in zip(own, full, strict=True)):.2f}",
        ]
        for name, own in times.items()
    ]
    said = f"One thread, {ROUNDS} rounds; commit {rows[0]['commit'][:12]}."
    return f"{markdown(['method', 'ms a step', '× full data'], lines)}\n\n{said}"


if __name__ == "__main__":
    main()
