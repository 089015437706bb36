"""select of 0.3 n, against torch's topk and sort and NumPy's argpartition and sort; how its
cost grows with n and with K."""

import numpy as np
import pytest
import torch

import emp_kernels as emp
from bench import harness

KEEP = 0.3
TOPK, UNSORTED, ARGPARTITION = "topk + sort", "topk", "argpartition + sort"
CASES = [  # n, rounds, calls per round, and the goals
    (10**5, 41, 20, {}),
    (10**6, 25, 3, {TOPK: (16, 25), "floor": (6, 3)}),
    (10**7, 11, 1, {TOPK: (25, 40), "floor": (6, 2.5)}),
    (5 * 10**7, 9, 1, {TOPK: (25, 40), "floor": (6, 2.5)}),
]
MOST = 5 * 10**8  # scores of the largest case
FIXED = 10**8  # scores, while K grows
GROWN = [
    *(("n", n, round(KEEP * n)) for n in (*(10**e for e in range(3, 9)), MOST)),
    *(("K", FIXED, k) for k in (*(10**e for e in range(3, 8)), 9 * 10**7)),
]


def numpy_lines(scores: np.ndarray, count: int) -> np.ndarray:
    return np.sort(np.argpartition(scores, len(scores) - count)[-count:])


@pytest.mark.parametrize(
    ("n", "rounds", "calls", "goals"), CASES, ids=[f"{n:.0e}" for n, *_ in CASES]
)
def bench_select(case, n, rounds, calls, goals):
    """The bytes counted: 4 n read and 8 k written."""
    scores = torch.randn(n, generator=torch.Generator().manual_seed(0))
    array, count = scores.numpy(), round(KEEP * n)
    found = emp.select(scores, KEEP)
    harness.check_selection(scores, found, count)
    harness.check_selected_values(scores, harness.select_lines(scores, count), found)
    harness.check_selected_values(scores, torch.from_numpy(numpy_lines(array, count)), found)
    case(
        f"select 0.3 of {n:.0e}",
        lambda: emp.select(scores, KEEP),
        {
            TOPK: lambda: harness.select_lines(scores, count),
            UNSORTED: lambda: scores.topk(count, sorted=False),
            ARGPARTITION: lambda: numpy_lines(array, count),
        },
        moved=4 * n + 8 * count,
        rounds=rounds,
        calls=calls,
        goals=goals,
        fields={"n": n, "keep": KEEP, "dtype": "float32"},
    )


@pytest.fixture(scope="module")
def many():
    """Scores for the largest case."""
    return torch.randn(MOST, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("growth", "n", "k"), GROWN)
def bench_growth(case, many, growth, n, k):
    """n grows at keep 0.3, or K at a fixed n; K hardly matters because all n scores are read."""
    scores = many[:n]
    harness.check_selection(scores, emp.select(scores, k), k)
    size = {"n": n, "K": k}[growth]
    case(
        f"growth select {growth} = {size:.1e}",
        lambda: emp.select(scores, k),
        {},
        moved=4 * n + 8 * k,
        rounds=9,
        calls=max(1, 10**6 // n),
        fields={"n": n, "k": k, "dtype": "float32", "growth": growth, "size": size},
    )
