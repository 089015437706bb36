"""score_contrastive with hidden features, against the whole matrices in PyTorch; and its memory."""

from collections.abc import Callable

import pytest
import torch

import emp_kernels as emp
from bench import memory

ROWS = {"infonce": 16384, "clip": 4096, "ntxent": 4096}
WIDTH, HIDDEN, TEMPERATURE = 128, 512, 0.1
GOALS = {"infonce": {"torch dense": (2, 4)}}


def inputs(n):
    """z (two views, (n, WIDTH)) and hidden (two views, (n, HIDDEN))."""
    generator = torch.Generator().manual_seed(0)
    z1, h1 = (torch.randn(n, width, generator=generator) for width in (WIDTH, HIDDEN))
    z2, h2 = (x + 0.5 * torch.randn(x.shape, generator=generator) for x in (z1, h1))
    return (z1, z2), (h1, h2)


def first_call(form: str, n: str) -> Callable[[], emp.Scores]:
    z, hidden = inputs(int(n))
    return lambda: emp.score_contrastive(*z, form=form, hidden=hidden)


def units(pair):
    return (torch.nn.functional.normalize(x, dim=1) for x in pair)


def dense(form, z, hidden):
    """Score, loss and entropy in straightforward float32 PyTorch, with whole matrices."""

    def directions(pair):
        first, second = units(pair)
        if form != "ntxent":
            rows = (first / TEMPERATURE) @ second.T
            return [rows, rows.T][: 1 + (form == "clip")], torch.arange(len(first))
        both = torch.cat([first, second])
        rows = (both / TEMPERATURE) @ both.T
        return [rows.fill_diagonal_(-torch.inf)], torch.arange(len(both)).roll(len(first))

    def mean(values):
        return torch.cat(values).view(-1, len(z[0])).mean(0)

    rows, positives = directions(z)
    loss = mean([x.logsumexp(1) - x.gather(1, positives[:, None])[:, 0] for x in rows])
    rows, _ = directions(hidden)
    log_p = [x.log_softmax(1) for x in rows]
    entropy = mean([-(x.exp() * x).nansum(1) for x in log_p])  # the row itself: 0 * -inf
    return loss + entropy, loss, entropy


def dense_in_place(z, hidden):
    """The same for InfoNCE, optimised to reuse two matrices."""

    def shifted(pair, out=None):
        first, second = units(pair)
        rows = torch.mm(first / TEMPERATURE, second.T, out=out)
        positives, highest = rows.diagonal().clone(), rows.amax(1)
        return rows.sub_(highest[:, None]), positives - highest

    rows, positives = shifted(z)
    loss = rows.exp_().sum(1).log() - positives
    rows, _ = shifted(hidden, rows)
    p = rows.exp()
    total = p.sum(1)
    entropy = total.log() - p.mul_(rows).sum(1) / total
    return loss + entropy, loss, entropy


@pytest.mark.parametrize(("form", "n"), ROWS.items())
def bench_score_contrastive(case, form, n):
    z, hidden = inputs(n)
    opponents = {"torch dense": lambda: dense(form, z, hidden)}
    if form == "infonce":
        opponents["torch dense, in place"] = lambda: dense_in_place(z, hidden)

    def ours():
        return emp.score_contrastive(*z, form=form, hidden=hidden)

    parts = [[x[:1000] for x in pair] for pair in (z, hidden)]
    few = emp.score_contrastive(*parts[0], form=form, hidden=parts[1])
    exact = dense(form, *([x.double() for x in pair] for pair in parts))
    for found, expected in zip(few, exact, strict=False):
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    scores = ours()
    for opponent in opponents.values():
        for found, expected in zip(scores, opponent(), strict=False):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    peak = memory.of_a_first_call("bench_contrastive", form, n)
    assert peak is None or peak <= memory.MOST
    width = 2 * n if form == "ntxent" else n
    case(
        f"score_contrastive {form} {n}×{WIDTH}, hidden {HIDDEN}",
        ours,
        opponents,
        moved=sum(x.nbytes for pair in (z, hidden) for x in pair),
        rounds=9,
        goals=GOALS.get(form, {}),
        fields={
            "n": n, "c": width, "d": WIDTH + HIDDEN, "dtype": "float32",
            "peak_bytes": peak, "logits_bytes": 2 * 4 * width**2,
            "elements": n * n * (4 if form == "ntxent" else 1),
        },
    )  # fmt: skip
