"""Products with a sharded vocabulary: score_linear, linear_cross_entropy with every option and
linear_log_prob_and_entropy are those of whole rows in float64, and so are all gradients."""

import math

import oracle
import pytest
import torch
from test_linear_options import ASKED, assert_gradients, leaves, make, product
from test_loss_options import INTERPRETED, REDUCTIONS, name_of, reduce, true_losses
from test_vocab_parallel import cuts_of, on_threads, same_on_all_ranks  # noqa: F401

import emp_kernels as emp
from emp_kernels import tiles

DTYPES = [torch.float32] if INTERPRETED else [torch.float32, torch.float16, torch.bfloat16]
WORLDS = (3,) if INTERPRETED else (1, 2, 4)
every_option = pytest.mark.parametrize("asked", [{}, *ASKED], ids=name_of)


@pytest.fixture(params=[(1024, 1024), (7, 11)], ids=["one tile", "many tiles"], autouse=True)
def cut(request, monkeypatch):
    monkeypatch.setattr(tiles, "ROWS", request.param[0])
    monkeypatch.setattr(tiles, "COLUMNS", request.param[1])


def parts_of(tensors, rank, world):
    """hidden, and the rank's rows of weight and bias, that are differentiated by; vocab_start."""
    hidden, weight, bias = tensors
    start, stop = cuts_of(len(weight), world)[rank]
    return leaves((hidden, weight[start:stop], None if bias is None else bias[start:stop])), start


def all_parts(results, classes, world):
    """Gradients by hidden, weight and bias of whole rows; hidden's is the same on all ranks."""
    cuts = cuts_of(classes, world)
    order = sorted(range(world), key=lambda rank: cuts[rank])
    same_on_all_ranks([x[:1] for x in results])
    rest = zip(*(results[rank][1:] for rank in order), strict=True)
    return [results[0][0], *(torch.cat(x) for x in rest)]


def check(run, world, asked, backend, *, dtype=torch.float32, reduction="mean", rows=None,
          ignored=False, with_bias=True):  # fmt: skip
    tensors, labels, options = make(asked, dtype=dtype, with_bias=with_bias)
    ignore_index = None
    if ignored:
        labels[::4], ignore_index = 3, 3
    exact = leaves(tensors, torch.float64)
    renamed = {("weight" if k == "class_weight" else k): v for k, v in options.items()}
    losses = true_losses(product(*exact), labels, renamed, ignore_index)
    want = reduce(*losses, reduction, rows.indices if isinstance(rows, emp.Selection) else rows)
    upstream = torch.randn(want.shape, generator=torch.Generator().manual_seed(3))

    def train(rank, world):
        ours, start = parts_of(tensors, rank, world)
        mine = dict(options)
        if "class_weight" in mine:
            mine["class_weight"] = mine["class_weight"][start : start + len(ours[1])]
        loss = emp.linear_cross_entropy(
            *ours[:2], labels, bias=ours[2], rows=rows, reduction=reduction, backend=backend,
            ignore_index=ignore_index, vocab_start=start, **mine,
        )  # fmt: skip
        used = [x for x in ours if x is not None]
        return loss.detach(), torch.autograd.grad(loss, used, upstream)

    found = run(world, train)
    (loss,) = same_on_all_ranks([(x[0],) for x in found])
    assert loss.dtype == torch.float32
    close = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(loss.double(), want.detach(), rtol=close, atol=close)
    truth = torch.autograd.grad(want, [x for x in exact if x is not None], upstream.double())
    assert_gradients(all_parts([x[1] for x in found], len(tensors[1]), world), truth, dtype)


@every_option
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loss_and_gradients(asked, dtype, backend, on_threads):  # noqa: F811
    for world in WORLDS:
        check(on_threads, world, asked, backend, dtype=dtype)


@every_option
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_rows_and_ignored_labels(asked, reduction, backend, on_threads):  # noqa: F811
    rows = torch.tensor([5, 0, 22, 5, 8, 17, 12, 1])  # row 5 counts twice
    check(on_threads, 3, asked, backend, reduction=reduction, rows=rows, ignored=True)
    check(on_threads, 3, asked, backend, reduction=reduction, ignored=True, with_bias=False)


