"""Selections: exact for constant scores, and well-formed for a state that another thread
updates."""

from __future__ import annotations

import numpy as np
import torch

import emp_kernels as emp

from .. import oracle
from .cases import Case, meanwhile
from .distributions import keep, order, scores, size

DTYPES = [torch.float32, torch.float32, torch.float32, torch.float16, torch.bfloat16]


def _laid_out(case: Case, values: torch.Tensor) -> torch.Tensor:
    """The same scores with other strides, or as a lazily negated view."""
    layout = case.below(10)
    if layout == 0:
        wide = values.new_empty(2 * len(values))
        wide[::2] = values
        return wide[::2]
    if layout == 1:
        return values[:, None].repeat(1, 3).t().contiguous().t()[:, 1]
    if layout == 2:
        return torch._neg_view(-values)
    if layout == 3:
        return torch.cat([values.new_zeros(1), values])[1:]  # not aligned to a vector
    return values


def selection(case: Case) -> None:
    """emp.select against a stable sort."""
    n = size(case)
    dtype = case.one_of(DTYPES)
    values = torch.from_numpy(scores(case, n)).to(dtype)
    ranks = order(values.float().numpy())
    given = _laid_out(case, values)
    wanted = [keep(case, n) for _ in range(8)]
    torch.set_num_threads(case.one_of([1, 2, 3, 4]) if n > 30_000 else 1)
    with case.mode():
        found = [emp.select(given, asked) for asked in wanted]
    for asked, got in zip(wanted, found, strict=True):
        if not np.array_equal(got.numpy(), np.sort(ranks[: oracle.kept(asked, n)])):
            raise AssertionError(f"wrong positions of {n} scores {dtype}, keep {asked}")
    case.count("selections", len(wanted))


def selection_beside_updates(case: Case) -> None:
    """EMPState.select of a state that is being updated: K ids, ascending, distinct, in range."""
    n = case.one_of([1, 17, 300, 2000, 20_000, 32_768, 32_769, 40_000])
    state = emp.EMPState(n, device="cpu")
    writes = []
    for _ in range(3):
        ids = case.random.integers(0, n, n) if case.below(2) else case.random.permutation(n)
        score, loss = (torch.from_numpy(scores(case, n)) for _ in range(2))
        score = torch.where(loss.isnan(), 0.0, score)
        loss = torch.where(loss.isfinite(), loss, 1.0)
        writes.append((torch.from_numpy(ids), emp.Scores(score, loss, loss, loss)))
    logits = torch.from_numpy(case.random.standard_normal((n, 2), dtype=np.float32))
    labels = torch.zeros(n, dtype=torch.int64)
    whole = case.below(4) == 0
    turn = 0

    def update() -> None:
        nonlocal turn
        turn += 1
        if whole and turn % 4 == 0:
            emp.score_and_select(logits, labels, state, 1)
        else:
            state.update(*writes[turn % 3])

    torch.set_num_threads(case.one_of([1, 2, 3]) if n > 30_000 else 1)
    wanted = [keep(case, n) for _ in range(40 if n > 5000 else 200)]
    with meanwhile(update), case.mode():
        found = [state.select(asked).numpy() for asked in wanted]
    for asked, got in zip(wanted, found, strict=True):
        count = oracle.kept(asked, n)
        if len(got) != count or got[0] < 0 or got[-1] >= n or (np.diff(got) <= 0).any():
            raise AssertionError(
                f"keep {asked} of {n} samples beside updates: {len(got)} ids, {count} wanted, from "
                f"{got.min()} to {got.max()}, ascending: {bool((np.diff(got) > 0).all())}"
            )
    case.count("selections beside a thread that updates", len(wanted))
