"""score_linear and linear_cross_entropy: hidden @ weightᵀ without logits, against torch's product.

Of a language model's head, C = 128256 and D = 1024; N is small, so that a case takes seconds: with
more rows all sides take longer, and ours gains.
"""

import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

import emp_kernels as emp
from bench import harness, peers

D, C = 1024, 128256
CASES = [(128, "float32"), (256, "bfloat16")]  # rows that take about as long
GOALS = {"matmul, score": (1 / 1.1, 1.0), "matmul": (0.9, 1.0)}
PROGRAM = """
import sys
from bench import bench_linear
print(bench_linear.peak_of_a_first_call(int(sys.argv[1]), sys.argv[2]))
"""


def inputs(n: int, dtype: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden = harness.normal_logits(n * D, dtype).view(n, D)
    weight = harness.normal_logits(C * D, dtype).view(C, D).div_(D**0.5)
    return hidden, weight, torch.randint(0, C, (n,), generator=torch.Generator().manual_seed(1))


def peak_of_a_first_call(n: int, dtype: str) -> int:
    """Bytes by which the resident memory of this process grows at most: tiles, results, and what
    torch's products take for themselves."""

    def status(name: str) -> int:
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    hidden, weight, labels = inputs(n, dtype)
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")  # resets the peak
    emp.score_linear(hidden, weight, labels)
    return status("VmHWM") - before


@pytest.mark.parametrize(("n", "dtype"), CASES, ids=[f"{n}-{dtype}" for n, dtype in CASES])
def bench_score_linear(case, n, dtype):
    hidden, weight, labels = inputs(n, dtype)
    scores = emp.score_linear(hidden, weight, labels)
    logits = hidden @ weight.t()
    rtol = 1e-5 if dtype == "float32" else 2e-2  # torch rounds the logits to bfloat16, and so do we
    harness.check_scores(logits, labels, scores.loss, scores.entropy, rtol=rtol)
    exact = hidden[:16].double() @ weight.double().t()
    harness.check_scores(exact, labels[:16], scores.loss[:16], scores.entropy[:16], rtol=rtol)
    others, missing = peers.made(peers.LINEAR, hidden, weight, labels)
    for call in others.values():
        torch.testing.assert_close(call().float(), scores.loss.mean(), rtol=rtol, atol=0)
    del logits, exact

    peak = None
    if sys.platform == "linux":
        command = [sys.executable, "-c", PROGRAM, str(n), dtype]
        done = subprocess.run(command, cwd=harness.ROOT, capture_output=True, text=True, check=True)
        peak = int(done.stdout)
        assert peak <= 64 * 2**20
    case(
        f"score_linear {n}×{D}×{C} {dtype}",
        lambda: emp.score_linear(hidden, weight, labels),
        {
            "matmul, score": lambda: emp.score(hidden @ weight.t(), labels),
            "matmul": lambda: hidden @ weight.t(),
            **others,
        },
        moved=weight.nbytes + hidden.nbytes,
        rounds=9,
        goals=GOALS,
        fields={
            "n": n, "d": D, "c": C, "dtype": dtype, "peak_bytes": peak,
            "logits_bytes": n * C * hidden.element_size(), "not_measured": missing,
            "peer_versions": peers.versions(),
        },
    )  # fmt: skip


def spread_classes() -> torch.Tensor:
    """Numbers of a few classes, from the first to the last."""
    return torch.linspace(0, C - 1, harness.ORACLE_ROWS, dtype=torch.float64).long()


def exact_gradients(hidden, weight, labels) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the mean loss in float64: hidden's (N, D), and weight's of a few classes."""
    hidden, weight = hidden.detach().double(), weight.detach().double()
    signal = (hidden @ weight.t()).softmax(1)
    signal[torch.arange(len(labels)), labels] -= 1
    signal /= len(labels)
    return signal @ weight, signal[:, spread_classes()].t() @ hidden


def check_gradients(found, right, rtol: float) -> None:
    """Gradients (N, D) and (C, D) agree with the exact ones."""
    for own, wanted in zip((found[0], found[1][spread_classes()]), right, strict=True):
        assert (own.double() - wanted).norm() <= rtol * wanted.norm()


def bench_linear_cross_entropy(case):
    """The loss with both gradients. The bytes are the weight twice and its gradient. Ours makes the
    product of the logits twice, rather than keep them: four products where others make three."""
    n, dtype = CASES[0]
    hidden, weight, labels = inputs(n, dtype)
    hidden.requires_grad_()
    weight.requires_grad_()

    def gradients(loss: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(loss, (hidden, weight))

    def ours():
        return gradients(emp.linear_cross_entropy(hidden, weight, labels))

    others, missing = peers.made(peers.LINEAR, hidden, weight, labels)
    losses = {"torch": lambda: F.cross_entropy(hidden @ weight.t(), labels), **others}
    right = exact_gradients(hidden, weight, labels)
    check_gradients(ours(), right, 1e-5)
    for loss in losses.values():
        check_gradients(gradients(loss()), right, 1e-4)
    case(
        f"linear_cross_entropy and gradients {n}×{D}×{C} {dtype}",
        ours,
        {name: (lambda loss=loss: gradients(loss())) for name, loss in losses.items()},
        moved=3 * weight.nbytes,
        rounds=9,
        fields={
            "n": n, "d": D, "c": C, "dtype": dtype, "products": 3, "not_measured": missing,
            "peer_versions": peers.versions(),
        },
    )  # fmt: skip
