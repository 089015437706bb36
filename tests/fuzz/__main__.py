"""Fuzzes every SIMD level of this machine in turn, in separate processes, or reproduces one case.
Native fuzzers, if given, get a third of the time."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

from emp_kernels import backends

from .cases import FLUSHED
from .running import KINDS, run_case, watch, watch_native, work


def levels() -> list[str]:
    """The SIMD level that EMP_SIMD names, or all that this processor has."""
    native = backends.load("cpu").require()
    return [native.simd_level()] if "EMP_SIMD" in os.environ else list(native.simd_levels())


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="in all (default 60)")
    parser.add_argument("--seed", type=int, help="by default the time in seconds")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only these kinds")
    parser.add_argument("--case", type=int, help="only this case, of the one kind")
    parser.add_argument("--native", type=Path, action="append", default=[], metavar="PROGRAM",
                        help="a build of tests/native/fuzz.cpp")  # fmt: skip
    parser.add_argument("--notes", type=Path, help=argparse.SUPPRESS)  # of a watched process
    asked = parser.parse_args()
    seed = int(time.time()) if asked.seed is None else asked.seed
    kinds = asked.kind or list(KINDS)
    chosen = levels()
    if asked.case is not None:
        if len(kinds) != 1:
            parser.error("--case needs the one --kind that it is of")
        print(dict(run_case(seed, kinds[0], asked.case)))
        return 0
    if asked.notes is not None:
        return work(chosen[0], asked.seconds, seed, kinds, asked.notes)

    print(f"seed {seed}: {asked.seconds:g} s of {', '.join(kinds)} at {', '.join(chosen)}")
    jobs = [(2.0 * max(1, len(asked.native)), partial(watch, seed=seed, kinds=kinds))]
    jobs += [(1.0, partial(watch_native, program, seed=seed)) for program in asked.native]
    left = [(share, level, job) for level in chosen for share, job in jobs]
    total, sound = Counter[str](), True
    end = time.monotonic() + asked.seconds
    while left:  # each has its share of the time that is left
        seconds = max(0.0, end - time.monotonic()) / sum(share for share, _, _ in left)
        share, level, job = left.pop(0)
        counts, good = job(level=level, seconds=share * seconds)
        total += counts
        sound &= good
    print(f"{'all':>12} {'flushed':>12}")  # denormals to zero
    for what in sorted(name for name in total if not name.endswith(FLUSHED)):
        print(f"{total[what]:>12,} {total[what + FLUSHED]:>12,}  {what}")
    print("nothing failed" if sound else "FAILED, see above")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
