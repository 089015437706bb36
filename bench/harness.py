"""Measures cases and makes their rows; `python -m bench.harness` prints the folder for rows.

One process times our call and its competitors alternately, round by round, so that a busy machine
slows all of them; ratios are medians over the rounds. The read bandwidth is measured with every
case.
"""

import datetime
import itertools
import json
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from emp_kernels import backends
from emp_kernels.experiments import provenance

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench/results"
READ_BYTES = 2**29  # of each streaming read; far beyond any cache
IN_ROUNDS = 2**25  # bytes from which a case fills the caches, so bandwidth is read every round
PATIENCE, FEWEST = 6.0, 3  # seconds per competitor, and its minimum number of rounds
ORACLE_ROWS = 64

Call = Callable[[], Any]


# --- origin of a row --------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """The processor, its usable cores, the GPUs and the memory, without the host's name."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return provenance.machine() | {"memory_gib": round(pages / 2**30)}


def origin() -> dict[str, Any]:
    """The fields that every row of a run has."""
    return {
        "threads": torch.get_num_threads(),
        "simd": backends.load("cpu").require().simd_level(),
        "machine": machine(),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "date": datetime.date.today().isoformat(),
    }


def results_folder(device: str | None = None) -> Path:
    """bench/results/<date>-<machine>: `device` names the machine, by default the processor."""
    name = device or f"{provenance.cpu_model()} {provenance.usable_cpus()}"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return RESULTS / f"{datetime.date.today().isoformat()}-{slug}"


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows` to `file`, one JSON object per line, replacing its content."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def read_rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


# --- input ------------------------------------------------------------------------------------


def normal_logits(size: int, dtype: str) -> torch.Tensor:
    """Normal numbers (size,): the same 2^24 repeatedly, which is fast."""
    block = torch.randn(2**24, generator=torch.Generator().manual_seed(0))
    values = torch.empty(size, dtype=getattr(torch, dtype))
    for part in values.split(len(block)):
        part.copy_(block[: len(part)])
    return values


# --- opponents --------------------------------------------------------------------------------


def score_lines(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Score, loss and entropy of logits (N, C) in plain float32 PyTorch."""
    log_p = logits.float().log_softmax(1)
    loss = -log_p.gather(1, labels[:, None])[:, 0]
    entropy = -(log_p.exp() * log_p).sum(1)
    return loss + entropy, loss, entropy


def select_lines(score: torch.Tensor, count: int) -> torch.Tensor:
    """Ascending positions of the `count` highest; any of several tied scores may be selected.
    ``sorted=False`` is the faster way."""
    return score.topk(count, sorted=False).indices.sort().values


def torch_lines(logits: torch.Tensor, labels: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
    """Score and select, without a state, so it does less than ours."""
    score, loss, entropy = score_lines(logits, labels)
    return score, loss, entropy, select_lines(score, count)


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` compiled by torch.compile for fixed shapes, anew for every case."""
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


# --- checks before timing ---------------------------------------------------------------------


def check_scores(
    logits: torch.Tensor,
    labels: torch.Tensor,
    loss: torch.Tensor,
    entropy: torch.Tensor,
    rtol: float = 1e-5,
) -> None:
    """Loss and entropy (N,) agree with float64 on evenly spaced rows of logits (N, C)."""
    n = logits.shape[0]
    rows = torch.linspace(0, n - 1, min(n, ORACLE_ROWS), dtype=torch.float64).long()
    log_p = logits[rows].double().log_softmax(1)
    right = -log_p.gather(1, labels[rows, None])[:, 0], -(log_p.exp() * log_p).sum(1)
    for found, exact in zip((loss, entropy), right, strict=True):
        torch.testing.assert_close(found[rows].double(), exact, rtol=rtol, atol=0)


def check_selection(score: torch.Tensor, indices: torch.Tensor, count: int) -> None:
    """`indices` are the ascending positions of the `count` highest, ties by lowest position."""
    assert len(indices) == count
    threshold = score[indices].min()
    kept = score > threshold
    ties = (score == threshold).nonzero()[:, 0]
    kept[ties[: count - int(kept.sum())]] = True
    assert torch.equal(kept.nonzero()[:, 0], indices)


def check_selected_values(score: torch.Tensor, indices: torch.Tensor, ours: torch.Tensor) -> None:
    """A competitor's `indices` select the same scores as ours, up to the choice among ties."""
    assert torch.equal(score[indices].sort().values, score[ours].sort().values)


# --- time -------------------------------------------------------------------------------------


