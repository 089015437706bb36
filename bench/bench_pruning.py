"""score_and_select: the whole call, with a state, against the same in float32 PyTorch."""

import numpy as np
import pytest
import torch

import emp_kernels as emp
from bench import harness

KEEP = 0.3

# N, C, dtype, rounds, calls per round, whether to include NumPy, and the goals.
CASES = [
    (65536, 1000, "float32", 15, 1, True, {"torch.compile": (3.5, 5), "share": (0.75, 0.95)}),
    (8192, 32000, "float32", 11, 1, False, {"torch.compile": (4.4, 5), "share": (0.90, 0.97)}),
    (8192, 32000, "bfloat16", 11, 1, False, {"torch.compile": (5.4, 8), "share": (0.55, 0.85)}),
    (1024, 128256, "float32", 11, 1, False, {}),
    (1024, 128256, "bfloat16", 11, 1, False, {"torch.compile": (6, 8), "share": (0.60, 0.85)}),
    (50000, 100, "float32", 31, 1, True, {}),
    (256, 10, "float32", 61, 200, True, {"torch.compile": (4, 8)}),
]


def numpy_lines(logits: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """torch_lines in NumPy, selection by argpartition."""
    z = logits - logits.max(1, keepdims=True)
    e = np.exp(z)
    s = e.sum(1)
    log_s = np.log(s)
    loss = log_s - z[np.arange(len(z)), labels]
    score = loss + (log_s - (e * z).sum(1) / s)
    return np.sort(np.argpartition(score, len(score) - count)[-count:])


@pytest.mark.parametrize(
    ("n", "c", "dtype", "rounds", "calls", "with_numpy", "goals"),
    CASES,
    ids=[f"{n}x{c}-{dtype}" for n, c, dtype, *_ in CASES],
)
def bench_score_and_select(case, n, c, dtype, rounds, calls, with_numpy, goals):
    logits = harness.normal_logits(n * c, dtype).view(n, c)
    labels = torch.randint(0, c, (n,), generator=torch.Generator().manual_seed(1))
    state = emp.EMPState(n)
    count = round(KEEP * n)

    found = emp.score_and_select(logits, labels, state, KEEP)
    harness.check_scores(logits, labels, found.scores.loss, found.scores.entropy)
    harness.check_selection(found.scores.score, found.indices, count)
    assert torch.equal(state.score, found.scores.score)
    compiled = harness.compiled(harness.torch_lines)
    for function in (harness.torch_lines, compiled):
        score, loss, entropy, indices = function(logits, labels, count)
        harness.check_scores(logits, labels, loss, entropy, rtol=1e-4)
        harness.check_selected_values(score, indices, harness.select_lines(score, count))

    opponents = {
        "torch.compile": lambda: compiled(logits, labels, count),
        "torch": lambda: harness.torch_lines(logits, labels, count),
    }
    if with_numpy:
        arrays = logits.numpy(), labels.numpy()
        same = np.intersect1d(numpy_lines(*arrays, count), found.indices.numpy())
        assert len(same) >= count - 2 - count // 1000  # rounding swaps neighbours at the threshold
        opponents["numpy"] = lambda: numpy_lines(*arrays, count)
    case(
        f"score_and_select {n}×{c} {dtype}",
        lambda: emp.score_and_select(logits, labels, state, KEEP),
        opponents,
        moved=logits.nbytes,
        rounds=rounds,
        calls=calls,
        goals=goals,
        fields={"n": n, "c": c, "dtype": dtype, "keep": KEEP},
    )
