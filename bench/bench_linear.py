"""score_linear: the score of hidden @ weightᵀ without logits, against torch's product with them.

Of a language model's head, C = 128256 and D = 1024. A call of 4096 rows takes seconds, so few
rounds have to do; the few rows besides are where calls and narrow products cost most.
"""

from collections.abc import Callable

import pytest
import torch

import emp_kernels as emp
from bench import harness, memory

D, C = 1024, 128256
CASES = [(128, "float32", 9), (256, "bfloat16", 9), (4096, "float32", 2), (4096, "bfloat16", 2)]
GOALS = {"matmul, score": (1 / 1.1, 1.0), "matmul": (0.9, 1.0)}


def inputs(n: int, dtype: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden = harness.normal_logits(n * D, dtype).view(n, D)
    weight = harness.normal_logits(C * D, dtype).view(C, D).div_(D**0.5)
    return hidden, weight, torch.randint(0, C, (n,), generator=torch.Generator().manual_seed(1))


def first_call(n: str, dtype: str) -> Callable[[], emp.Scores]:
    arguments = inputs(int(n), dtype)
    return lambda: emp.score_linear(*arguments)


def check(
    hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, scores: emp.Scores
) -> None:
    """Rows spread over all agree with float64 of torch's product, and a few with float64's."""
    rtol = 1e-5 if hidden.dtype == torch.float32 else 2e-2  # torch rounds the logits, and so do we
    rows = torch.linspace(0, len(labels) - 1, harness.ORACLE_ROWS, dtype=torch.float64).long()
    for some, dtype in ((rows, hidden.dtype), (rows[::4], torch.float64)):
        logits = hidden[some].to(dtype) @ weight.to(dtype).t()
        harness.check_scores(
            logits, labels[some], scores.loss[some], scores.entropy[some], rtol=rtol
        )


@pytest.mark.parametrize(("n", "dtype", "rounds"), CASES, ids=[f"{n}-{d}" for n, d, _ in CASES])
def bench_score_linear(case, n, dtype, rounds):
    hidden, weight, labels = inputs(n, dtype)
    check(hidden, weight, labels, emp.score_linear(hidden, weight, labels))
    peak = memory.of_a_first_call("bench_linear", n, dtype)
    assert peak is None or peak <= memory.MOST
    case(
        f"score_linear {n}×{D}×{C} {dtype}",
        lambda: emp.score_linear(hidden, weight, labels),
        {
            "matmul, score": lambda: emp.score(hidden @ weight.t(), labels),
            "matmul": lambda: hidden @ weight.t(),
        },
        moved=weight.nbytes + hidden.nbytes,
        rounds=rounds,
        warm=rounds == 2,
        goals=GOALS,
        fields={
            "n": n, "d": D, "c": C, "dtype": dtype, "peak_bytes": peak,
            "logits_bytes": n * C * hidden.element_size(),
        },
    )  # fmt: skip
