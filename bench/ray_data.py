"""Scoring and selecting on Ray Data: seconds of each stage, and the memory of all its processes.

    python -m bench.ray_data --rows 100000000

Hidden states and labels are computed from the ids while they are read. After Ray has shut down, the
kept ids are compared with those of one `emp.select` over all scores.
"""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet
import ray
import ray.data
import torch

import emp_kernels as emp
from bench import harness
from emp_kernels.integrations.ray import select, write_scores

WIDTH, CLASSES, KEEP = 8, 10, 0.3
READ_ROWS = 1 << 20


def samples(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Hidden states (n, WIDTH) and labels (n,), hashed from ids (n,)."""
    ids = batch["id"].astype(np.uint64)
    words = (ids[:, None] * WIDTH + np.arange(WIDTH, dtype=np.uint64)) * 0x9E3779B97F4A7C15
    words ^= words >> 29
    words *= 0xBF58476D1CE4E5B9
    hidden = (words >> 40).astype(np.float32) / 2**22 - 2
    return {"id": batch["id"], "hidden": hidden, "labels": (words[:, 0] >> 32) % CLASSES}


def model() -> tuple[object, torch.nn.Linear]:
    head = torch.nn.Linear(WIDTH, CLASSES)
    weight = torch.arange(CLASSES * WIDTH).view(CLASSES, WIDTH)
    head.weight.data, head.bias.data = weight.mul(0.7).sin(), torch.zeros(CLASSES)
    return (lambda batch: torch.tensor(batch["hidden"])), head


class Memory:
    """Peak memory of this process and its descendants together (PSS, which counts shared memory
    once)."""

    def __init__(self) -> None:
        self.peak = 0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.ended.wait(1.0):
            self.peak = max(self.peak, sum(map(_pss, _process_tree())))


def _process_tree() -> list[int]:
    """Ids of this process and all its descendants."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found = [int(Path("/proc/self").resolve().name)]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def _pss(process: int) -> int:
    """Proportional set size in bytes; 0 for a process that has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def correct(folder: str, rows: int) -> bool:
    """Whether the ids in the files are those of one selection from all scores."""
    _, head = model()
    score = torch.empty(rows)
    for first in range(0, rows, READ_ROWS):
        batch = samples({"id": np.arange(first, min(first + READ_ROWS, rows))})
        hidden = torch.from_numpy(batch["hidden"])
        labels = torch.tensor(batch["labels"].astype(int))
        found = emp.score_linear(hidden, head.weight.detach(), labels, bias=head.bias.detach())
        score[first : first + len(labels)] = found.score
    files = sorted(Path(folder).glob("*.parquet"))
    ids = [pyarrow.parquet.read_table(file, columns=["id"])["id"].to_numpy() for file in files]
    expected = emp.select(score, KEEP)
    return torch.equal(torch.from_numpy(np.concatenate(ids)).sort().values, expected)


def measured(rows: int, folder: str) -> dict[str, object]:
    """The fields of a row; leaves the files in `folder`."""
    os.environ["ARROW_DEFAULT_MEMORY_POOL"] = "system"  # Arrow's kept a gigabyte in one worker
    ray.init(
        num_cpus=2,
        object_store_memory=600 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 32 * 2**20
    seconds = {}
    with Memory() as memory:
        begin = time.perf_counter()
        made = ray.data.range(rows).map_batches(samples, batch_size=1 << 16)
        scores = write_scores(made, model, f"{folder}/scores", batch_size=1 << 16)
        seconds["score"] = time.perf_counter() - begin
        kept = select(scores, KEEP)
        seconds["select"] = time.perf_counter() - begin - seconds["score"]
        kept.rows.select_columns(["id"]).write_parquet(f"{folder}/kept")
        seconds["write"] = time.perf_counter() - begin - seconds["score"] - seconds["select"]
    ray.shutdown()
    return {
        "rows": rows,
        "keep": KEEP,
        "classes": CLASSES,
        "seconds_of": seconds,
        "peak_bytes": memory.peak,
        "kept": kept.num_kept,
        "ray": ray.__version__,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10**8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        row = measured(options.rows, folder)
        assert correct(f"{folder}/kept", options.rows)
    row = {"benchmark": "ray_data", **row, **harness.origin()}
    file = harness.results_folder() / "ray_data.jsonl"
    harness.write_rows(file, [*(harness.read_rows(file) if file.exists() else []), row])
    print(row)
    print(f"wrote {file}")
