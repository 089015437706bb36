"""The GPU benchmarks: `python -m bench.gpu.run ROWS.jsonl [seconds]`, a table and a row a case.

Rows are written after every case. Cases that do not fit into the time are listed as not measured; a
failing case is reported, and the others still run.
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
TELLING = 4  # of them run with every peer


def plan() -> list[cases.Case]:
    """All of our cases first, with the peers that start immediately. Other peers take a minute to
    import and compile: the most informative shapes run with all of them afterwards, and replace
    their rows."""
    return [
        *(cases.scoring(*shape, peers.AT_ONCE) for shape in SHAPES[:TELLING]),
        *(cases.small_batch(graph) for graph in (True, False)),
        *(cases.selecting(backend) for backend in ("triton", "cuda")),
        cases.gathering("rows of 4 kB", cases.rows_of_4_kb),
        cases.gathering("dict of 3", cases.images_features_labels),
        cases.loss_and_gradient(),
        cases.linear(),
        *(cases.scoring(*shape, peers.AT_ONCE) for shape in SHAPES[TELLING:]),
        *(cases.scoring(*shape, tuple(peers.SCORING)) for shape in SHAPES[:TELLING]),
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
            said = timing.line(rows[case.name])
        except backends.Unavailable as reason:
            said = f"{case}: not measured ({reason})"
        except Exception:
            traceback.print_exc()
            said, failed = f"{case}: failed", True
        harness.write_rows(Path(rows_file), list(rows.values()))
        print(f"{said}  [{time.monotonic() - start:.1f} s]", flush=True)
        torch.cuda.empty_cache()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(float, sys.argv[2:])))
