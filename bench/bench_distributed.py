"""The cost of a sharded state compared with a replicated one:
`python -m bench.bench_distributed SAMPLES RANKS [KEEP] [shared|whole]` prints a row for each, with
gloo ranks on this machine, one thread each. `bench.distributed_model` compares rows with its model.

A row has the seconds of an epoch's start and the processor's seconds of one rank in it; the bytes
and messages that a rank sends, and the bytes as a multiple of kept samples / ranks; by how many
megabytes a rank has grown, at most, with state, log and sampler, and between two syncs; nanoseconds
for drawing an id; microseconds, of the processor, of a call of cross_entropy that writes 128 rows,
and of a training step of such a batch in one process with both kinds in turn. Times are medians
over the rounds. Each kind has processes of its own, which have to draw the same orders.
"""

import hashlib
import json
import socket
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as processes
from torch import nn

import emp_kernels as emp
from bench import harness

KINDS = ("shared", "whole")
ROUNDS = 5  # epochs; the first has no entries to exchange
ROWS, CLASSES, CALLS = 128, 100, 200
CALL = 1 << 16  # ids that an epoch writes at a time


class Sent:
    """Counts what this rank gives to torch.distributed for others: bytes, and messages as rings and
    pairs send them."""

    def __init__(self, rank: int, ranks: int) -> None:
        self.bytes = self.messages = 0
        self.rank, self.others = rank, ranks - 1
        for name in ("all_gather", "all_reduce", "all_to_all_single"):
            setattr(dist, name, self._counted(getattr(dist, name), getattr(self, f"_{name}")))

    def _counted(self, collective, count):
        def call(*arguments, **options):
            size, messages = count(*arguments)
            self.bytes += size
            self.messages += messages
            return collective(*arguments, **options)

        return call

    def _all_gather(self, received, tensor):
        return tensor.nbytes * self.others, self.others

    def _all_reduce(self, tensor, *_):
        return 2 * tensor.nbytes * self.others // (self.others + 1), 2 * self.others

    def _all_to_all_single(self, received, tensor, received_rows, sent_rows):
        kept = sent_rows[self.rank] * tensor[:1].nbytes
        return tensor.nbytes - kept, self.others


def resident(name: str) -> float:
    """Megabytes of this process: current or, with VmHWM, peak. Linux only."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name))


def made(kind: str, samples: int) -> emp.EMPState:
    """A state in which every sample was seen."""
    state = emp.EMPState(samples) if kind == "whole" else emp.distributed.ShardedState(samples)
    own = range(samples) if kind == "whole" else state.owned
    for start in range(0, len(own), 1 << 20):
        ids = torch.arange(own.start + start, own.start + min(start + (1 << 20), len(own)))
        state.score[start : start + len(ids)] = (ids * 7919 % 104_729).float() / 1e4
    for counts in (state.updates, state.seen_at, state.clock):
        counts.fill_(1)
    state.synced_at = 1
    return state


def step_seconds(states: dict[str, emp.EMPState], samples: int) -> dict[str, float]:
    """Processor's seconds of a training step of a small network, with each state in turn: the
    least of each batch's, in the mean."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, CLASSES))
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    inputs, labels = torch.randn(ROWS, 64), torch.randint(CLASSES, (ROWS,))
    batches = torch.randint(samples, (CALLS, ROWS))
    best = {kind: [float("inf")] * CALLS for kind in states}
    for turn in range(10):
        for i, ids in enumerate(batches):
            for kind in states if (turn + i) % 2 else reversed(states):
                began = time.process_time()
                loss = emp.cross_entropy(net(inputs), labels, states[kind], indices=ids)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                best[kind][i] = min(best[kind][i], time.process_time() - began)
    return {kind: statistics.fmean(seconds) for kind, seconds in best.items()}


def call_seconds(state: emp.EMPState, samples: int) -> float:
    """Processor's seconds of a call that scores a batch into the state."""
    logits = torch.randn(ROWS, CLASSES)
    labels = torch.randint(CLASSES, (ROWS,))
    ids = torch.randint(samples, (CALLS, ROWS))
    began = time.process_time()
    for batch in ids:
        emp.cross_entropy(logits, labels, state, indices=batch)
    return (time.process_time() - began) / CALLS


