"""Arithmetic limits: the kernels and torch's product on cached data.

With the read bandwidth these are the roofs of the roofline plot.
"""

import pytest
import torch

import emp_kernels as emp
from bench import harness

N, C, SIDE = 4096, 32000, 1024


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def bench_scoring_from_cache(case, dtype):
    """Scores one long row repeatedly, from the L2 cache: long rows need the fewest operations per
    logit."""
    logits = harness.normal_logits(C, dtype).expand(N, C)
    labels = torch.arange(N) % C
    scores = emp.score(logits, labels)
    harness.check_scores(logits, labels, scores.loss, scores.entropy)
    case(
        f"score from cache, {N} times one row of {C} {dtype}",
        lambda: emp.score(logits, labels),
        {},
        moved=N * C * logits.element_size(),
        rounds=15,
        fields={"n": N, "c": C, "dtype": dtype},
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def bench_product_from_cache(case, dtype):
    """torch's product of two matrices that stay in the last-level cache."""
    first, second = (harness.normal_logits(SIDE**2, dtype).view(SIDE, SIDE) for _ in range(2))
    exact = first[:4].double() @ second.double().t()
    tolerance = 1e-4 if dtype == "float32" else 2e-2
    found = (first @ second.t())[:4].double()
    assert (found - exact).norm() <= tolerance * exact.norm()
    case(
        f"product from cache, {SIDE}×{SIDE}×{SIDE} {dtype}",
        lambda: first @ second.t(),
        {},
        moved=3 * first.nbytes,
        rounds=31,
        fields={"n": SIDE, "c": SIDE, "d": SIDE, "dtype": dtype},
    )
