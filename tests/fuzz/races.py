"""Another thread writes labels, ids, indices or the state itself while a call runs."""

from __future__ import annotations

import re

import numpy as np
import torch

import emp_kernels as emp

from .cases import Case, meanwhile

BAD = [-1, -(2**40), 2**40, 2**62, -(2**63)]
WORDED = re.compile(r"(EMPState\.)?[a-z_]+: \w+ must ")


def _overwriting(case: Case, numbers: torch.Tensor):
    """Writes bad values over some of `numbers`, and the good ones again."""
    view = numbers.numpy()
    good, bad = view.copy(), view.copy()
    places = case.random.integers(0, len(bad), max(1, len(bad) // case.one_of([2, 50, 5000])))
    bad[places] = case.random.choice(np.array(BAD), len(places))

    def overwrite() -> None:
        np.copyto(view, bad)  # copies of this size are made without the interpreter's lock
        np.copyto(view, good)

    return overwrite, good


def overwritten(case: Case) -> None:
    """Labels, ids or indices that change during a call must give a result or a proper ValueError.
    Out-of-range accesses would end the process or show in later calls."""
    n, classes = case.one_of([600, 5000, 40_000]), case.one_of([2, 10])
    logits = torch.from_numpy(case.random.standard_normal((n, classes), dtype=np.float32))
    labels = torch.from_numpy(case.random.integers(0, classes, n))
    ids = torch.from_numpy(case.random.permutation(n))
    state = emp.EMPState(n, device="cpu")
    scored = emp.score(logits, labels)
    victim = case.one_of(["labels", "ids"])
    calls = {
        "labels": [
            lambda: emp.score(logits, labels),
            lambda: emp.sample_statistics(logits, labels),
            lambda: emp.score_and_select(logits, labels, state, 0.3),
            lambda: emp.cross_entropy(logits, labels, state),
            lambda: emp.cross_entropy(logits, labels, reduction="sum", ignore_index=-1),
        ],
        "ids": [
            lambda: state.update(ids, scored),
            lambda: emp.score_and_select(logits, labels, state, 0.3, indices=ids),
            lambda: emp.cross_entropy(logits, labels, state, indices=ids),
            lambda: emp.gather(logits, ids),
            lambda: emp.gather({"x": logits, "y": labels}, ids),
        ],
    }[victim]
    torch.set_num_threads(case.one_of([1, 2]))
    numbers = labels if victim == "labels" else ids
    overwrite, good = _overwriting(case, numbers)
    with meanwhile(overwrite), case.mode():
        for _ in range(4):
            for call in calls:
                try:
                    call()
                except ValueError as error:
                    if not WORDED.match(str(error)):
                        raise
                    case.count("calls refused: numbers overwritten meanwhile")
                case.count("calls whose numbers are overwritten")
    numbers.copy_(torch.from_numpy(good))
    again = emp.score(logits, labels)
    for ours, theirs in zip(again, scored, strict=True):
        if not torch.equal(ours, theirs):
            raise AssertionError("scores differ after the race")
    if not torch.equal(emp.gather(logits, ids), logits[ids]):
        raise AssertionError("gathered rows differ after the race")
    want = scored.loss
    if victim == "ids":  # row j is sample ids[j]
        want = torch.empty_like(want).index_copy_(0, ids, want)
    written = state.updates > 0
    if not torch.equal(state.loss[written], want[written]):
        raise AssertionError("the state holds losses that are no row's")


def snapshot(case: Case) -> None:
    """state_dict while another thread updates: each number is an old or a new one of its sample."""
    n = case.one_of([700, 20_000, 50_000])
    state = emp.EMPState(n, device="cpu")
    sample = torch.arange(n)
    writes = []
    for version in range(1, 5):
        ids = torch.from_numpy(case.random.permutation(n)) if case.below(2) else sample
        told = ((ids % 4096) * 8 + version).float()  # which sample's number it is, and whose
        writes.append((ids, emp.Scores(told, told + 65536, -told, told)))
    turn = 0

    def update() -> None:
        nonlocal turn
        turn += 1
        state.update(*writes[turn % 4])

    with meanwhile(update), case.mode():
        taken = [state.state_dict() for _ in range(8)]
    for copy in taken:
        for name, offset, sign, never in (
            ("score", 0, 1, torch.inf), ("loss", 65536, 1, 0.0), ("entropy", 0, -1, 0.0),
        ):  # fmt: skip
            values = copy[name]
            told = sign * (values - offset)
            version = told - (sample % 4096) * 8
            good = (values == never) | ((version >= 1) & (version <= 4) & (version % 1 == 0))
            if not good.all():
                row = int((~good).nonzero()[0])
                raise AssertionError(
                    f"{int((~good).sum())} of {n}: {name}[{row}] is {float(values[row])!r}, which "
                    "nobody wrote"
                )
        if int(copy["updates"].min()) < 0 or int(copy["updates"].max()) > turn:
            raise AssertionError("more updates than calls")
        if int(copy["seen_at"].min()) < 0 or int(copy["seen_at"].max()) > turn:
            raise AssertionError("seen at a call that was not made")
    case.count("snapshots beside a thread that updates", len(taken))