def epochs_of(
    kind: str, samples: int, keep: float, sent: Sent
) -> tuple[dict[str, Any], list[str], emp.EMPState]:
    """A row, what this rank's orders hash to, and the state behind them."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    state = made(kind, samples)
    sampler = emp.EMPSampler(state, keep, warmup_epochs=0)
    names = ("seconds", "cpu", "sent", "messages", "draw", "between")
    found, orders = {name: [] for name in names}, []
    for epoch in range(ROUNDS):
        dist.barrier()
        sent.bytes = sent.messages = 0
        began, busy = time.perf_counter(), time.process_time()
        iterator = iter(sampler)
        found["seconds"].append(time.perf_counter() - began)
        found["cpu"].append(time.process_time() - busy)
        found["sent"].append(sent.bytes)
        found["messages"].append(sent.messages)
        ids = sampler._epochs.running.ids
        began = time.perf_counter()
        deque(iterator, maxlen=0)
        found["draw"].append((time.perf_counter() - began) / len(ids))
        orders.append(hashlib.sha256(ids.numpy()).hexdigest())
        for part in ids.split(CALL):
            values = ((part * 37 + epoch * 11) % 1009).float() / 7
            state.update(part, emp.Scores(values * 1.25, values, values / 4, values))
        del ids, part, values, iterator
        found["between"].append(resident("VmRSS") - before)
    share = samples * keep / dist.get_world_size()
    row = {
        "state": kind,
        "samples": samples,
        "ranks": dist.get_world_size(),
        "keep": keep,
        "start_seconds": statistics.median(found["seconds"][1:]),
        "start_cpu_seconds": statistics.median(found["cpu"][1:]),
        "sent_bytes": max(found["sent"][1:]),
        "sent_bytes_per_kept_share": max(found["sent"][1:]) / share,
        "sent_messages": max(found["messages"][1:]),
        "megabytes": resident("VmHWM") - before,
        "megabytes_between_syncs": max(found["between"]),
        "draw_ns": 1e9 * statistics.median(found["draw"][1:]),
    }
    return row, orders, state


def start_on(ranks: int, target: Callable, *arguments: Any) -> None:
    """`target(rank, ...)` in gloo processes of a thread each, where collectives are counted."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes.start_processes(
        _on_rank, (ranks, port, target, arguments), ranks, start_method="spawn"
    )


def _on_rank(rank: int, ranks: int, port: int, target: Callable, arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    for state in (emp.EMPState(9), emp.distributed.ShardedState(9)):  # what first calls load
        emp.cross_entropy(torch.randn(9, 3), torch.arange(9) % 3, state, indices=torch.arange(9))
        list(emp.EMPSampler(state, warmup_epochs=0))
    target(rank, *arguments)
    dist.barrier()
    dist.destroy_process_group()


def measure_epochs(rank: int, kind: str, samples: int, keep: float, folder: Path) -> None:
    """Leaves a row in `folder`, and what each rank's orders hash to."""
    row, orders, state = epochs_of(kind, samples, keep, Sent(rank, dist.get_world_size()))
    row["call_cpu_us"] = 1e6 * call_seconds(state, samples)
    torch.save(orders, folder / f"{kind}-{rank}")
    if rank == 0:
        (folder / kind).write_text(json.dumps(row | harness.origin()), encoding="utf-8")


def measure_steps(rank: int, samples: int, folder: Path) -> None:
    states = {kind: made(kind, samples) for kind in KINDS}
    (folder / "steps").write_text(json.dumps(step_seconds(states, samples)), encoding="utf-8")


def rows_of(
    samples: int, ranks: int, keep: float, kinds: Sequence[str], folder: Path
) -> list[dict[str, Any]]:
    """A row for each kind, which is measured in processes of its own."""
    for kind in kinds:
        start_on(ranks, measure_epochs, kind, samples, keep, folder)
    for rank in range(ranks):
        orders = [torch.load(folder / f"{kind}-{rank}") for kind in kinds]
        assert all(of_kind == orders[0] for of_kind in orders)
    rows = [json.loads((folder / kind).read_text(encoding="utf-8")) for kind in kinds]
    if len(kinds) == len(KINDS):
        start_on(1, measure_steps, min(samples, 10**6), folder)
        steps = json.loads((folder / "steps").read_text(encoding="utf-8"))
        rows = [row | {"step_cpu_us": 1e6 * steps[row["state"]]} for row in rows]
    return rows


if __name__ == "__main__":
    arguments = sys.argv[1:]
    keep = float(arguments[2]) if len(arguments) > 2 else 0.3
    with tempfile.TemporaryDirectory() as name:
        sizes = int(float(arguments[0])), int(arguments[1])
        for row in rows_of(*sizes, keep, tuple(arguments[3:]) or KINDS, Path(name)):
            print(json.dumps(row), flush=True)
