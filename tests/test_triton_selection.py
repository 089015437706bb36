"""The selection kernels in Triton's interpreter: one program for few scores, many for many."""

import os

import oracle
import pytest
import torch

import emp_kernels as emp

pytestmark = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") != "1", reason="run by test_triton_interpreter.py"
)
INF, NAN = float("inf"), float("nan")


def scores_of(kind: str, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(n)
    scores = torch.randn(n, generator=generator)
    if kind == "ties":
        return scores.round()
    if kind == "equal":
        return torch.full((n,), 2.5)
    if kind == "sorted":  # a chunk lies inside the sample's bracket whole: its slot overflows
        return scores.sort().values
    if kind == "special":
        odd = torch.tensor([0.0, -0.0, INF, -INF, NAN, -NAN, 1e-45, -1e-45, 3e38])
        scores[::2] = odd[torch.randint(len(odd), (len(scores[::2]),), generator=generator)]
        return scores
    if kind == "misleading":  # the sample sees a fortieth of the scores, all high
        scores[torch.arange(8192) * n // 8192] = 100.0
    return scores


KINDS = ["normal", "ties", "equal", "sorted", "special"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 255, 256, 257, 3000, 8192])
def test_few(n, kind):
    scores = scores_of(kind, n)
    for count in {1, max(1, n // 3), n}:
        got = emp.select(scores, count, backend="triton")
        assert torch.equal(got, oracle.select(scores, count))


@pytest.mark.parametrize("kind", [*KINDS, "misleading"])
def test_many(kind):
    """Three chunks and more, the last of them short."""
    n = 40000 if kind == "misleading" else 9001
    scores = scores_of(kind, n)
    for count in (1, 3000, n // 2, n - 1, n):
        got = emp.select(scores, count, backend="triton")
        assert torch.equal(got, oracle.select(scores, count)), count


@pytest.mark.parametrize("n", [100, 4200, 9000])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(n, dtype):
    """Thousands of ties at the threshold."""
    scores = torch.randn(n).to(dtype)
    got = emp.select(scores, n // 3, backend="triton")
    assert torch.equal(got, oracle.select(scores, n // 3))


def test_strided_and_empty():
    scores = torch.randn(40)[::2]
    assert torch.equal(emp.select(scores, 7, backend="triton"), oracle.select(scores, 7))
    assert emp.select(torch.empty(0), 0.5, backend="triton").shape == (0,)


@pytest.mark.parametrize("hidden", [[NAN], [-INF], [NAN, -INF]], ids=["NaN", "-inf", "both"])
@pytest.mark.parametrize("valid", [9001, 4000, 3000, 1, 0])
def test_valid_scores_only(valid, hidden):
    """As called by scoring: NaN and -inf are never selected, the work memory holds their numbers,
    and the indices are padded with -1."""
    from emp_kernels.kernels import launch, plan, work

    n, count = 9001, min(valid, 4000)
    scores = torch.randn(n)
    places = torch.randperm(n)[valid:]
    scores[places] = torch.tensor(hidden).repeat(n)[: len(places)]
    counts = torch.zeros(plan.WORK_SIZE, dtype=torch.int32)
    counts[work.INVALID.value] = scores.isnan().sum()
    counts[work.BOTTOM.value] = (scores == -INF).sum()
    indices, threshold = launch.select_many(scores, 4000, counts, None, None)
    want = oracle.select(scores, count) if count else torch.empty(0).long()
    assert torch.equal(indices[:count], want)
    assert (indices[count:] == -1).all()
    assert threshold == (scores[want].min() if count else INF)
