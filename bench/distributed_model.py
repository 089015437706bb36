"""What an epoch's start costs a rank, of both kinds of states, from a thousand samples to 10**12:

    python -m bench.distributed_model ROWS [BANDWIDTH] [LATENCY]

prints what `bench.bench_distributed` measured (its rows are in that file) beside the model, and the
model beyond, for a network of that bandwidth a rank in GB/s and latency a message in microseconds.

Bytes and messages follow from the collectives, which are written down here as the package makes
them, with messages as rings and pairs send them; memory from the tensors that live at once. The
processor's time is in proportion to what is sorted, merged and scanned: three coefficients for each
kind, fitted to the rows of at most 2 ranks and `FITTED` samples, so that all others test the model.
In the steady state: each rank trains keep * samples / ranks samples an epoch, all of them once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bench import tables
from bench.bench_distributed import CALL
from emp_kernels.distributed import orders, selection, sharing, states, write_log

FITTED = 10**6
BANDWIDTH, LATENCY = 10.0, 10.0  # GB/s, microseconds
FAR = [(10**8, 8), (10**9, 64), (10**10, 512), (10**11, 1024), (10**12, 4096)]  # samples, ranks
STATE, ENTRY = 29, 20  # bytes of a sample, and of an entry on its way
BASE = 5e6  # bytes of what is small
_KEY_BITS, _VOTES = 32, 68  # of scores, and of the terms that the ranks agree on


class Epoch(NamedTuple):
    """An epoch's start: of so many samples on so many ranks, `keep` of them drawn and trained."""

    samples: int
    ranks: int
    keep: float
    call: int = CALL  # rows that a call writes
    ties: bool = True  # whether ranks share out what ties with the last one kept; few epochs do not

    @property
    def owned(self) -> int:
        return -(-self.samples // self.ranks)

    @property
    def kept(self) -> int:
        """Of a rank."""
        return -(-round(self.keep * self.samples) // self.ranks)


class Sends(NamedTuple):
    """What a rank sends in one collective: bytes and messages."""

    bytes: int
    messages: int


def _all_gather(size: int, ranks: int) -> Sends:
    return Sends(size * (ranks - 1), ranks - 1)


def _all_reduce(size: int, ranks: int) -> Sends:
    return Sends(2 * size * (ranks - 1) // ranks, 2 * (ranks - 1))


def _all_to_all(size: int, ranks: int) -> Sends:
    return Sends(size * (ranks - 1) // ranks, ranks - 1)


def log_blocks(epoch: Epoch) -> int:
    """How many blocks an epoch's log has, each of whole calls, which are also sent one by one."""
    blocks = room = written = 0
    for start in range(0, epoch.kept, epoch.call):
        rows = min(epoch.call, epoch.kept - start)
        if rows > room:
            room = max(rows, min(write_log._MOST, max(write_log._FEWEST, written)))
            blocks += 1
        room -= rows
        written += rows
    return blocks


def _pieces(count: int, most: int) -> list[int]:
    return [min(most, count - start) for start in range(0, count, most)]


def shared_collectives(epoch: Epoch) -> Iterator[Sends]:
    """Those of a ShardedState: the sync, the selection, the window, the order."""
    n, ranks = epoch.kept, epoch.ranks
    yield _all_gather(6 * 8, ranks)  # what the states agree on
    rounds = max(log_blocks(epoch), len(_pieces(n, sharing._DRAWN)))
    for part in range(rounds):
        rows = n * (part + 1) // rounds - n * part // rounds
        yield _all_to_all(4 * 8 * ranks, ranks)
        yield _all_to_all((ENTRY + 4) * rows, ranks)
    yield _all_reduce(4, ranks)  # everything has arrived
    yield _all_gather(8, ranks)  # how many were never seen
    for number, (_, width) in enumerate(selection._digits(_KEY_BITS)):
        yield _all_reduce(8 * ((1 << width) + (0 if number else _VOTES)), ranks)
    if epoch.ties:
        for _, width in selection._digits(max(1, (ranks - 1).bit_length())):
            yield _all_reduce(8 << width, ranks)
    for _ in range(4):  # what the window counts
        yield _all_reduce(8, ranks)
    yield _all_gather(8, ranks)  # how many are kept
    yield _all_gather(8, ranks)  # how many rounds
    for rows in _pieces(n, orders._PIECE):
        yield _all_to_all(8 * ranks, ranks)
        yield _all_to_all(4 * rows, ranks)
        yield _all_to_all(4 * rows, ranks)


def whole_collectives(epoch: Epoch) -> Iterator[Sends]:
    """Those of an EMPState on each rank: the sync. The rest is every rank's own."""
    if epoch.ranks == 1:
        return
    yield _all_gather(6 * 8, epoch.ranks)
    yield _all_gather(8, epoch.ranks)
    for rows in _pieces(epoch.kept, states._ROWS):
        yield _all_gather(28 * rows, epoch.ranks)
    yield _all_reduce(4 * epoch.samples, epoch.ranks)


COLLECTIVES = {"shared": shared_collectives, "whole": whole_collectives}


def sends(kind: str, epoch: Epoch) -> Sends:
    """Of a whole epoch's start."""
    found = list(COLLECTIVES[kind](epoch))
    return Sends(sum(each.bytes for each in found), sum(each.messages for each in found))


def megabytes(kind: str, epoch: Epoch) -> float:
    """What a rank holds at most: the state, the running epoch's order, and the larger of what a
    sync and what the next order needs beside them."""
    n = epoch.kept
    if kind == "shared":
        held = STATE * epoch.owned + epoch.owned + 8 * n  # with the kept samples and a rank's ids
        bringing = (ENTRY + ENTRY + 4) * n  # the log, and what was heard
        ordering = epoch.owned + 8 * n + 4 * n + 8 * n  # mask, selected and asked places, ids
        round_ = 3 * (ENTRY + 4) * min(n, write_log._MOST) + 24 * min(n, write_log._MOST)
        return (BASE + held + max(bringing, ordering) + round_) / 1e6
    ranks, all_kept = epoch.ranks, n * epoch.ranks
    held = STATE * epoch.samples + 8 * all_kept + (8 * n if ranks > 1 else 0)
    piece = min(n, states._ROWS)  # of which gloo gathers a copy, and which is packed and merged
    bringing = 28 * (all_kept + piece * ranks) + 90 * piece + 4 * epoch.samples + 8 * n
    bringing = bringing if ranks > 1 else 0
    ordering = 8 * all_kept * 2 + (8 * n if ranks > 1 else 0)
    return (BASE + held + max(bringing, ordering)) / 1e6


def work(kind: str, epoch: Epoch) -> list[float]:
    """What the processor's time is in proportion to: entries and ids that this rank handles,
    samples that it scans, bytes that it sends (on one machine they are copied)."""
    entries = epoch.kept if kind == "shared" else epoch.kept * epoch.ranks
    scanned = epoch.owned if kind == "shared" else epoch.samples
    return [float(entries), float(scanned), float(sends(kind, epoch).bytes)]


def epoch_of(row: dict[str, Any]) -> Epoch:
    return Epoch(row["samples"], row["ranks"], row["keep"])


def fitted(rows: Sequence[dict[str, Any]], kind: str) -> list[float]:
    """Seconds for a unit of each kind of work, none below 0, by relative errors."""
    used = [r for r in rows if r["state"] == kind and r["samples"] <= FITTED and r["ranks"] <= 2]
    matrix = np.array([work(kind, epoch_of(row)) for row in used])
    seconds = np.array([row["start_cpu_seconds"] for row in used])
    columns = list(range(matrix.shape[1]))
    while True:
        scaled = matrix[:, columns] / seconds[:, None]
        found = np.linalg.lstsq(scaled, np.ones(len(used)), rcond=None)[0]
        if (found >= 0).all():
            return [float(found[columns.index(i)]) if i in columns else 0.0 for i in range(3)]
        del columns[int(found.argmin())]


def seconds(kind: str, epoch: Epoch, coefficients: Sequence[float]) -> float:
    """Of the processor."""
    return float(np.dot(work(kind, epoch), coefficients))


def against_measured(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each row: what was measured, and by how much the model is off."""
    lines = []
    for row in rows:
        kind, epoch = row["state"], epoch_of(row)
        sent = sends(kind, epoch)
        lines.append(
            [
                f"{row['samples']:.0e} samples, ranks: {row['ranks']}, {_NAMES[kind]}",
                *_beside(row["sent_bytes"] / 1e6, sent.bytes / 1e6),
                *_beside(row["sent_messages"], sent.messages),
                *_beside(row["megabytes"], megabytes(kind, epoch)),
                *_beside(row["start_cpu_seconds"], seconds(kind, epoch, fitted(rows, kind))),
                f"{row['step_cpu_us']:.1f}" if "step_cpu_us" in row else "–",
            ]
        )
    names = ("MB sent", "messages", "MB of memory", "processor's seconds")
    headings = ["epoch's start", *(part for name in names for part in (name, "model"))]
    headings.append("training step, µs")
    return tables.markdown(headings, lines)


_NAMES = {"shared": "ShardedState", "whole": "EMPState"}


def _beside(measured: float, modelled: float) -> tuple[str, str]:
    if measured == 0:
        return "0", "0" if modelled == 0 else f"{modelled:.3g}"
    return f"{measured:.4g}", f"{round(100 * (modelled / measured - 1), 1) + 0.0:+.1f} %"


def far(
    rows: Sequence[dict[str, Any]],
    gigabytes: float = BANDWIDTH,
    microseconds: float = LATENCY,
    keep: float = 0.3,
) -> str:
    """The model beyond one machine, a core to each rank."""
    lines = []
    for samples, ranks in FAR:
        for kind in COLLECTIVES:
            epoch = Epoch(samples, ranks, keep)
            sent = sends(kind, epoch)
            busy = seconds(kind, epoch, fitted(rows, kind))
            busy -= fitted(rows, kind)[2] * sent.bytes  # copies that a network makes
            network = sent.bytes / gigabytes / 1e9 + sent.messages * microseconds / 1e6
            lines.append(
                [
                    f"{samples:.0e} samples, ranks: {ranks}, {_NAMES[kind]}",
                    f"{sent.bytes / 1e6:,.0f}",
                    f"{sent.bytes / (keep * samples / ranks):.1f}",
                    f"{sent.messages:,}",
                    f"{megabytes(kind, epoch):,.0f}",
                    f"{busy:.3g}",
                    f"{network:.3g}",
                ]
            )
    headings = ["modelled", "MB sent", "bytes × ranks / kept", "messages", "MB of memory"]
    return tables.markdown([*headings, "processor, s", "network, s"], lines)


def table(rows: list[dict[str, Any]], folder: str = "") -> str:
    """What docs/benchmarks.md shows."""
    first = rows[0]
    return "\n\n".join(
        [
            against_measured(rows),
            far(rows),
            f"Modelled for {BANDWIDTH:g} GB/s a rank and {LATENCY:g} µs a message.",
            f"{first['machine']['cpu']}, {first['machine']['cpus']} cores, commit "
            f"{first['commit'][:12]}, torch {first['versions']['torch']}.",
        ]
    )


if __name__ == "__main__":
    lines = Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()
    measured = [json.loads(line) for line in lines]
    print(against_measured(measured), far(measured, *map(float, sys.argv[2:])), sep="\n\n")
