"""score alone, and how the cost of score_and_select grows with rows and with classes."""

import pytest
import torch

import emp_kernels as emp
from bench import harness

CASES = [(65536, 1000, "float32"), (65536, 1000, "bfloat16"), (8192, 32000, "float16")]
CLASSES, ROWS = 1000, 256  # each is fixed while the other grows
LARGEST = {"float32": 10**9, "bfloat16": 22 * 10**8}  # logits, about 4 GB; the latter exceeds 2^31


@pytest.mark.parametrize(("n", "c", "dtype"), CASES, ids=[f"{n}x{c}-{d}" for n, c, d in CASES])
def bench_score(case, n, c, dtype):
    logits = harness.normal_logits(n * c, dtype).view(n, c)
    labels = torch.randint(0, c, (n,), generator=torch.Generator().manual_seed(1))
    scores = emp.score(logits, labels)
    harness.check_scores(logits, labels, scores.loss, scores.entropy)
    compiled = harness.compiled(harness.score_lines)
    for function in (harness.score_lines, compiled):
        harness.check_scores(logits, labels, *function(logits, labels)[1:], rtol=1e-4)
    case(
        f"score {n}×{c} {dtype}",
        lambda: emp.score(logits, labels),
        {
            "torch.compile": lambda: compiled(logits, labels),
            "torch": lambda: harness.score_lines(logits, labels),
        },
        moved=logits.nbytes,
        rounds=11,
        fields={"n": n, "c": c, "dtype": dtype},
    )


@pytest.fixture(scope="module")
def logits():
    """A function of the dtype: as many logits as its largest case needs. Only the last dtype's
    stay in memory."""
    kept: dict[str, torch.Tensor] = {}

    def made(dtype: str) -> torch.Tensor:
        if dtype not in kept:
            kept.clear()
            kept[dtype] = harness.normal_logits(LARGEST[dtype], dtype)
        return kept[dtype]

    yield made
    kept.clear()


def grown() -> list[tuple[str, str, int, int]]:
    """Tuples (dtype, growing size, N, C), with 10^3 logits or classes up to the largest case."""
    found = []
    for dtype, largest in LARGEST.items():
        sizes = [10**e for e in range(3, 10)] + [largest] * (largest > 10**9)
        found += [(dtype, "N·C", size // CLASSES, CLASSES) for size in sizes]
        classes = [10**e for e in range(3, 7)] + [largest // ROWS]
        found += [(dtype, "C", ROWS, c) for c in classes]
    return found


@pytest.mark.parametrize(("dtype", "growth", "n", "c"), grown())
def bench_growth(case, logits, dtype, growth, n, c):
    """Below 10^5 elements fixed costs show; above, twice the elements take twice the time."""
    batch = logits(dtype)[: n * c].view(n, c)
    labels = torch.arange(n) % c
    found = emp.score_and_select(batch, labels, None)
    harness.check_scores(batch, labels, found.scores.loss, found.scores.entropy)
    harness.check_selection(found.scores.score, found.indices, max(1, round(0.3 * n)))
    size = {"N·C": n * c, "C": c}[growth]
    case(
        f"growth {growth} = {size:.1e} {dtype}",
        lambda: emp.score_and_select(batch, labels, None),
        {},
        moved=batch.nbytes,
        rounds=9,
        calls=max(1, 10**6 // (n * c)),
        fields={"n": n, "c": c, "dtype": dtype, "growth": growth, "size": size},
    )
