"""On CUDA too a row's results are the same bits whatever rows stand beside it, and however many."""

import pytest
import torch
from test_batch_invariance import CALLS, assert_alike, in_float32

import emp_kernels as emp

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Rows whole in registers, spread ones, and ones that stream, in pieces of one program or of many.
CLASSES = [1, 10, 47, 48, 49, 1000, 1001, 8192, 16384, 32000, 50257, 128256]
ELEMENTS = 2**28


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("name", CALLS)
def test_rows_beside_a_row_change_no_bit(name, classes, dtype):
    n = min(70_000, ELEMENTS // classes)
    logits = (3 * torch.randn(n, classes, device="cuda")).to(dtype)
    labels = torch.randint(classes, (n,), device="cuda")
    cuts = {(0, 1), (3, 4), (1, 8), (5, 135), (n - 300, n), (n // 3, n)}
    assert_alike(in_float32(CALLS[name]), logits, labels, "triton", sorted(cuts))


@pytest.mark.parametrize("classes", [1000, 128256])
def test_scored_and_selected(classes):
    """The launch that selects, a graph's included, scores as the one that does not."""
    logits = torch.randn(2048, classes, device="cuda").bfloat16()
    labels = torch.randint(classes, (2048,), device="cuda")
    want = emp.score(logits, labels)
    for n in (1, 7, 256, 2048):
        for _ in range(2):
            got = emp.score_and_select(logits[:n], labels[:n], None, 0.3).scores
            assert all(torch.equal(x, y[:n]) for x, y in zip(got, want, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products(dtype):
    hidden = torch.randn(4096, 512, device="cuda").to(dtype)
    weight = (torch.randn(32000, 512, device="cuda") / 23).to(dtype)
    labels = torch.randint(32000, (4096,), device="cuda")

    def call(hidden, labels, backend):
        return emp.score_linear(hidden, weight, labels, backend=backend)

    assert_alike(call, hidden, labels, "triton", [(0, 1), (3, 20), (100, 4096)])
