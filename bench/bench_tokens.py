"""Log-probability and entropy of every token, against the code of language-model trainers.

A case also reports each implementation's largest relative errors, on the given logits and on
confident rows: some return the logits' dtype, and some lose accuracy near zero.
"""

import pytest
import torch

import emp_kernels as emp
from bench import harness, peers

CASES = [(2048, 32000, "float32"), (2048, 32000, "bfloat16"), (1024, 128256, "bfloat16")]
CONFIDENT = 20.0  # the label's logit of a confident row; the others are standard normal


def ours(logits: torch.Tensor, labels: torch.Tensor) -> peers.Call:
    return lambda: emp.score(logits, labels)[1:3]


def torch_lines(logits: torch.Tensor, labels: torch.Tensor) -> peers.Call:
    return lambda: harness.score_lines(logits, labels)[1:]


def torch_compile(logits: torch.Tensor, labels: torch.Tensor) -> peers.Call:
    compiled = harness.compiled(harness.score_lines)
    return lambda: compiled(logits, labels)[1:]


IMPLEMENTATIONS: dict[str, peers.Maker] = {
    "emp_kernels": ours,
    "torch.compile": torch_compile,
    "torch": torch_lines,
}


def largest_errors(
    found: tuple[torch.Tensor, ...], logits: torch.Tensor, labels: torch.Tensor
) -> list[float]:
    """Largest errors of losses and, if given, entropies, relative to float64."""
    log_p = logits.double().log_softmax(1)
    right = -log_p.gather(1, labels[:, None])[:, 0], -(log_p.exp() * log_p).sum(1)
    return [
        float(((values.double() - exact) / exact).abs().max())
        for values, exact in zip(found, right, strict=False)
    ]


def errors(
    maker: peers.Maker, logits: torch.Tensor, labels: torch.Tensor
) -> dict[str, list[float]]:
    """Errors of an implementation on sampled rows, as they are and with a confident label. On the
    former it must be correct within the rounding of its dtype."""
    rows = torch.linspace(0, len(labels) - 1, harness.ORACLE_ROWS, dtype=torch.float64).long()
    plain, labels = logits[rows], labels[rows]
    confident = plain.clone()
    confident[torch.arange(len(rows)), labels] = CONFIDENT
    found = maker(torch.cat([plain, confident]), labels.repeat(2))()
    halves = zip(*(own.split(len(rows)) for own in found), strict=True)
    measured = {
        name: largest_errors(half, few, labels)
        for (name, few), half in zip(
            {"plain": plain, "confident": confident}.items(), halves, strict=True
        )
    }
    for own, error in zip(found, measured["plain"], strict=True):
        assert error <= (1e-5 if maker is ours else max(1e-4, 4 * torch.finfo(own.dtype).eps))
    return measured


@pytest.mark.parametrize(("n", "c", "dtype"), CASES, ids=[f"{n}x{c}-{d}" for n, c, d in CASES])
def bench_tokens(case, n, c, dtype):
    logits = harness.normal_logits(n * c, dtype).view(n, c)
    labels = torch.randint(0, c, (n,), generator=torch.Generator().manual_seed(1))
    scores = emp.score(logits, labels)
    harness.check_scores(logits, labels, scores.loss, scores.entropy)
    found, missing = peers.made(peers.TOKENS, logits[:2], labels[:2])
    makers = IMPLEMENTATIONS | {name: peers.TOKENS[name] for name in found}
    measured = {name: errors(maker, logits, labels) for name, maker in makers.items()}
    calls = {name: maker(logits, labels) for name, maker in makers.items()}
    calls["torch.compile"]()  # compiles
    case(
        f"log-probability and entropy {n}×{c} {dtype}",
        calls.pop("emp_kernels"),
        calls,
        moved=logits.nbytes,
        rounds=9,
        fields={
            "n": n, "c": c, "dtype": dtype, "errors": measured, "not_measured": missing,
            "peer_versions": peers.versions(),
        },
    )  # fmt: skip
