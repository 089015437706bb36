"""The GPU benchmarks: `python -m bench.gpu.run ROWS.jsonl [seconds]`, a table and a row a case.

Results are checked before they are timed. Cases that the time does not allow are listed as not
measured.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import emp_kernels as emp
from bench import harness
from bench.gpu import peers, timing
from emp_kernels import backends

GIGABYTE = 2**30
ALL = list(peers.SCORING)
# (classes, dtype, peers): torch.compile takes seconds a shape, so that not every shape has it.
SHAPES = [
    (1000, torch.bfloat16, ALL), (128256, torch.bfloat16, ALL), (32000, torch.bfloat16, ALL),
    (32000, torch.float32, ALL), (1000, torch.float32, ["torch", "Liger cross-entropy"]),
    (4096, torch.bfloat16, []), (4096, torch.float32, []), (50257, torch.bfloat16, []),
    (128256, torch.float32, []), (256000, torch.bfloat16, []), (256000, torch.float32, []),
]  # fmt: skip

Case = tuple[str, Callable[[], dict[str, Any]]]


def cases(copy: float) -> Iterator[Case]:
    """Names and measurements, the most telling first."""
    yield from (
        (f"score_and_select C={classes} {str(dtype)[6:]}", scoring(classes, dtype, names, copy))
        for classes, dtype, names in SHAPES[:4]
    )
    yield "score_and_select 256x1000 float32, CUDA graph", lambda: small_batch(graph=True)
    yield "score_and_select 256x1000 float32, host", lambda: small_batch(graph=False)
    for name in ("triton", "cuda"):
        yield f"select 0.3 of 1e8, {name}", selecting(name, 10**8, copy)
    yield "gather 0.3 of 1 GB, rows of 4 kB", lambda: gathering(copy)
    yield from (
        (f"score_and_select C={classes} {str(dtype)[6:]}", scoring(classes, dtype, names, copy))
        for classes, dtype, names in SHAPES[4:]
    )


def scoring(classes: int, dtype: torch.dtype, names: list[str], copy: float):
    def measure() -> dict[str, Any]:
        n = GIGABYTE // (classes * dtype.itemsize) + 1
        logits = torch.randn(n, classes, device="cuda", dtype=dtype)
        labels = torch.randint(classes, (n,), device="cuda")
        state, count = emp.EMPState(n, device="cuda"), max(1, round(0.3 * n))
        result = emp.score_and_select(logits, labels, state, 0.3, backend="triton")
        harness.check_scores(logits, labels, result.scores.loss, result.scores.entropy)
        harness.check_selection(result.scores.score, result.indices, count)
        others, missing = peers.made(names, logits, labels, count)
        calls = {"ours": lambda: emp.score_and_select(logits, labels, state, 0.3, backend="triton")}
        with torch.no_grad():
            seconds = timing.seconds_of(calls | others, 15)
        goals = {"share": (0.85, 0.95)}
        goals |= {"torch.compile": (2.0, 3.0)} if "torch.compile" in others else {}
        goals |= {"Liger cross-entropy": (1.1, 1.5)} if "Liger cross-entropy" in others else {}
        return timing.row(
            f"score_and_select C={classes} {str(dtype)[6:]}",
            seconds.pop("ours"),
            moved=logits.nbytes + 16 * n,
            copy=copy,
            peers=seconds,
            not_measured=missing,
            goals=goals,
            fields={"n": n, "classes": classes, "dtype": str(dtype)[6:]},
        )

    return measure


def small_batch(graph: bool) -> dict[str, Any]:
    logits = torch.randn(256, 1000, device="cuda")
    labels = torch.randint(1000, (256,), device="cuda")
    state = emp.EMPState(256, device="cuda")

    def call():
        return emp.score_and_select(logits, labels, state, 0.3)

    result = call()
    harness.check_scores(logits, labels, result.scores.loss, result.scores.entropy)
    fields = {"n": 256, "classes": 1000, "dtype": "float32"}
    if not graph:
        goals = {"microseconds": (25.0, 12.0)}
        name = "score_and_select 256x1000 float32, host"
        return timing.row(name, timing.host_seconds(call), goals=goals, fields=fields)
    replay = timing.captured(call)

    def many():
        for _ in range(100):
            replay()

    seconds = [t / 100 for t in timing.seconds_of({"ours": many}, 15)["ours"]]
    goals = {"microseconds": (8.0, 4.0)}
    name = "score_and_select 256x1000 float32, CUDA graph"
    return timing.row(name, seconds, goals=goals, fields=fields)


def selecting(backend: str, n: int, copy: float):
    def measure() -> dict[str, Any]:
        backends.load(backend)
        scores = torch.randn(n, device="cuda")
        count = round(0.3 * n)
        harness.check_selection(scores, emp.select(scores, 0.3, backend=backend), count)
        others, missing = peers.select_peers(scores, count)
        calls = {"ours": lambda: emp.select(scores, 0.3, backend=backend)}
        seconds = timing.seconds_of(calls | others, 7)
        return timing.row(
            f"select 0.3 of 1e8, {backend}",
            seconds.pop("ours"),
            moved=2 * scores.nbytes + 8 * count,
            copy=copy,
            peers=seconds,
            not_measured=missing,
            goals={"torch.topk + sort": (10.0, 20.0), "floor": (2.5, 1.5)},
            fields={"n": n, "count": count},
        )

    return measure


def gathering(copy: float) -> dict[str, Any]:
    source = torch.randn(2**18, 1024, device="cuda")
    indices = emp.select(torch.rand(len(source), device="cuda"), 0.3)
    assert torch.equal(emp.gather(source, indices), source[indices])
    calls = {
        "ours": lambda: emp.gather(source, indices),
        "torch.index_select": lambda: source.index_select(0, indices),
    }
    seconds = timing.seconds_of(calls, 15)
    return timing.row(
        "gather 0.3 of 1 GB, rows of 4 kB",
        seconds.pop("ours"),
        moved=2 * len(indices) * 4096 + 8 * len(indices),
        copy=copy,
        peers=seconds,
        fields={"taken": backends.resolve_gather(source, False).__name__.rpartition(".")[2]},
    )


def main(rows_file: str, allowed: float = 200.0) -> int:
    if not torch.cuda.is_available():
        print("bench.gpu: no CUDA GPU here; nothing was measured")
        return 0
    deadline = time.monotonic() + allowed
    copy = timing.copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}: copies at {copy / 1e9:.0f} GB/s, read plus written")
    rows = []
    for name, measure in cases(copy):
        if time.monotonic() > deadline:
            print(f"{name:<44}  not measured (no time left)")
            continue
        try:
            rows.append(measure())
            print(timing.line(rows[-1]), flush=True)
        except backends.Unavailable as reason:
            print(f"{name:<44}  not measured ({reason})")
        harness.write_rows(Path(rows_file), rows)
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(float, sys.argv[2:])))
