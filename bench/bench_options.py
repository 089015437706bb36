"""Losses with options, and log-probability with entropy, both with their gradients, against the
same in torch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import emp_kernels as emp
from bench import harness, peers

SMOOTHING, Z_LOSS, TEMPERATURE, SOFTCAP = 0.1, 1e-4, 2.0, 30.0
CHECKED = 8  # rows
DTYPES = ("float32", "bfloat16")

GOALS = {"torch": (6, 8)}
RTOL = {"float32": 1e-4, "bfloat16": 3e-2}  # torch rounds in between

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def capped(logits: torch.Tensor) -> torch.Tensor:
    return SOFTCAP * torch.tanh(logits / SOFTCAP)


def with_z_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels) + Z_LOSS * logits.logsumexp(1).square().mean()


def options_of(name: str, n: int, c: int, dtype: str) -> tuple[dict[str, Any], Loss]:
    """Our arguments for an option, and the same loss in plain torch."""
    generator = torch.Generator().manual_seed(2)
    weight, rows = (torch.rand(size, generator=generator) + 0.5 for size in (c, n))
    torch_weight = weight.to(getattr(torch, dtype))

    def by_row(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (F.cross_entropy(logits, labels, reduction="none") * rows).mean()

    options: dict[str, tuple[dict[str, Any], Loss]] = {
        "label_smoothing": (
            {"label_smoothing": SMOOTHING},
            lambda z, y: F.cross_entropy(z, y, label_smoothing=SMOOTHING),
        ),
        "weight": ({"weight": weight}, lambda z, y: F.cross_entropy(z, y, torch_weight)),
        "sample_weight": ({"sample_weight": rows}, by_row),
        "z_loss": ({"z_loss": Z_LOSS}, with_z_loss),
        "temperature": (
            {"temperature": TEMPERATURE},
            lambda z, y: F.cross_entropy(z / TEMPERATURE, y),
        ),
        "softcap": ({"softcap": SOFTCAP}, lambda z, y: F.cross_entropy(capped(z), y)),
        "probabilities": ({}, F.cross_entropy),
    }
    return options[name]


def labels_of(name: str, n: int, c: int, dtype: str) -> torch.Tensor:
    if name == "probabilities":
        return harness.normal_logits(n * c, dtype).view(n, c).flip(1).softmax(1)
    return torch.randint(0, c, (n,), generator=torch.Generator().manual_seed(1))


def gradients_of(results: tuple[torch.Tensor, ...], logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad([x.sum() for x in results], logits)[0]


def errors_of(
    ways: dict[str, Loss], theirs: Loss, logits: torch.Tensor, labels: torch.Tensor
) -> dict[str, list[float]]:
    """Errors of each implementation on a few rows, against `theirs` of float64 logits: the loss's
    relative error, and the gradient's relative to its largest element."""

    def both(loss: Loss, z: torch.Tensor, y: torch.Tensor) -> tuple[float, torch.Tensor]:
        z = z.detach().requires_grad_()
        found = loss(z, y)
        return float(found.detach()), torch.autograd.grad(found, z)[0].double()

    right = both(theirs, logits.double(), labels.double() if labels.dim() == 2 else labels)
    errors = {}
    for name, loss in ways.items():
        value, gradient = both(loss, logits, labels)
        worst = float((gradient - right[1]).abs().max() / right[1].abs().max())
        errors[name] = [abs(value / right[0] - 1), worst]
    return errors


def check(logits: torch.Tensor, ours: Any, theirs: Any, dtype: str) -> None:
    """Values agree, and so do the gradients of a few rows."""
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own.float(), other.float(), rtol=RTOL[dtype], atol=1e-3)
    own, other = (gradients_of(x, logits)[:CHECKED].float() for x in (ours, theirs))
    assert (own - other).norm() <= RTOL[dtype] * other.norm()


