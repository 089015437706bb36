"""score_contrastive with hidden features, against the whole matrices in PyTorch; and its memory."""

from pathlib import Path
from typing import Any

import pytest
import torch

import emp_kernels as emp

ROWS = {"infonce": 16384, "clip": 4096, "ntxent": 4096}
WIDTH, HIDDEN = 128, 512
GOALS = {"infonce": {"torch dense": (2, 4)}}
MOST_MIB = 64  # of memory beyond the embeddings


def dense(form, z, hidden, temperature=0.1):
    """Score, loss and entropy as a user writes them in float32 PyTorch: whole matrices."""

    def directions(pair):
        first, second = (torch.nn.functional.normalize(x, dim=1) for x in pair)
        if form != "ntxent":
            rows = (first / temperature) @ second.T
            return [rows, rows.T][: 1 + (form == "clip")], torch.arange(len(first))
        both = torch.cat([first, second])
        rows = (both / temperature) @ both.T
        return [rows.fill_diagonal_(-torch.inf)], torch.arange(len(both)).roll(len(first))

    def mean(values):
        return torch.cat(values).view(-1, len(z[0])).mean(0)

    rows, positives = directions(z)
    loss = mean([x.logsumexp(1) - x.gather(1, positives[:, None])[:, 0] for x in rows])
    rows, _ = directions(hidden)
    log_p = [x.log_softmax(1) for x in rows]
    entropy = mean([-(x.exp() * x).nansum(1) for x in log_p])  # the row itself: 0 * -inf
    return loss + entropy, loss, entropy


def peak_mib(call):
    """Most memory of the process during `call` beyond what it had before."""

    def resident(name):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(x.split()[1]) for x in lines if x.startswith(name)) / 1024

    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = resident("VmRSS")
    call()
    return resident("VmHWM") - before


@pytest.mark.parametrize(("form", "n"), ROWS.items())
def bench_score_contrastive(case, form, n):
    generator = torch.Generator().manual_seed(0)
    z1, h1 = (torch.randn(n, width, generator=generator) for width in (WIDTH, HIDDEN))
    z2, h2 = (x + 0.5 * torch.randn(x.shape, generator=generator) for x in (z1, h1))

    def ours():
        return emp.score_contrastive(z1, z2, form=form, hidden=(h1, h2))

    part = [x[:1000] for x in (z1, z2, h1, h2)]
    few = emp.score_contrastive(*part[:2], form=form, hidden=tuple(part[2:]))
    doubles = [x.double() for x in part]
    exact = dense(form, doubles[:2], doubles[2:])
    for found, want in zip(few, exact, strict=False):
        torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-5)
    results: dict[str, Any] = {}
    memory = {
        "ours": peak_mib(lambda: results.update(ours=ours())),
        "torch dense": peak_mib(lambda: results.update(dense=dense(form, (z1, z2), (h1, h2)))),
    }
    for found, want in zip(results["ours"], results["dense"], strict=False):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)
    assert memory["ours"] <= MOST_MIB
    case(
        f"score_contrastive {form} {n}×{WIDTH}, hidden {HIDDEN}",
        ours,
        {"torch dense": lambda: dense(form, (z1, z2), (h1, h2))},
        moved=sum(x.nbytes for x in (z1, z2, h1, h2)),
        rounds=9,
        goals=GOALS.get(form, {}),
        fields={
            "n": n, "c": n, "d": WIDTH + HIDDEN, "dtype": "float32", "peak_mib": memory,
            "elements": n * n * (4 if form == "ntxent" else 1),
        },
    )  # fmt: skip
