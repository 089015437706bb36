"""Host time of an eager call: ``python -m bench.gpu.host [rows.jsonl]``; needs no GPU.

The CUDA driver is a stub that does nothing (`stub.py`), so all time is the host's. Launches,
allocations, fills and all torch operations are counted too. Memory comes from torch's CPU
allocator, which is about as fast as its CUDA allocator with a cached block.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import emp_kernels as emp
from bench import harness
from bench.gpu import stub, timing

ALLOCATES = {"empty", "empty_strided", "zeros", "clone", "empty_like", "new_empty"}
FILLS = {"zero_", "fill_", "zeros", "zeros_like"}


class Counts(TorchDispatchMode):
    """Counts torch operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


def calls() -> dict[str, Callable[[], Any]]:
    n, classes = 256, 1000
    logits, labels = torch.randn(n, classes), torch.randint(classes, (n,))
    state, ids = emp.EMPState(50_000), torch.randperm(50_000)[:n]
    batch_state = emp.EMPState(n)
    options = {"keep": 0.3, "backend": "triton"}
    return {
        "score": lambda: emp.score(logits, labels, backend="triton"),
        "score_and_select": lambda: emp.score_and_select(logits, labels, batch_state, **options),
        "score_and_select, ids": lambda: emp.score_and_select(
            logits, labels, state, indices=ids, **options
        ),
        "select": lambda: emp.select(batch_state.score, 0.3, backend="triton"),
    }


def measure(name: str, call: Callable[[], Any], library: Any) -> dict[str, Any]:
    """The row of one call. Times are the thread's CPU time, which other processes do not add to."""
    call()
    launches = stub.launches(library)
    with torch.no_grad(), Counts() as counts:
        call()
    launched = stub.launches(library) - launches
    rounds = []
    for _ in range(60):
        start = time.thread_time()
        for _ in range(100):
            call()
        rounds.append((time.thread_time() - start) / 100)
    fields = {
        "launches": launched,
        "allocations": sum(counts.names[name] for name in ALLOCATES),
        "fills": sum(counts.names[name] for name in FILLS),
        "operations": sum(counts.names.values()),
        "fastest_microseconds": min(rounds) * 1e6,
        "driver": "stub",
    }
    return timing.row(f"{name} {256}×{1000} float32, host, stub driver", rounds, fields=fields)


def main(rows_file: str | None = None) -> None:
    with stub.stubbed() as library:
        rows = [measure(name, call, library) for name, call in calls().items()]
    for row in rows:
        counted = ", ".join(
            f"{row[name]} {name}" for name in ("launches", "allocations", "fills", "operations")
        )
        print(
            f"{row['case']:<60}{row['fastest_microseconds']:>7.1f} to "
            f"{row['seconds']['median'] * 1e6:.1f} us  {counted}"
        )
    if rows_file is not None:
        harness.write_rows(Path(rows_file), rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
