"""The GPU benchmarks: `python -m bench.gpu.run ROWS.jsonl [seconds]` prints and writes their rows.

Rows are written after every case. Cases for which no time is left are listed as not measured; if a
case fails, that is reported and the others still run.
"""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch

from bench import harness
from bench.gpu import cases, peers, timing
from emp_kernels import backends

SHAPES = [  # of score_and_select, the most informative first
    (128256, torch.bfloat16), (1000, torch.bfloat16),
    (32000, torch.float32), (32000, torch.bfloat16),
    (1000, torch.float32), (4096, torch.bfloat16), (4096, torch.float32),
    (50257, torch.bfloat16), (128256, torch.float32),
    (256000, torch.bfloat16), (256000, torch.float32),
]  # fmt: skip
WITH_ALL_PEERS = 4  # the first shapes also run with every peer


def plan() -> list[cases.Case]:
    """All cases, first with the peers that need no import or compilation. Others take a minute to
    start: the first shapes run again with all peers at the end, and replace their rows."""
    return [
        *(cases.scoring(*shape, peers.AT_ONCE) for shape in SHAPES[:WITH_ALL_PEERS]),
        *(cases.small_batch(graph) for graph in (True, False)),
        *(cases.selecting(backend) for backend in ("triton", "cuda")),
        cases.gathering("rows of 4 kB", cases.rows_of_4_kb),
        cases.gathering("dict of 3", cases.images_features_labels),
        cases.loss_and_gradient(),
        cases.linear(),
        *(cases.scoring(*shape, peers.AT_ONCE) for shape in SHAPES[WITH_ALL_PEERS:]),
        *(cases.scoring(*shape, tuple(peers.SCORING)) for shape in SHAPES[:WITH_ALL_PEERS]),
    ]


def main(rows_file: str, allowed: float = 200.0) -> int:
    if not torch.cuda.is_available():
        print("bench.gpu: no CUDA GPU here; nothing was measured")
        return 0
    deadline = time.monotonic() + allowed
    copy = timing.copy_bandwidth()
    device = torch.cuda.get_device_name()
    print(f"{device}: copies at {copy / 1e9:.0f} GB/s, read plus written", flush=True)
    rows: dict[str, dict[str, Any]] = {}
    failed = False
    for case in plan():
        start = time.monotonic()
        if start > deadline:
            print(f"{case}: not measured (no time left)", flush=True)
            continue
        try:
            rows[case.name] = case.measure(copy)
            message = timing.line(rows[case.name])
        except backends.Unavailable as reason:
            message = f"{case}: not measured ({reason})"
        except Exception:
            traceback.print_exc()
            message, failed = f"{case}: failed", True
        harness.write_rows(Path(rows_file), list(rows.values()))
        print(f"{message}  [{time.monotonic() - start:.1f} s]", flush=True)
        torch.cuda.empty_cache()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(float, sys.argv[2:])))
