"""Kills trainings and prints which moments were hit, and any difference from undisturbed runs.

python -m kills            # in tests/, or `make kill-test` beside it
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from . import compare, loops
from .killing import killed, undisturbed
from .life import MOMENTS, Training

ACCUMULATE = ("Trainer", "Lightning", "Accelerate")  # loops that count steps themselves


def trainings(names: list[str]) -> list[Training]:
    """Each loop with 0 to 2 worker processes, on one and two ranks, half of them accumulating."""
    return [
        Training(name, workers, ranks, 1 + (name in ACCUMULATE and (workers + ranks) % 2))
        for name in names
        for ranks in (1, 2)
        for workers in (0, 1, 2)
    ]


def kill_all(all_of: list[Training], kills: int, seed: int, folder: Path) -> tuple[dict, list[str]]:
    """Distribute `kills` over trainings: how many hit each (loop, moment), and the failures."""
    chance, hit, wrong = random.Random(seed), Counter(), []
    for i, training in enumerate(all_of):
        here = folder / "-".join(str(part) for part in training)
        share = (i + 1) * kills // len(all_of) - i * kills // len(all_of)
        whole, seconds = undisturbed(training, here / "whole")
        for run in killed(training, here, share, 0.95 * seconds, chance):
            hit.update({(training.loop, moment): n for moment, n in run.moments.items()})
            found = compare.differences(training, whole.folder, run.folder)
            wrong += [f"{run.folder}: {difference}" for difference in found]
        print(f"{training}: {share} kills", file=sys.stderr)
    return hit, wrong


def table(names: list[str], hit: dict) -> str:
    """Kills by loop and moment, as Markdown."""
    rows = [["killed", "kills", *MOMENTS], ["---", *["---:"] * (1 + len(MOMENTS))]]
    for name in [*names, "all"]:
        counts = [
            sum(n for (loop, at), n in hit.items() if at == moment and name in (loop, "all"))
            for moment in MOMENTS
        ]
        rows.append([name, str(sum(counts)), *map(str, counts)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kills", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loops", nargs="+", choices=loops.LOOPS, default=list(loops.LOOPS))
    parser.add_argument("--folder", type=Path, help="keeps what the trainings wrote")
    options = parser.parse_args()
    missing = [name for name in options.loops if not find_spec(loops.NEEDS.get(name, "torch"))]
    for name in missing:
        print(f"{name}: not killed, {loops.NEEDS[name]} is not installed")
    names = [name for name in options.loops if name not in missing]
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        hit, wrong = kill_all(trainings(names), options.kills, options.seed, folder)
    print(table(names, hit))
    print("\n".join(wrong) or "Each went on as if nothing had been: ids, losses, scores, weights.")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
