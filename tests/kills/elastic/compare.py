"""Whether a killed training trained what the undisturbed one did."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch

NOT_OF_TRAINING = ("synced_at",)  # one rank alone has nobody to sync with


def lives(folder: Path) -> list[int]:
    """On how many ranks each life began to train."""
    lines = (line.split() for line in (folder / "journal").read_text().splitlines())
    return [int(words[2]) for words in lines if words[0] == "begin"]


def epochs(folder: Path) -> dict[int, Counter[int]]:
    """How often each epoch trained each id, as the lives that went on from one another did."""
    steps: dict[int, list[tuple[int, list[int]]]] = {}
    for line in (folder / "journal").read_text().splitlines():
        kind, number, *rest = line.split()
        if kind == "begin":
            steps = {step: parts for step, parts in steps.items() if step < int(number)}
        else:
            epoch, *ids = map(int, rest)
            steps.setdefault(int(number), []).append((epoch, ids))
    found: dict[int, Counter[int]] = {}
    for parts in steps.values():
        for epoch, ids in parts:
            found.setdefault(epoch, Counter()).update(ids)
    return found


def differences(whole: Path, run: Path) -> list[str]:
    """What is not alike, in words: nothing, if the run is right."""
    found, ours, theirs = [], epochs(run), epochs(whole)
    for epoch in sorted({*ours, *theirs}):
        got, want = ours.get(epoch, Counter()), theirs.get(epoch, Counter())
        if got != want:
            found.append(
                f"epoch {epoch}: not trained {sorted((want - got).elements())}, "
                f"trained too often {sorted((got - want).elements())}"
            )
    results = [torch.load(folder / "result", weights_only=True) for folder in (run, whole)]
    for part in ("weights", "state"):
        one, other = (result[part] for result in results)
        unlike = [name for name in one if not _same(one[name], other[name])]
        unlike = [name for name in unlike if name not in NOT_OF_TRAINING]
        if unlike:
            found.append(f"other {', '.join(unlike)} of {part}")
    return found


def _same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return one == other
