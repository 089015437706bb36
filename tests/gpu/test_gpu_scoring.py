"""Scoring on CUDA: accuracy, layouts, sizes beyond int32, rows that do not count."""

import contextlib

import hard_rows
import numpy as np
import oracle
import pytest
import torch
from test_scoring import assert_scores
from test_statistics import assert_statistics

import emp_kernels as emp

INF = float("inf")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@contextlib.contextmanager
def nobody_waiting():
    """A context in which any synchronisation with the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def on_cpu(result):
    return type(result)(*(field.cpu() for field in result))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "classes",
    [1, 2, 7, 10, 33, 100, 129, 257, 1000, 1001, 2049, 4096, 8192, 8193, 32000, 50257],
)
def test_hard_rows(classes, dtype):
    logits, labels, names = hard_rows.batch(classes, dtype, seed=classes)
    truth = oracle.statistics(logits, labels)
    z, y = logits.cuda(), labels.cuda()
    assert_scores(on_cpu(emp.score(z, y, backend="triton")), truth, names=names)
    assert_statistics(on_cpu(emp.sample_statistics(z, y, backend="triton")), truth, names)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [2, 10, 100, 1000, 4096, 32000])
def test_within_8_ulp_at_scale_1(classes, dtype):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(max(8, 200_000 // classes), classes, generator=generator).to(dtype)
    labels = torch.randint(classes, (len(logits),), generator=generator)
    labels[::3] = logits[::3].float().argmax(1)
    truth = oracle.statistics(logits, labels)
    got = on_cpu(emp.score(logits.cuda(), labels.cuda(), backend="triton"))
    for field in ("loss", "entropy"):
        assert oracle.ulps(getattr(got, field), getattr(truth, field)).max() <= 8


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_rows_shared_by_programs(rows):
    """Each run is the same."""
    logits = torch.randn(rows, 200_000, device="cuda").bfloat16()
    labels = torch.arange(rows, device="cuda")
    truth = oracle.statistics(logits.cpu(), labels.cpu())
    first = emp.score(logits, labels)
    assert_scores(on_cpu(first), truth)
    for _ in range(5):
        assert all(map(torch.equal, emp.score(logits, labels), first))


def test_beyond_int32():
    """More than 2^31 logits: the last rows are right."""
    n, classes = 70_000, 32_768
    logits = torch.zeros(n, classes, dtype=torch.bfloat16, device="cuda")
    labels = torch.zeros(n, dtype=torch.int64, device="cuda")
    logits[-3:] = torch.randn(3, classes, device="cuda").bfloat16()
    got = on_cpu(emp.score(logits, labels))
    truth = oracle.statistics(logits[-4:].cpu(), labels[-4:].cpu())
    assert_scores(emp.Scores(*(field[-4:] for field in got)), truth)
    np.testing.assert_allclose(got.loss[:-3], np.log(classes), rtol=1e-6)


def test_strides_and_groups():
    base = torch.randn(5, 9, 1030, device="cuda")
    for view in (base[0, :, 3:1003], base[:, 2:7, :1000], base[:, :, ::2], base.transpose(0, 1)):
        labels = torch.randint(view.shape[-1], view.shape[:-1], device="cuda")
        got = emp.score(view, labels, backend="triton")
        flat = view.reshape(-1, view.shape[-1]).cpu()
        assert_scores(on_cpu(got), oracle.statistics(flat, labels.reshape(-1).cpu()))


@pytest.mark.parametrize("classes", [70, 20_000])
def test_rows_that_do_not_count(classes):
    logits = torch.randn(6, classes, device="cuda")
    labels = torch.tensor([0, classes, -1, 1 << 40, -100, classes - 1], device="cuda")
    with nobody_waiting():
        result = emp.score_and_select(logits, labels, None, 6)
        statistics = emp.sample_statistics(logits, labels)
    assert result.scores.score.isnan().tolist() == [False, True, True, True, True, False]
    assert result.num_invalid == 4
    assert result.indices.tolist() == [0, 5, -1, -1, -1, -1]
    assert statistics.correct[1:5].any().item() is False
    ignored = emp.score(logits, labels, ignore_index=-100)
    assert ignored.score[4] == -INF


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cross_entropy(dtype):
    logits = (3 * torch.randn(64, 5000, device="cuda")).to(dtype).requires_grad_()
    labels = torch.randint(5000, (64,), device="cuda")
    loss = emp.cross_entropy(logits, labels)
    loss.backward()
    exact = logits.detach().double().requires_grad_()
    want = torch.nn.functional.cross_entropy(exact, labels)
    want.backward()
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=0)
    tolerance = {torch.float32: 2e-5, torch.bfloat16: 8e-3, torch.float16: 1e-3}[dtype]
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=tolerance, atol=1e-7)


def test_compiled_in_one_graph():
    logits = torch.randn(64, 100, device="cuda")
    labels = torch.randint(100, (64,), device="cuda")
    states = [emp.EMPState(64, device="cuda") for _ in range(2)]
    compiled = torch.compile(emp.score_and_select, fullgraph=True)
    want = emp.score_and_select(logits, labels, states[0], 0.3)
    torch.testing.assert_close(compiled(logits, labels, states[1], 0.3), want)
    torch.testing.assert_close(states[1].score, states[0].score)
