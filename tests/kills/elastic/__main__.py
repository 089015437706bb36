"""Kills ranks of trainings under torchrun; prints when, and whether anything came out otherwise.

python -m kills.elastic     # in tests/, or `make kill-test-ranks` beside it
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

from . import compare
from .launching import WAYS, Training, killed
from .training import KINDS, MOMENTS, WORLDS


def undisturbed(kind: str, folder: Path) -> None:
    """The training that nobody kills, on the most ranks."""
    training = Training(kind, folder, random.Random(0))
    training.start("--nnodes", "1", "--nproc-per-node", str(WORLDS[0]))
    try:
        if not training.end():
            raise RuntimeError((folder / "log").read_text()[-4000:])
    finally:
        training.stop()


def kill_all(
    kills: int, seed: int, folder: Path, kinds: list[str], ways: list[str]
) -> tuple[Counter, list[str]]:
    """Share out `kills` among states and ways: how many hit each (kind, way, moment or number of
    ranks), and what went wrong."""
    chance, hit, wrong = random.Random(seed), Counter(), []
    cases = [(kind, way) for kind in kinds for way in ways]
    for number, (kind, way) in enumerate(cases):
        whole = folder / kind / "whole"
        if not whole.exists():
            undisturbed(kind, whole)
        share = (number + 1) * kills // len(cases) - number * kills // len(cases)
        for run in killed(kind, way, folder / kind / way, share, chance):
            for found in (run.moments, run.worlds):
                hit.update({(kind, way, name): n for name, n in found.items()})
            wrong += [f"{run.folder}: {words}" for words in compare.differences(whole, run.folder)]
            if way == "restarts":  # none ended but by a kill
                lives = len(compare.lives(run.folder))
                if lives > 1 + sum(run.moments.values()):
                    wrong.append(f"{run.folder}: {lives} lives, {dict(run.moments)} kills")
            print(f"{kind}, {way}: {dict(run.moments)}, {len(wrong)} differences", file=sys.stderr)
    return hit, wrong


def table(hit: Counter) -> str:
    """Kills by state, way and moment, as Markdown."""
    columns = [*MOMENTS, *WORLDS]
    headings = ["state", "killed", "kills", *MOMENTS, *(f"of {world} ranks" for world in WORLDS)]
    rows = [headings, ["---", "---", *["---:"] * (len(headings) - 2)]]
    for kind in (*KINDS, "all"):
        for way in (*WAYS, "all") if kind == "all" else WAYS:
            counts = [
                sum(
                    n
                    for (of, by, name), n in hit.items()
                    if name == column and kind in (of, "all") and way in (by, "all")
                )
                for column in columns
            ]
            total = sum(counts[: len(MOMENTS)])
            rows.append([kind, way, str(total), *map(str, counts)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kills.elastic", description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--folder", type=Path, help="keeps what the trainings wrote")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        hit, wrong = kill_all(
            options.kills,
            options.seed,
            options.folder or Path(temporary),
            options.kinds,
            options.ways,
        )
    print(table(hit))
    print("\n".join(wrong) or "Each went on as if nothing had been: ids, scores, weights.")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