class Reader:
    """Streaming reads of a buffer with torch's threads; the fastest way is the bandwidth.

    Of sixteen ways to read memory (torch's and NumPy's sums, maxima and products, on small and
    huge pages, and this package's kernels) these were the fastest; they differ by a few percent.
    """

    def __init__(self) -> None:
        values = torch.empty(READ_BYTES // 4).uniform_(-1, 1)
        words = values.view(torch.int64)
        rows = values.view(-1, 2**15)
        labels = torch.zeros(len(rows), dtype=torch.int64)
        score = backends.load("cpu").score
        self.ways: dict[str, Call] = {
            "torch.sum int64": words.sum,
            "torch.sum float32": values.sum,
            "torch.amax float32": values.amax,
            "emp_kernels.score float32": lambda: score(rows, labels, 1.0, None),
        }

    def read(self, seconds: dict[str, list[float]]) -> None:
        """Read once in each way, and append the times."""
        for name, way in self.ways.items():
            seconds.setdefault(name, []).append(timed(way))


def timed(call: Call, calls: int = 1) -> float:
    """Seconds per call, averaged over `calls`."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile."""
    p20, p80 = np.quantile(seconds, [0.2, 0.8]).tolist()
    return {"median": statistics.median(seconds), "p20": p20, "p80": p80}


def ratio_of_rounds(ratios: Sequence[float]) -> dict[str, float]:
    """Median ratio of paired rounds, 20th and 80th percentile, and the two order statistics that
    are the median's 95 % confidence interval (the extremes below 6 rounds)."""
    ordered, n = sorted(ratios), len(ratios)
    rank = max(0, math.floor((n - 1.96 * math.sqrt(n)) / 2))
    p20, p80 = np.quantile(ordered, [0.2, 0.8]).tolist()
    return {
        "ratio": statistics.median(ordered),
        "ratio_p20": p20,
        "ratio_p80": p80,
        "ratio_low": ordered[rank],
        "ratio_high": ordered[n - 1 - rank],
    }


def measure(
    benchmark: Any,
    reader: Reader,
    ours: Call,
    opponents: Mapping[str, Call],
    *,
    moved: int,
    rounds: int,
    calls: int = 1,
    patience: float = PATIENCE,
    warm: bool = False,
    goals: Mapping[str, tuple[float, float | None]] | None = None,
) -> dict[str, Any]:
    """Time `ours` and each competitor alternately, with `calls` calls per round.

    Args:
        benchmark: pytest-benchmark's fixture; it times ours.
        moved: bytes that the work has to move, for shares and floors.
        patience: seconds per competitor, which limit its rounds.
        warm: whether the checks have already run all of them, so that every call is timed.
        goals: required and stretch value of an opponent's ratio (by its name), of "share" (of the
            read bandwidth) or of "floor" (multiples of the time to move the bytes).

    Returns:
        The measured fields of a row.
    """
    limits = {}
    for name, call in opponents.items():
        affordable = rounds if warm else max(FEWEST, int(patience / calls / timed(call)))
        limits[name] = min(rounds, affordable)
    for _ in range(0 if warm else 2):
        ours()
    seconds: dict[str, list[float]] = {name: [] for name in opponents}
    reads: dict[str, list[float]] = {}

    def others() -> None:
        if moved >= IN_ROUNDS:
            reader.read(reads)
        for name, call in opponents.items():
            if len(seconds[name]) < limits[name]:
                seconds[name].append(timed(call, calls))

    # Ours comes first in every second round, so that drift and cache state favour neither.
    started = itertools.count()

    def before() -> None:
        if (number := next(started)) % 2 == 0:
            if number:
                others()  # of the previous round
            others()

    if moved < IN_ROUNDS:
        for _ in range(5):
            reader.read(reads)
    benchmark.pedantic(lambda: timed(ours, calls), setup=before, rounds=rounds)
    if rounds % 2 == 0:
        others()
    if moved < IN_ROUNDS:
        for _ in range(5):
            reader.read(reads)
    own = [t / calls for t in benchmark.stats.stats.data]

    way = min(reads, key=lambda name: statistics.median(reads[name]))
    rates = [READ_BYTES / t for t in reads[way]]
    if moved < IN_ROUNDS:
        share = moved / statistics.median(own) / statistics.median(rates)
    else:
        share = statistics.median(moved / t / r for t, r in zip(own, rates, strict=True))
    against = {
        name: {
            "seconds": spread(times),
            "rounds": len(times),
            # Our rounds after the competitor's last one have no pair.
            **ratio_of_rounds([t / o for t, o in zip(times, own, strict=False)]),
        }
        for name, times in seconds.items()
    }
    measured = {name: found["ratio"] for name, found in against.items()}
    measured |= {"share": share, "floor": 1 / share}
    return {
        "rounds": rounds,
        "calls": calls,
        "seconds": spread(own),
        "bytes": moved,
        "gb_per_s": moved / statistics.median(own) / 1e9,
        "read": {"gb_per_s": statistics.median(rates) / 1e9, "way": way},
        "share": share,
        "opponents": against,
        "goals": {
            name: {"required": required, "stretch": stretch, "measured": measured[name]}
            for name, (required, stretch) in (goals or {}).items()
        },
    }


if __name__ == "__main__":
    print(results_folder().relative_to(ROOT))
