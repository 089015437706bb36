"""select of 0.3 n, against torch's topk and sort and NumPy's argpartition and sort."""

import numpy as np
import pytest
import torch

import emp_kernels as emp
from bench import harness

KEEP = 0.3
TOPK, ARGPARTITION = "topk + sort", "argpartition + sort"
CASES = [  # n, rounds, calls a round, and what is aimed at
    (10**5, 41, 20, {}),
    (10**6, 25, 3, {TOPK: (16, 25), "floor": (6, 3)}),
    (10**7, 11, 1, {TOPK: (25, 40), "floor": (6, 2.5)}),
    (5 * 10**7, 9, 1, {TOPK: (25, 40), "floor": (6, 2.5)}),
]


def numpy_lines(scores: np.ndarray, count: int) -> np.ndarray:
    return np.sort(np.argpartition(scores, len(scores) - count)[-count:])


@pytest.mark.parametrize(
    ("n", "rounds", "calls", "goals"), CASES, ids=[f"{n:.0e}" for n, *_ in CASES]
)
def bench_select(case, n, rounds, calls, goals):
    """The bytes are 4 n read and 8 k written."""
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
            ARGPARTITION: lambda: numpy_lines(array, count),
        },
        moved=4 * n + 8 * count,
        rounds=rounds,
        calls=calls,
        goals=goals,
        fields={"n": n, "keep": KEEP, "dtype": "float32"},
    )
