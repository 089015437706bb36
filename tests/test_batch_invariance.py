"""A row's results are the same bits whatever rows stand beside it, and however many."""

import os

import pytest
import torch

import emp_kernels as emp

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Rows whole in registers, spread ones, and ones that stream; the interpreter takes its time.
CLASSES = (10, 49, 257) if INTERPRETED else (1, 10, 47, 49, 1000, 1001, 32000)
MOST = 9 if INTERPRETED else 70_000
ELEMENTS = 1 << 20


def loss_and_gradient(logits, labels, backend, **options):
    logits = logits.detach().requires_grad_()
    losses = emp.cross_entropy(logits, labels, reduction="none", backend=backend, **options)
    losses.sum().backward()
    return losses.detach(), logits.grad


def log_probs(logits, labels, backend):
    logits = logits.detach().requires_grad_()
    found = emp.log_prob_and_entropy(logits, labels, temperature=0.7, backend=backend)
    (found.log_prob.sum() + 0.3 * found.entropy.sum()).backward()
    return *(x.detach() for x in found), logits.grad


OPTIONS = {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 20.0, "temperature": 0.8}
CALLS = {
    "score": lambda z, y, backend: emp.score(z, y, ignore_index=0, backend=backend),
    "sample_statistics": lambda z, y, backend: emp.sample_statistics(z, y, backend=backend),
    "cross_entropy": loss_and_gradient,
    "cross_entropy with options": lambda z, y, b: loss_and_gradient(z, y, b, **OPTIONS),
    "log_prob_and_entropy": log_probs,
}


def assert_alike(call, logits, labels, backend, cuts):
    whole = call(logits, labels, backend)
    for start, stop in cuts:
        part = call(logits[start:stop], labels[start:stop], backend)
        for i, (got, want) in enumerate(zip(part, whole, strict=True)):
            assert (
                got.numpy(force=True).tobytes() == want[start:stop].numpy(force=True).tobytes()
            ), f"result {i} of rows {start} to {stop} of {len(labels)}"


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("name", CALLS)
def test_rows_beside_a_row_change_no_bit(name, classes, backend):
    generator = torch.Generator().manual_seed(classes)
    for dtype in DTYPES if not INTERPRETED else (torch.float32, torch.float16):
        n = min(MOST, max(9, ELEMENTS // classes))
        logits = (3 * torch.randn(n, classes, generator=generator)).to(dtype)
        labels = torch.randint(classes, (n,), generator=generator)
        cuts = {(0, 1), (3, 4), (1, 8), (n - 5, n)} | ({(n // 3, n)} if n > 100 else set())
        assert_alike(in_float32(CALLS[name]), logits, labels, backend, sorted(cuts))


def in_float32(call):
    """The call, with results that numpy knows: a wider float has the same bits or others."""

    def results(*arguments):
        return [x.float() if x.is_floating_point() else x for x in call(*arguments)]

    return results


@pytest.mark.skipif(not INTERPRETED, reason="run by test_triton_interpreter.py")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["score", "sample_statistics"])
def test_pieces_of_one_program_and_of_many(name, dtype, monkeypatch):
    """Few rows have a program for each piece (on the interpreter's one multiprocessor, up to 7)."""
    from emp_kernels.kernels import launch
    from emp_kernels.kernels.plan import Plan

    plan = Plan(True, 1, 4, 16, 2, True, 1)
    monkeypatch.setattr(launch, "plan_of", lambda *row: plan)
    generator = torch.Generator().manual_seed(0)
    for classes in (100, 259):
        logits = (3 * torch.randn(9, classes, generator=generator)).to(dtype)
        labels = torch.randint(classes, (9,), generator=generator)
        assert_alike(in_float32(CALLS[name]), logits, labels, "triton", [(0, 1), (2, 9)])


def test_products_on_a_gpu_or_interpreted(backend):
    """Of the CPU's the product is torch's, whose order depends on the number of rows; so may the
    interpreter's on the place in a tile, of 64 rows."""
    if backend != "triton":
        pytest.skip("only the tiles of Triton's kernel are ours")
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(70, 32, generator=generator)
    weight = torch.randn(300, 32, generator=generator)
    labels = torch.randint(300, (70,), generator=generator)

    def call(hidden, labels, backend):
        return emp.score_linear(hidden, weight, labels, backend=backend)

    assert_alike(call, hidden, labels, backend, [(0, 1), (64, 70)])
