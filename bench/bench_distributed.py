"""The cost of a sharded state compared with a replicated one:
`python -m bench.bench_distributed SAMPLES RANKS [KEEP]` prints a row for each, with gloo ranks on
this machine, one thread each.

A row has the seconds of an epoch's start and one rank's CPU seconds in it; the bytes that a rank
sends, as a multiple of kept samples / ranks; a rank's peak memory growth in megabytes, with state,
log and sampler; nanoseconds per drawn id; and microseconds per call of cross_entropy that writes
128 rows. Times are medians over the rounds. All ranks check that both kinds of states draw the same
order.
"""

import json
import socket
import statistics
import sys
import time
from collections import deque
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

import emp_kernels as emp
from bench import harness

ROUNDS = 5  # epochs; the first has no entries to exchange
ROWS, CLASSES, CALLS = 128, 100, 200
_SENT = {  # bytes sent for the given tensor, by ring and pairwise algorithms
    "all_gather": lambda arguments, ranks: arguments[1].nbytes * (ranks - 1),
    "all_reduce": lambda arguments, ranks: 2 * arguments[0].nbytes * (ranks - 1) // ranks,
    "all_to_all_single": lambda arguments, ranks: arguments[1].nbytes * (ranks - 1) // ranks,
}


class Sent:
    """Counts the bytes that this rank gives to torch.distributed."""

    def __init__(self, ranks: int) -> None:
        self.bytes = 0
        for name, size in _SENT.items():
            setattr(dist, name, self._counted(getattr(dist, name), size, ranks))

    def _counted(self, collective, size, ranks):
        def call(*arguments, **options):
            self.bytes += size(arguments, ranks)
            return collective(*arguments, **options)

        return call


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


def epochs_of(kind: str, samples: int, keep: float, sent: Sent) -> tuple[dict, list[torch.Tensor]]:
    """A row, and this rank's orders."""
    state = made(kind, samples)
    sampler = emp.EMPSampler(state, keep, warmup_epochs=0)
    found, orders = {"seconds": [], "cpu": [], "sent": [], "draw": []}, []
    for epoch in range(ROUNDS):
        dist.barrier()
        sent.bytes, began, busy = 0, time.perf_counter(), time.process_time()
        iterator = iter(sampler)
        found["seconds"].append(time.perf_counter() - began)
        found["cpu"].append(time.process_time() - busy)
        found["sent"].append(sent.bytes)
        ids = torch.empty(sampler.epoch_length(epoch), dtype=torch.int64)
        began = time.perf_counter()
        if epoch == 0:
            ids.copy_(torch.tensor(list(iterator)))
        else:
            deque(iterator, maxlen=0)
            ids = sampler._epochs.running.ids
        found["draw"].append((time.perf_counter() - began) / len(ids))
        orders.append(ids.clone() if epoch == 1 else ids[:0])
        for part in ids.split(1 << 16):
            values = ((part * 37 + epoch * 11) % 1009).float() / 7
            state.update(part, emp.Scores(values * 1.25, values, values / 4, values))
    logits = torch.randn(ROWS, CLASSES)
    labels = torch.randint(CLASSES, (ROWS,))
    ids = torch.randint(samples, (CALLS, ROWS))
    began = time.process_time()
    for batch in ids:
        emp.cross_entropy(logits, labels, state, indices=batch)
    call = (time.process_time() - began) / CALLS
    share = samples * keep / dist.get_world_size()
    return {
        "state": kind,
        "start_seconds": statistics.median(found["seconds"][1:]),
        "start_cpu_seconds": statistics.median(found["cpu"][1:]),
        "sent_bytes_per_kept_share": max(found["sent"][1:]) / share,
        "draw_ns": 1e9 * statistics.median(found["draw"][1:]),
        "call_cpu_us": 1e6 * call,
    }, orders


def on_rank(rank: int, ranks: int, port: int, samples: int, keep: float) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    sent, orders = Sent(ranks), {}
    torch.randn(8, 8).softmax(1)
    for kind in ("shared", "whole"):
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
        row, orders[kind] = epochs_of(kind, samples, keep, sent)
        row |= {"samples": samples, "ranks": ranks, "keep": keep}
        row["megabytes"] = resident("VmHWM") - before
        if rank == 0:
            print(json.dumps(row | harness.origin()), flush=True)
    for ours, theirs in zip(orders["shared"], orders["whole"], strict=True):
        assert torch.equal(ours, theirs)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    samples, ranks = int(float(sys.argv[1])), int(sys.argv[2])
    keep = float(sys.argv[3]) if len(sys.argv) > 3 else 0.3
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    processes.start_processes(on_rank, (ranks, port, samples, keep), ranks, start_method="spawn")
