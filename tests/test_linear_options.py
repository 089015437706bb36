"""Options of linear_cross_entropy, and linear_log_prob_and_entropy: equal to those of the product's
logits in float64. Tiles are small here, so that small products have many."""

import math

import oracle
import pytest
import torch
from test_loss_options import REDUCTIONS, name_of, reduce, true_losses

import emp_kernels as emp
from emp_kernels import tiles

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
ASKED = [
    {"label_smoothing": 0.1},
    {"class_weight": "random"},
    {"sample_weight": "random"},
    {"z_loss": 1e-2},
    {"temperature": 0.7},
    {"temperature": "random"},
    {"softcap": 5.0},
    {
        "label_smoothing": 0.1, "class_weight": "random", "sample_weight": "random",
        "z_loss": 1e-2, "temperature": "random", "softcap": 10.0,
    },
]  # fmt: skip


@pytest.fixture(params=[(1024, 1024), (7, 11)], ids=["one tile", "many tiles"], autouse=True)
def cut(request, monkeypatch):
    monkeypatch.setattr(tiles, "ROWS", request.param[0])
    monkeypatch.setattr(tiles, "COLUMNS", request.param[1])


def make(asked, n=23, d=8, classes=37, dtype=torch.float32, with_bias=True):
    """hidden (n, d), weight (classes, d), bias, labels (n,), and the options."""
    generator = torch.Generator().manual_seed(n + classes)
    hidden = 3 * torch.randn(n, d, generator=generator)
    weight = torch.randn(classes, d, generator=generator) / d**0.5
    bias = torch.randn(classes, generator=generator) if with_bias else None
    labels = torch.randint(classes, (n,), generator=generator)
    options = dict(asked)
    for name, size in (("class_weight", classes), ("sample_weight", n), ("temperature", n)):
        if options.get(name) == "random":
            options[name] = torch.rand(size, generator=generator) + 0.5
    tensors = [x if x is None else x.to(dtype) for x in (hidden, weight, bias)]
    return tensors, labels, options


def leaves(tensors, dtype=None):
    return [x if x is None else x.to(dtype or x.dtype, copy=True).requires_grad_() for x in tensors]


def product(hidden, weight, bias):
    z = hidden @ weight.t()
    return z if bias is None else z + bias


def assert_gradients(got, want, dtype):
    """Sums of many products: a few roundings of the dtype of the largest element."""
    step = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    for ours, theirs in zip(got, want, strict=True):
        assert ours.dtype == dtype
        assert (ours.double() - theirs).abs().max() <= step * theirs.abs().max() + 1e-30


def check(asked, backend, *, dtype=torch.float32, reduction="mean", rows=None, ignored=False,
          with_bias=True):  # fmt: skip
    tensors, labels, options = make(asked, dtype=dtype, with_bias=with_bias)
    ignore_index = None
    if ignored:
        labels[::4], ignore_index = -1, -1
    ours, exact = leaves(tensors), leaves(tensors, torch.float64)
    renamed = {("weight" if k == "class_weight" else k): v for k, v in options.items()}
    losses = true_losses(product(*exact), labels, renamed, ignore_index)
    want = reduce(*losses, reduction, rows.indices if isinstance(rows, emp.Selection) else rows)
    upstream = torch.randn(want.shape, generator=torch.Generator().manual_seed(3))
    loss = emp.linear_cross_entropy(
        *ours[:2], labels, bias=ours[2], rows=rows, reduction=reduction, ignore_index=ignore_index,
        backend=backend, **options,
    )  # fmt: skip
    assert loss.dtype == torch.float32
    close = {torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 5e-2}[dtype]
    torch.testing.assert_close(loss.double(), want.detach(), rtol=close, atol=close)
    used = [x for x in ours if x is not None], [x for x in exact if x is not None]
    assert_gradients(
        torch.autograd.grad(loss, used[0], upstream),
        torch.autograd.grad(want, used[1], upstream.double()),
        dtype,
    )


every_option = pytest.mark.parametrize("asked", ASKED, ids=name_of)


@every_option
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loss_and_gradients(asked, dtype, backend):
    check(asked, backend, dtype=dtype)


