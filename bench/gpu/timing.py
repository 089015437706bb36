"""Device times, and the rows of GPU measurements.

Our call and its peers are timed alternately, round by round. Shares are relative to the copy
bandwidth measured in the same process, which counts bytes read and bytes written.
"""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from bench import harness
from emp_kernels.experiments import provenance

Call = Callable[[], Any]
COPIED = 2**32  # bytes of the reference copy, far larger than the L2 cache
AHEAD = 2**31  # bytes written before each call, while the host queues the call


def seconds_of(calls: Mapping[str, Call], rounds: int) -> dict[str, list[float]]:
    """Device seconds of each call, `rounds` times, after two warm-up rounds.

    As in a training loop, the device is still busy when a call is queued, so that host time does
    not count, and the caches hold nothing from the last call.
    """
    ahead = torch.empty(AHEAD, dtype=torch.uint8, device="cuda")
    events: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {n: [] for n in calls}
    for turn in range(rounds + 2):
        for name, call in calls.items():
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            ahead.zero_()
            start.record()
            call()
            end.record()
            if turn >= 2:
                events[name].append((start, end))
        torch.cuda.synchronize()
    return {
        name: [start.elapsed_time(end) / 1e3 for start, end in pairs]
        for name, pairs in events.items()
    }


def copy_bandwidth() -> float:
    """Bytes per second of a device-to-device copy, counting bytes read and bytes written."""
    source = torch.empty(COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    times = seconds_of({"copy": lambda: target.copy_(source)}, 10)["copy"]
    return 2 * COPIED / statistics.median(times)


def host_seconds(call: Call, calls: int = 200) -> list[float]:
    """Host seconds to issue one call without waiting for the device, in nine rounds of `calls`."""
    for _ in range(20):
        call()
    rounds = []
    for _ in range(9):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        rounds.append((time.perf_counter() - start) / calls)
    return rounds


def captured(call: Call) -> Call:
    """The replay of a CUDA graph that captured `call`."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def origin() -> dict[str, Any]:
    """The fields that every row of a run has."""
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "machine": harness.machine(),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "date": datetime.date.today().isoformat(),
    }


def row(
    case: str,
    ours: list[float],
    *,
    moved: int | None = None,
    copy: float | None = None,
    peers: Mapping[str, list[float]] | None = None,
    not_measured: Mapping[str, str] | None = None,
    goals: Mapping[str, tuple[float, float]] | None = None,
    fields: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The row of a case: our times, its peers' times, and values derived from them.

    Args:
        ours, peers: seconds of each round.
        moved: bytes that the work has to move.
        copy: measured copy bandwidth in bytes per second.
        not_measured: peers that could not run, and why.
        goals: required and stretch value of "share", "floor", "microseconds" or a peer's ratio.
    """
    seconds = harness.spread(ours)
    result: dict[str, Any] = {"case": case, **(fields or {}), "rounds": len(ours)}
    measured = {"microseconds": seconds["median"] * 1e6}
    result |= {"seconds": seconds, "opponents": {}, "not_measured": dict(not_measured or {})}
    if moved is not None and copy is not None:
        rate = moved / seconds["median"]
        result |= {"bytes": moved, "gb_per_s": rate / 1e9, "copy_gb_per_s": copy / 1e9}
        measured |= {"share": rate / copy, "floor": copy / rate}
        result |= {"share": rate / copy}
    for name, times in (peers or {}).items():
        ratios = harness.ratio_of_rounds([t / o for t, o in zip(times, ours, strict=True)])
        spread = harness.spread(times)
        result["opponents"][name] = {"seconds": spread, "rounds": len(times), **ratios}
        measured[name] = ratios["ratio"]
    result["goals"] = {
        name: {"required": required, "stretch": stretch, "measured": measured.get(name)}
        for name, (required, stretch) in (goals or {}).items()
    }
    return result | origin()


def line(found: Mapping[str, Any]) -> str:
    """The row as a line of the printed table."""
    parts = [f"{found['case']:<44}", f"{found['seconds']['median'] * 1e6:>12.1f} us"]
    if "share" in found:
        parts.append(f"{found['gb_per_s']:>7.0f} GB/s {found['share']:>6.2f} of copy")
    parts += [f"{name} {peer['ratio']:.2f}x" for name, peer in found["opponents"].items()]
    parts += [f"{name}: not measured ({why})" for name, why in found["not_measured"].items()]
    return "  ".join(parts)