@every_option
def test_a_selection(asked, backend, on_threads):  # noqa: F811
    tensors, labels, options = make(asked)
    adjustment = {name: options[name] for name in ("temperature", "softcap") if name in options}
    a = oracle.adjusted(product(*(x.double() for x in tensors)), **adjustment)
    scores = emp.Scores(*(x.float() for x in emp.score(a, labels)))
    rows = emp.Selection(torch.tensor([3, 4, 17]), scores, torch.tensor(0.0), torch.tensor(0))
    for reduction in REDUCTIONS:
        check(on_threads, 3, asked, backend, reduction=reduction, rows=rows)


@pytest.mark.parametrize("adjustment", [{}, {"temperature": "random", "softcap": 10.0}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_and_log_probs(adjustment, dtype, backend, on_threads):  # noqa: F811
    tensors, labels, options = make(adjustment, dtype=dtype)
    labels[2] = -7
    exact = leaves(tensors, torch.float64)
    a = oracle.adjusted(product(*exact), **options)
    log_p, counted = a.log_softmax(1), (labels >= 0).double()
    want = [log_p.gather(1, labels.clamp(min=0)[:, None])[:, 0]]
    want += [-(log_p.exp() * log_p).sum(1), a.logsumexp(1)]
    want = [x * counted for x in want]
    close = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    upstream = torch.randn(3, len(labels), generator=torch.Generator().manual_seed(5))
    choices = [0], [1], [0, 1, 2]

    def run(rank, world):
        ours, start = parts_of(tensors, rank, world)
        given = {"bias": ours[2], "ignore_index": -7, "vocab_start": start, "backend": backend}
        scores = emp.score_linear(*ours[:2], labels, beta=0.5, **given, **options)
        found = emp.linear_log_prob_and_entropy(*ours[:2], labels, **given, **options)
        gradients = [
            torch.autograd.grad(
                sum((found[i] * upstream[i]).sum() for i in used), ours, retain_graph=True
            )
            for used in choices
        ]
        return scores, [x.detach() for x in found], gradients

    for world in WORLDS:
        results = on_threads(world, run)
        scores = emp.Scores(*same_on_all_ranks([x[0] for x in results]))
        found = same_on_all_ranks([x[1] for x in results])
        assert torch.equal(scores.loss, -found[0])
        assert torch.equal(scores.entropy, found[1])
        assert torch.equal(scores.lse, found[2])
        assert scores.score[2] == -math.inf
        torch.testing.assert_close(scores.score[3:], (scores.loss + 0.5 * scores.entropy)[3:])
        for have, truth in zip(found, want, strict=True):
            assert have.dtype == torch.float32
            torch.testing.assert_close(have.double(), truth, rtol=close, atol=close)
        for i, used in enumerate(choices):
            truth = torch.autograd.grad(
                sum((want[j] * upstream[j].double()).sum() for j in used), exact, retain_graph=True
            )
            got = all_parts([x[2][i] for x in results], len(tensors[1]), world)
            assert_gradients(got, truth, dtype)


def test_confident_rows_keep_their_accuracy(backend, on_threads):  # noqa: F811
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    hidden = torch.tensor([[60.0, -10.0], [1.0, 45.0]])
    labels = torch.tensor([0, 1])

    def run(rank, world):
        (leaf, mine, _), start = parts_of((hidden, weight, None), rank, world)
        found = emp.linear_log_prob_and_entropy(
            leaf, mine, labels, vocab_start=start, backend=backend
        )
        gradient = torch.autograd.grad(found.entropy.sum(), leaf)[0]
        return [x.detach() for x in found], gradient

    truth = oracle.statistics(hidden @ weight.t(), labels)
    exact = oracle.entropy_gradient(hidden.double() @ weight.double().t())
    want = exact @ weight.double().numpy()
    for world in WORLDS:
        found, gradient = on_threads(world, run)[0]
        assert oracle.relative_errors(-found[0], truth.loss).max() <= 1e-5
        assert oracle.relative_errors(found[1], truth.entropy).max() <= 1e-5
        error = abs(oracle.to_float64(gradient) - want)
        assert (error <= 1e-5 * abs(want).max(1, keepdims=True)).all()