@every_option
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_reductions_rows_and_ignored_labels(asked, reduction, backend):
    rows = torch.tensor([5, 0, 22, 5, 8, 17, 12, 1])  # row 5 counts twice
    check(asked, backend, reduction=reduction, rows=rows, ignored=True)
    check(asked, backend, reduction=reduction, ignored=True, with_bias=False)


@every_option
def test_a_selection(asked, backend):
    tensors, labels, options = make(asked)
    adjustment = {name: options[name] for name in ("temperature", "softcap") if name in options}
    a = oracle.adjusted(product(*(x.double() for x in tensors)), **adjustment)
    scores = emp.Scores(*(x.float() for x in emp.score(a, labels)))
    rows = emp.Selection(torch.tensor([3, 4, 17]), scores, torch.tensor(0.0), torch.tensor(0))
    for reduction in REDUCTIONS:
        check(asked, backend, reduction=reduction, rows=rows)


@pytest.mark.parametrize("adjustment", [{}, {"temperature": "random", "softcap": 10.0}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_log_probs_with_all_gradients(adjustment, dtype, backend):
    tensors, labels, options = make(adjustment, dtype=dtype)
    labels[2] = -7
    ours, exact = leaves(tensors), leaves(tensors, torch.float64)
    found = emp.linear_log_prob_and_entropy(
        *ours[:2], labels, bias=ours[2], ignore_index=-7, backend=backend, **options
    )
    a = oracle.adjusted(product(*exact), **options)
    log_p, counted = a.log_softmax(1), (labels >= 0).double()
    want = [log_p.gather(1, labels.clamp(min=0)[:, None])[:, 0]]
    want += [-(log_p.exp() * log_p).sum(1), a.logsumexp(1)]
    want = [x * counted for x in want]
    close = {torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 6e-2}[dtype]
    for have, truth in zip(found, want, strict=True):
        assert have.dtype == torch.float32
        torch.testing.assert_close(have.double(), truth, rtol=close, atol=close)
    upstream = torch.randn(3, len(labels), generator=torch.Generator().manual_seed(5))
    for used in ([0], [1], [0, 1, 2]):
        got = torch.autograd.grad(
            sum((found[i] * upstream[i]).sum() for i in used), ours, retain_graph=True
        )
        truth = torch.autograd.grad(
            sum((want[i] * upstream[i].double()).sum() for i in used), exact, retain_graph=True
        )
        assert_gradients(got, truth, dtype)


def test_confident_rows_keep_their_accuracy(backend):
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    hidden = torch.tensor([[60.0, -10.0], [1.0, 45.0]]).requires_grad_()
    labels = torch.tensor([0, 1])
    found = emp.linear_log_prob_and_entropy(hidden, weight, labels, backend=backend)
    truth = oracle.statistics(hidden.detach() @ weight.t(), labels)
    assert oracle.relative_errors(-found.log_prob, truth.loss).max() <= 1e-5
    assert oracle.relative_errors(found.entropy, truth.entropy).max() <= 1e-5
    exact = oracle.entropy_gradient(hidden.detach().double() @ weight.double().t())
    (gradient,) = torch.autograd.grad(found.entropy.sum(), hidden)
    want = exact @ weight.double().numpy()
    assert (abs(oracle.to_float64(gradient) - want) <= 1e-5 * abs(want).max(1, keepdims=True)).all()


def test_what_it_refuses(backend):
    (hidden, weight, _), labels, _ = make({})
    for error, options in (
        (ValueError, {"label_smoothing": 2.0}),
        (ValueError, {"class_weight": torch.ones(36)}),
        (TypeError, {"class_weight": 1.0}),
        (ValueError, {"temperature": 0.0}),
        (ValueError, {"softcap": math.inf}),
    ):
        with pytest.raises(error, match=r"^linear_cross_entropy: .* must "):
            emp.linear_cross_entropy(hidden, weight, labels, backend=backend, **options)
    with pytest.raises(TypeError, match="linear_cross_entropy: labels must have an integer dtype"):
        emp.linear_cross_entropy(hidden, weight, torch.rand(23, 37), backend=backend)
    with pytest.raises(ValueError, match="linear_log_prob_and_entropy: labels must be in"):
        emp.linear_log_prob_and_entropy(hidden, weight, labels + 30, backend=backend)