CASES = [
    *((8192, 32000, dtype, name) for dtype in DTYPES for name in (
        "label_smoothing", "weight", "sample_weight", "z_loss", "temperature", "softcap",
        "probabilities",
    )),
    (8192, 1000, "float32", "probabilities"),
    (128, 100, "float32", "label_smoothing"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("n", "c", "dtype", "name"), CASES, ids=[f"{n}x{c}-{d}-{name}" for n, c, d, name in CASES]
)
def bench_loss_with_option(case, n, c, dtype, name):
    """The bytes counted: two reads of the logits (and of probabilities), one write of the
    gradient."""
    logits = harness.normal_logits(n * c, dtype).view(n, c).requires_grad_()
    labels = labels_of(name, n, c, dtype)
    options, theirs = options_of(name, n, c, dtype)
    few = logits.detach()[:CHECKED].requires_grad_()
    few_options = {k: v[:CHECKED] if k == "sample_weight" else v for k, v in options.items()}
    ways = {
        "emp_kernels": lambda z, y: emp.cross_entropy(z, y, **few_options),
        "torch": options_of(name, CHECKED, c, dtype)[1],
    }
    exact = options_of(name, CHECKED, c, "float64")[1]
    errors = errors_of(ways, exact, few, labels[:CHECKED])
    assert errors["emp_kernels"][0] <= 1e-5
    assert errors["emp_kernels"][1] <= 2e-5 + torch.finfo(logits.dtype).eps
    goals = GOALS if c == 32000 else {"torch": (4, 6)} if n == 8192 else {}
    case(
        f"cross_entropy with {name} and gradient {n}×{c} {dtype}",
        lambda: gradients_of((emp.cross_entropy(logits, labels, **options),), logits),
        {"torch": lambda: gradients_of((theirs(logits, labels),), logits)},
        moved=3 * logits.nbytes + (2 * labels.nbytes if labels.dim() == 2 else 0),
        rounds=9 if n * c > 10**6 else 61,
        calls=1 if n * c > 10**6 else 100,
        goals=goals,
        fields={"n": n, "c": c, "dtype": dtype, "option": name, "option_errors": errors},
    )


def log_prob_lines(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Log-probability and entropy in plain float32 PyTorch."""
    return tuple(x if i else -x for i, x in enumerate(harness.score_lines(logits, labels)[1:]))


def trl(logits: torch.Tensor, labels: torch.Tensor) -> peers.Call:
    """One kernel on a GPU, and two passes of plain torch elsewhere."""
    from trl.trainer.utils import selective_log_softmax_and_entropy

    return lambda: selective_log_softmax_and_entropy(logits, labels)


def bench_log_prob_and_entropy(case):
    """Both values and the gradient of both, from one read forward and one backward."""
    n, c, dtype = 2048, 32000, "bfloat16"
    logits = harness.normal_logits(n * c, dtype).view(n, c).requires_grad_()
    labels = torch.randint(0, c, (n,), generator=torch.Generator().manual_seed(1))
    found, missing = peers.made({"TRL": trl}, logits, labels)
    compiled = harness.compiled(log_prob_lines)
    calls = {"torch.compile": lambda: compiled(logits, labels), **found}
    check(
        logits,
        emp.log_prob_and_entropy(logits, labels)[:2],
        log_prob_lines(logits, labels),
        dtype,
    )
    goals = {"torch.compile": (3, 5), "TRL": (15, 25)}
    case(
        f"log_prob_and_entropy and gradients {n}×{c} {dtype}",
        lambda: gradients_of(emp.log_prob_and_entropy(logits, labels)[:2], logits),
        {name: (lambda call=call: gradients_of(call(), logits)) for name, call in calls.items()},
        moved=3 * logits.nbytes,
        rounds=9,
        goals={name: goal for name, goal in goals.items() if name in calls},
        fields={
            "n": n, "c": c, "dtype": dtype, "not_measured": missing,
            "peer_versions": peers.versions(),
        },
    )  # fmt: skip
