"""Compares a killed training with the undisturbed one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

from .life import Training

FIELDS = ("score", "loss", "entropy", "updates", "seen_at")  # of the state


def journal(folder: Path, rank: int) -> dict[int, tuple[int, str, tuple[int, ...]]]:
    """Epoch, loss and ids of each batch, over all resumed processes of a training."""
    batches: dict[int, tuple[int, str, tuple[int, ...]]] = {}
    for line in (folder / f"journal-{rank}").read_text().splitlines():
        kind, number, *rest = line.split()
        if kind == "begin":
            batches = {n: batch for n, batch in batches.items() if n <= int(number)}
        else:
            epoch, loss, *ids = rest
            batches[int(number)] = (int(epoch), loss, tuple(map(int, ids)))
    return batches


def epochs(folder: Path, ranks: int) -> dict[int, Counter[int]]:
    """How often each epoch trained each id, on all ranks."""
    found: dict[int, Counter[int]] = {}
    for rank in range(ranks):
        for epoch, _, ids in journal(folder, rank).values():
            found.setdefault(epoch, Counter()).update(ids)
    return found


def differences(training: Training, whole: Path, run: Path) -> list[str]:
    """Descriptions of all differences; empty if the run is correct."""
    found = []
    ranks = range(training.ranks)
    ours, theirs = epochs(run, training.ranks), epochs(whole, training.ranks)
    for epoch in sorted({*ours, *theirs}):
        got, want = ours.get(epoch, Counter()), theirs.get(epoch, Counter())
        if got != want:
            found.append(
                f"epoch {epoch}: not trained {sorted((want - got).elements())}, "
                f"trained too often {sorted((got - want).elements())}"
            )
    for rank in ranks:
        if journal(run, rank) != journal(whole, rank):
            found.append(f"rank {rank}: other batches or losses")
        results = [
            torch.load(folder / f"result-{rank}", weights_only=True) for folder in (run, whole)
        ]
        names = [("net", name) for name in results[0]["net"]] + [("state", x) for x in FIELDS]
        unlike = [
            name
            for part, name in names
            if not torch.equal(*(result[part][name].view(-1) for result in results))
        ]
        if unlike:
            found.append(f"rank {rank}: other {', '.join(unlike)}")
    return found
