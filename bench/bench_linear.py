"""score_linear and linear_cross_entropy: hidden @ weightᵀ without logits, against torch's product.

The head is a language model's, with C = 128256 and D = 1024. A call of 4096 rows takes seconds, so
it runs few rounds; with few rows, call overhead and narrow products cost most.
"""

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

import emp_kernels as emp
from bench import harness, memory, peers

D, C = 1024, 128256
CASES = [(128, "float32", 9), (256, "bfloat16", 9), (4096, "float32", 2), (4096, "bfloat16", 2)]
RTOL = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # torch rounds the logits, and so do we
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
    """Sampled rows agree with torch's product at the given dtype, a few also with float64."""
    rows = torch.linspace(0, len(labels) - 1, harness.ORACLE_ROWS, dtype=torch.float64).long()
    for some, dtype in ((rows, hidden.dtype), (rows[::4], torch.float64)):
        logits = hidden[some].to(dtype) @ weight.to(dtype).t()
        harness.check_scores(
            logits, labels[some], scores.loss[some], scores.entropy[some], rtol=RTOL[hidden.dtype]
        )


@pytest.mark.parametrize(("n", "dtype", "rounds"), CASES, ids=[f"{n}-{d}" for n, d, _ in CASES])
def bench_score_linear(case, n, dtype, rounds):
    hidden, weight, labels = inputs(n, dtype)
    scores = emp.score_linear(hidden, weight, labels)
    check(hidden, weight, labels, scores)
    others, missing = peers.made(peers.LINEAR, hidden, weight, labels) if n < 4096 else ({}, {})
    for call in others.values():
        rtol = RTOL[hidden.dtype]
        torch.testing.assert_close(call().float(), scores.loss.mean(), rtol=rtol, atol=0)
    peak = memory.of_a_first_call("bench_linear", n, dtype)
    assert peak is None or peak <= memory.MOST
    case(
        f"score_linear {n}×{D}×{C} {dtype}",
        lambda: emp.score_linear(hidden, weight, labels),
        {
            "matmul, score": lambda: emp.score(hidden @ weight.t(), labels),
            "matmul": lambda: hidden @ weight.t(),
            **others,
        },
        moved=weight.nbytes + hidden.nbytes,
        rounds=rounds,
        warm=rounds == 2,
        goals=GOALS,
        fields={
            "n": n, "d": D, "c": C, "dtype": dtype, "peak_bytes": peak,
            "logits_bytes": n * C * hidden.element_size(), "not_measured": missing,
            "peer_versions": peers.versions(),
        },
    )  # fmt: skip


def spread_classes() -> torch.Tensor:
    """Evenly spaced class numbers, the first and the last included."""
    return torch.linspace(0, C - 1, harness.ORACLE_ROWS, dtype=torch.float64).long()


def exact_gradients(hidden, weight, labels) -> tuple[torch.Tensor, torch.Tensor]:
    """float64 gradients of the mean loss: hidden's (N, D), and weight's rows `spread_classes`."""
    hidden, weight = hidden.detach().double(), weight.detach().double()
    signal = (hidden @ weight.t()).softmax(1)
    signal[torch.arange(len(labels)), labels] -= 1
    signal /= len(labels)
    return signal @ weight, signal[:, spread_classes()].t() @ hidden


def check_gradients(found, right, rtol: float) -> None:
    """Gradients (N, D) and (C, D) agree with the exact ones."""
    for own, exact in zip((found[0], found[1][spread_classes()]), right, strict=True):
        assert (own.double() - exact).norm() <= rtol * exact.norm()


def bench_linear_cross_entropy(case):
    """The loss with both gradients. The bytes counted are two reads of the weight and one write of
    its gradient. Like the others, ours computes three products: it stores the tiles of logits in
    the memory of the weight's gradient."""
    n, dtype, rounds = CASES[0]
    hidden, weight, labels = inputs(n, dtype)
    hidden.requires_grad_()
    weight.requires_grad_()

    def gradients(loss: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(loss, (hidden, weight))

    def ours():
        return gradients(emp.linear_cross_entropy(hidden, weight, labels))

    others, missing = peers.made(peers.LINEAR, hidden, weight, labels)
    losses = {"torch": lambda: F.cross_entropy(hidden @ weight.t(), labels), **others}
    goals = {"cut-cross-entropy": (1, 1.2)} if "cut-cross-entropy" in others else {}
    if hasattr(F, "linear_cross_entropy"):  # since torch 2.13
        losses["torch linear_cross_entropy"] = lambda: F.linear_cross_entropy(
            hidden, weight, labels
        )
        goals["torch linear_cross_entropy"] = (1, 1.2)
    right = exact_gradients(hidden, weight, labels)
    check_gradients(ours(), right, 1e-5)
    for loss in losses.values():
        check_gradients(gradients(loss()), right, 1e-4)
    case(
        f"linear_cross_entropy and gradients {n}×{D}×{C} {dtype}",
        ours,
        {name: (lambda loss=loss: gradients(loss())) for name, loss in losses.items()},
        moved=3 * weight.nbytes,
        rounds=rounds,
        goals=goals,
        fields={
            "n": n, "d": D, "c": C, "dtype": dtype, "products": 3, "not_measured": missing,
            "peer_versions": peers.versions(),
        },
    )  # fmt: skip


def bench_linear_log_prob_and_entropy(case):
    """Log-probabilities and entropies of a product's tokens: largest errors against float64."""
    n, dtype, rounds = CASES[0]
    hidden, weight, labels = inputs(n, dtype)

    def ours() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            found = emp.linear_log_prob_and_entropy(hidden, weight, labels)
        return -found.log_prob, found.entropy

    others, missing = peers.made(peers.LINEAR_TOKENS, hidden, weight, labels)
    log_p = (hidden.double() @ weight.double().t()).log_softmax(1)
    right = -log_p.gather(1, labels[:, None])[:, 0], -(log_p.exp() * log_p).sum(1)
    errors = {}
    for name, call in {"emp_kernels": ours, **others}.items():
        pairs = zip(call(), right, strict=True)
        errors[name] = [float(((x.double() - y) / y).abs().max()) for x, y in pairs]
        assert max(errors[name]) <= (1e-5 if name == "emp_kernels" else 1e-3)
    case(
        f"linear_log_prob_and_entropy {n}×{D}×{C} {dtype}",
        ours,
        others,
        moved=weight.nbytes + hidden.nbytes,
        rounds=rounds,
        fields={
            "n": n, "d": D, "c": C, "dtype": dtype, "products": 1, "product_errors": errors,
            "not_measured": missing, "peer_versions": peers.versions(),
        },
    )  # fmt: skip
