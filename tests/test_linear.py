"""score_linear and linear_cross_entropy: equal to score and F.cross_entropy of the whole product,
in the memory of a few tiles. Tiles are small here, so that small products have many."""

import math
import os
import subprocess
import sys
from pathlib import Path

import hard_rows
import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scoring import assert_scores
from torch.autograd import forward_ad
from torch.nn import functional as F

import emp_kernels as emp
from emp_kernels import tiles

INF = float("inf")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
REDUCTIONS = ["mean", "sum", "none"]
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),  # NaN in the interpreter
    pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning"),
]
at_size = pytest.mark.skipif(INTERPRETED, reason="too large for the interpreter")


@pytest.fixture(params=[(1024, 1024), (7, 11)], ids=["one tile", "many tiles"])
def cut(request, monkeypatch):
    """One tile, or many: of 7 rows and 11 columns, in Triton of 16 by 16 in two parts."""
    monkeypatch.setattr(tiles, "ROWS", request.param[0])
    monkeypatch.setattr(tiles, "COLUMNS", request.param[1])
    if INTERPRETED and request.param[0] == 7:
        from emp_kernels.kernels import launch_linear

        plan = launch_linear.LinearPlan(rows=16, columns=16, depth=16, stages=1, parts=2, warps=4)
        monkeypatch.setattr(launch_linear, "plan_linear", lambda *shape: plan)


def product(n, d, classes, dtype=torch.float32, seed=0, scale=1.0):
    """hidden (n, d), weight (classes, d), bias (classes,), labels (n,); logits of about `scale`."""
    generator = torch.Generator().manual_seed(seed)
    hidden = scale * torch.randn(n, d, generator=generator)
    weight = torch.randn(classes, d, generator=generator) / d**0.5
    bias = torch.randn(classes, generator=generator)
    labels = torch.randint(classes, (n,), generator=generator)
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), labels


def exact_logits(hidden, weight, bias):
    logits = hidden.double() @ weight.double().t()
    return logits if bias is None else logits + bias.double()


FAMILIES = [
    name for name in hard_rows.FAMILIES if name not in ("masked", "masked blocks", "broken")
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 33, 65] if INTERPRETED else [1, 2, 10, 11, 12, 33, 65])
def test_hard_rows(classes, dtype, cut, backend):
    """A product with the identity is exact: the score of each row is that of its hidden state."""
    logits, labels, names = hard_rows.batch(classes, dtype, FAMILIES, seed=classes)
    kept = logits.isfinite().all(1)  # 0 * inf is NaN
    logits, labels = logits[kept], labels[kept]
    names = [name for name, good in zip(names, kept.tolist(), strict=True) if good]
    got = emp.score_linear(logits, torch.eye(classes, dtype=dtype), labels, backend=backend)
    assert_scores(got, oracle.statistics(logits, labels), names=names)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_masked_columns(dtype, cut, backend):
    """A bias of -inf hides columns, whole tiles of them, the label's too."""
    classes = 40
    hidden, weight, _, labels = product(12, classes, classes, dtype, scale=5)
    weight = torch.eye(classes, dtype=dtype)
    for hide in (slice(0, 33), slice(16, 40), slice(1, 39), slice(0, 40)):
        bias = torch.zeros(classes, dtype=dtype)
        bias[hide] = -INF
        got = emp.score_linear(hidden, weight, labels, bias=bias, backend=backend)
        assert_scores(got, oracle.statistics(hidden + bias, labels))


def test_rows_that_are_not_finite(cut, backend):
    """NaN, or +inf of either sign of NaN's making, in one tile of several: the row is invalid."""
    hidden, weight, bias, labels = product(9, 4, 40)
    weight[:, 3] = 0
    weight[17, 3], weight[18, 3] = 1, -1
    hidden[:, 3] = 0
    hidden[2, 0] = math.nan
    hidden[3, 3] = 3e38
    hidden[4] = 0
    bias = torch.where(torch.arange(40) == 17, 3e38, 0.0)  # 3e38 + 3e38 is +inf
    labels[:] = 5
    logits = (hidden.double() @ weight.double().t() + bias.double()).float()
    assert logits[3, 17] == INF
    got = emp.score_linear(hidden, weight, labels, bias=bias, backend=backend)
    bad = torch.isin(torch.arange(9), torch.tensor([2, 3]))
    assert torch.equal(got.score.isnan(), bad)
    assert got.lse[2].isnan()
    assert got.lse[3] == INF
    if backend != "reference":  # float64 inside: its logit of 6e38 has an entropy
        assert torch.equal(got.entropy.isnan(), bad)


def torch_scores(hidden, weight, bias, labels):
    """(loss, entropy) as torch computes them in the tensors' dtype."""
    log_p = F.linear(hidden, weight, bias).log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    return F.nll_loss(log_p, labels, reduction="none"), entropy


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_error_at_most_twice_that_of_torch(dtype, with_bias, cut, backend):
    shapes = [(20, 16, 50, 1.0), (9, 33, 79, 10.0), (8, 256, 100, 3.0)]
    for n, d, classes, scale in shapes[: 1 if INTERPRETED else 3]:
        hidden, weight, bias, labels = product(n, d, classes, dtype, seed=d, scale=scale)
        bias = bias if with_bias else None
        got = emp.score_linear(hidden, weight, labels, bias=bias, backend=backend)
        truth = oracle.statistics(exact_logits(hidden, weight, bias), labels)
        for ours, theirs, want in zip(
            got[1:3], torch_scores(hidden, weight, bias, labels), truth[:2], strict=True
        ):
            error = np.abs(oracle.to_float64(ours) - want).max()
            limit = np.abs(oracle.to_float64(theirs) - want).max()
            assert error <= 2 * limit + 1e-6 * np.abs(want).max()
        np.testing.assert_allclose(
            got.score, (got.loss.double() + got.entropy.double()), rtol=1e-6, atol=1e-6
        )


@at_size
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_vocabulary(dtype, backend, threads):
    """Many tiles of the usual size; beta; no result depends on the threads beyond rounding."""
    hidden, weight, bias, labels = product(70, 48, 50257, dtype, scale=4)
    labels[::9] = -100
    truth = oracle.statistics(exact_logits(hidden, weight, bias), labels, -100)
    # In 16 bits the processor decides whether the product is rounded to them, as in torch.
    plain = torch.nn.functional.linear(hidden, weight, bias)
    torchs = oracle.statistics(plain.double(), labels, -100)
    tolerance = 1e-5 + 2 * max(
        np.abs(getattr(torchs, name) - getattr(truth, name)).max() for name in ("loss", "entropy")
    )
    for count in threads[:2]:
        torch.set_num_threads(count)
        got = emp.score_linear(
            hidden, weight, labels, bias=bias, beta=-0.5, ignore_index=-100, backend=backend
        )
        np.testing.assert_allclose(got.loss, truth.loss, rtol=1e-5, atol=tolerance)
        np.testing.assert_allclose(got.entropy, truth.entropy, rtol=1e-5, atol=tolerance)
        want = np.where(truth.ignored, -INF, truth.loss - 0.5 * truth.entropy)
        np.testing.assert_allclose(got.score, want, rtol=1e-5, atol=2 * tolerance)


@settings(max_examples=10 if INTERPRETED else 60)
@given(st.data())
def test_any_product(backend, data):
    """Any sizes, tiles, views, labels' dtypes and ignored rows."""
    batch = data.draw(st.sampled_from([(0,), (1,), (6,), (2, 3), (3, 0), (2, 1, 4)]))
    d, classes = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 30))
    n = math.prod(batch)
    hidden, weight, bias, labels = product(n, d, classes, seed=d)
    hidden, labels = hidden.view(*batch, d), labels.view(batch)
    if data.draw(st.booleans()):  # leading dimensions that do not collapse, an inner stride
        wide = torch.zeros(*(s + 1 for s in batch), 2 * d)
        view = wide[tuple(slice(1, None) for _ in batch)][..., ::2]
        hidden = view.copy_(hidden)
    if data.draw(st.booleans()):
        weight = weight.t().contiguous().t()
    bias = data.draw(st.sampled_from([bias, None]))
    labels = labels.to(data.draw(st.sampled_from([torch.int64, torch.uint8, torch.int16])))
    ignore_index = data.draw(st.sampled_from([None, 0, 3, -100]))
    before = oracle.fingerprint(hidden, weight, labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "ROWS", data.draw(st.integers(1, 7)))
        patch.setattr(tiles, "COLUMNS", data.draw(st.integers(1, 40)))
        got = emp.score_linear(
            hidden, weight, labels, bias=bias, ignore_index=ignore_index, backend=backend
        )
    assert oracle.fingerprint(hidden, weight, labels) == before
    assert all(x.shape == labels.shape and x.dtype == torch.float32 for x in got)
    want = oracle.statistics(
        exact_logits(hidden.reshape(n, d), weight, bias), labels.reshape(-1), ignore_index
    )
    np.testing.assert_allclose(got.loss.reshape(-1), want.loss, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.entropy.reshape(-1), want.entropy, rtol=1e-5, atol=1e-5)
    assert ((got.score == -INF).reshape(-1).numpy() == want.ignored).all()


def test_ignored_rows_take_no_part(cut, backend):
    hidden, weight, _, labels = product(20, 5, 30)
    labels[::3] = -1
    hidden[::3] = math.nan
    got = emp.score_linear(hidden, weight, labels, ignore_index=-1, backend=backend)
    assert (got.score[::3] == -INF).all()
    assert not got.loss[::3].any()
    assert got.score[labels >= 0].isfinite().all()
    nothing = emp.score_linear(hidden, weight, labels * 0 - 1, ignore_index=-1, backend=backend)
    assert (nothing.score == -INF).all()


def test_nothing_requires_grad(backend):
    hidden, weight, bias, labels = product(5, 4, 6)
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    got = emp.score_linear(leaves[0] * 2, weight, labels, bias=bias, backend=backend)
    assert not any(x.requires_grad for x in got)


# ---- the training loss


def materialised(hidden, weight, bias, labels, rows, ignore_index, reduction):
    """F.cross_entropy of the whole product's rows."""
    logits, flat = F.linear(hidden, weight, bias).reshape(-1, len(weight)), labels.reshape(-1)
    if rows is not None:
        logits, flat = logits[rows], flat[rows]
    skip = -100 if ignore_index is None else ignore_index
    loss = F.cross_entropy(logits, flat, ignore_index=skip, reduction=reduction)
    return loss.view(labels.shape) if reduction == "none" and rows is None else loss


def derivatives(function, inputs, upstream=None):
    """(loss, gradients) of function(*inputs); None among the inputs stays None."""
    leaves = [None if x is None else x.detach().requires_grad_() for x in inputs]
    loss = function(*leaves)
    upstream = torch.ones_like(loss) if upstream is None else upstream.to(loss.dtype)
    return loss.detach(), torch.autograd.grad(loss, [x for x in leaves if x is not None], upstream)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore_index", [None, 2])
@pytest.mark.parametrize("selected", [False, True])
def test_equals_torch(reduction, ignore_index, selected, cut, backend):
    hidden, weight, bias, labels = product(36, 7, 25, scale=3)
    if ignore_index is not None:
        labels[::4] = ignore_index
    hidden, labels = hidden.view(4, 9, 7), labels.view(4, 9)
    rows = torch.tensor([5, 0, 35, 5, 8, 17, 12, 1]) if selected else None  # row 5 counts twice
    for with_bias in (bias, None):
        inputs = (hidden, weight, with_bias)
        shape = (8,) if selected else (4, 9)
        upstream = torch.randn(
            shape if reduction == "none" else (), generator=torch.Generator().manual_seed(7)
        )
        want, wanted = derivatives(
            lambda h, w, b: materialised(h, w, b, labels, rows, ignore_index, reduction),
            [None if x is None else x.double() for x in inputs], upstream,
        )  # fmt: skip
        got, gradients = derivatives(
            lambda h, w, b: emp.linear_cross_entropy(
                h, w, labels, bias=b, rows=rows, ignore_index=ignore_index, reduction=reduction,
                backend=backend,
            ),
            inputs, upstream,
        )  # fmt: skip
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-5)
        for ours, theirs in zip(gradients, wanted, strict=True):
            atol = 2e-5 * float(theirs.abs().max())
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=atol)
        if selected:
            left_out = torch.ones(36, dtype=torch.bool)
            left_out[rows] = False
            assert not gradients[0].view(36, 7)[left_out].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_gradients(dtype, cut, backend):
    """Loss and gradients at most twice as far from float64 as torch's."""
    inputs = product(40, 24, 60, dtype, scale=3)
    *tensors, labels = inputs
    exact, truths = derivatives(
        lambda h, w, b: materialised(h, w, b, labels, None, None, "mean"),
        [x.double() for x in tensors],
    )
    theirs, their_gradients = derivatives(
        lambda h, w, b: materialised(h, w, b, labels, None, None, "mean"), tensors
    )
    ours, our_gradients = derivatives(
        lambda h, w, b: emp.linear_cross_entropy(h, w, labels, bias=b, backend=backend), tensors
    )
    assert (ours - exact).abs() <= 2 * (theirs - exact).abs() + 1e-5
    for got, other, truth in zip(our_gradients, their_gradients, truths, strict=True):
        assert got.dtype == dtype
        limit = (other.double() - truth).norm() + torch.finfo(dtype).eps * truth.norm()
        assert (got.double() - truth).norm() <= 2 * limit


@pytest.mark.skipif(INTERPRETED, reason="float64 is the reference's")
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradcheck(reduction, cut):
    hidden, weight, bias, labels = (
        x.double() if x.is_floating_point() else x for x in product(9, 4, 13)
    )
    labels[3] = -1
    inputs = tuple(x.requires_grad_() for x in (hidden, weight, bias))
    for rows in (None, torch.tensor([1, 8, 3, 1])):
        assert torch.autograd.gradcheck(
            lambda h, w, b, rows=rows: emp.linear_cross_entropy(
                h, w, labels, bias=b, rows=rows, ignore_index=-1, reduction=reduction
            ),
            inputs,
        )


def test_rows_that_are_not_trained_are_not_read(cut, backend):
    hidden, weight, _, labels = product(20, 5, 30)
    rows = torch.tensor([1, 4, 15])
    want = derivatives(
        lambda h, w: emp.linear_cross_entropy(h, w, labels, rows=rows, backend=backend),
        (hidden, weight),
    )
    blank = torch.full_like(hidden, math.nan)
    blank[rows] = hidden[rows]
    got = derivatives(
        lambda h, w: emp.linear_cross_entropy(h, w, labels, rows=rows, backend=backend),
        (blank, weight),
    )
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_confident_rows_keep_their_gradient(backend):
    """1 - p_y far below float32's step at 1."""
    weight = torch.eye(4)
    hidden = torch.tensor([[40.0, 0.0, 0.0, 0.0]]).requires_grad_()
    loss = emp.linear_cross_entropy(hidden, weight, torch.tensor([0]), backend=backend)
    loss.backward()
    tail = math.exp(-40)
    assert math.isclose(loss.item(), 3 * tail, rel_tol=1e-5)
    np.testing.assert_allclose(hidden.grad[0], [-3 * tail, tail, tail, tail], rtol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 10, 20, 21])
def test_tiles_kept_in_the_memory_of_the_gradient(n, dtype, cut, backend):
    """The tiles of up to D rows (half as many for 16 bits) are stored there. A second backward
    pass, after the first one has overwritten them, gives the same bits; one of fewer rows gives
    those rows' gradient."""
    hidden, weight, bias, labels = product(n, 20, 37, dtype)
    leaves = [x.requires_grad_() for x in (hidden, weight, bias)]
    losses = emp.linear_cross_entropy(
        hidden, weight, labels, bias=bias, reduction="none", backend=backend
    )
    first = torch.autograd.grad(losses.sum(), leaves, retain_graph=True)
    second = torch.autograd.grad(losses.sum(), leaves, retain_graph=True)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
    fresh = emp.linear_cross_entropy(
        hidden, weight, labels, bias=bias, reduction="none", backend=backend
    )
    one_row = torch.autograd.grad(fresh[n // 2], leaves)
    for ours, theirs in zip(one_row, torch.autograd.grad(losses[n // 2], leaves), strict=True):
        assert torch.equal(ours, theirs)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    truth = F.cross_entropy(exact_logits(*exact), labels, reduction="sum")
    rtol = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 6e-2}[dtype]
    for ours, theirs in zip(first, torch.autograd.grad(truth, exact), strict=True):
        assert (ours.double() - theirs).norm() <= rtol * theirs.norm()


def test_only_what_needs_a_gradient_gets_one(backend):
    hidden, weight, bias, labels = product(6, 4, 9)
    whole = derivatives(
        lambda h, w, b: emp.linear_cross_entropy(h, w, labels, bias=b, backend=backend),
        (hidden, weight, bias),
    )[1]
    for i in range(3):
        inputs = [x.detach().requires_grad_(i == j) for j, x in enumerate((hidden, weight, bias))]
        emp.linear_cross_entropy(
            inputs[0], inputs[1], labels, bias=inputs[2], backend=backend
        ).backward()
        for j, x in enumerate(inputs):
            assert (x.grad is None) == (i != j)
        torch.testing.assert_close(inputs[i].grad, whole[i], rtol=0, atol=0)
    with torch.no_grad():
        loss = emp.linear_cross_entropy(hidden, weight, labels, bias=bias, backend=backend)
    assert not loss.requires_grad


def test_a_selection_lends_its_losses(backend):
    """Token selection before the loss: the loss's forward pass computes no product."""
    hidden, weight, _, labels = product(24, 6, 15)
    labels[::5] = -100
    tokens, targets = hidden.view(4, 6, 6), labels.view(4, 6)
    kept = emp.score_and_select(
        F.linear(tokens, weight), targets, None, 0.5, per="row", ignore_index=-100, backend=backend
    )
    options = {"ignore_index": -100, "backend": backend}
    want, wanted = derivatives(
        lambda h: emp.linear_cross_entropy(h, weight, targets, rows=kept.indices, **options),
        (tokens,),
    )
    got, gradients = derivatives(
        lambda h: emp.linear_cross_entropy(h, weight, targets, rows=kept, **options), (tokens,)
    )
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradients, wanted)
    blank = torch.full_like(tokens, math.nan)
    torch.testing.assert_close(
        emp.linear_cross_entropy(blank, weight, targets, rows=kept, **options), got
    )


def test_nothing_to_train_on(backend):
    hidden, weight, _, labels = product(5, 4, 6)
    for given_rows, ignored in ((None, -1), (torch.tensor([], dtype=torch.int64), None)):
        y = labels * 0 - 1 if ignored is not None else labels
        for reduction in REDUCTIONS:
            loss, (gradient, _) = derivatives(
                lambda h, w, y=y, r=reduction, rows=given_rows, i=ignored: emp.linear_cross_entropy(
                    h, w, y, rows=rows, ignore_index=i, reduction=r, backend=backend
                ),
                (hidden, weight),
            )
            assert loss.isnan() if reduction == "mean" else not loss.any()
            assert not gradient.any()


def test_a_selection_of_float64_lends_its_losses_rounded(backend):
    hidden, weight, _, labels = product(6, 4, 5)
    logits = hidden.double() @ weight.double().t()
    selection = emp.score_and_select(logits, labels, None, 0.5)
    (loss, gradients), (want, theirs) = (
        derivatives(
            lambda h, w, rows=rows: emp.linear_cross_entropy(
                h, w, labels, rows=rows, backend=backend
            ),
            (hidden, weight),
        )
        for rows in (selection, selection.indices)
    )
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(gradients, theirs)


def test_losses_of_rows_may_be_changed_in_place(backend):
    hidden, weight, _, labels = product(3, 4, 6)
    hidden.requires_grad_()
    loss = emp.linear_cross_entropy(hidden, weight, labels, reduction="none", backend=backend)
    (want,) = torch.autograd.grad(loss.sum() * 2, hidden, retain_graph=True)
    (got,) = torch.autograd.grad(loss.mul_(2).sum(), hidden)
    assert torch.equal(got, want)


def test_forward_mode_is_refused(backend):
    hidden, weight, _, labels = product(3, 4, 6)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(weight, torch.ones_like(weight))
        with pytest.raises(NotImplementedError, match="jvp"):
            emp.linear_cross_entropy(hidden, dual, labels, backend=backend)


def test_a_second_derivative_is_refused(backend):
    hidden, weight, _, labels = product(3, 4, 6)
    hidden.requires_grad_()
    loss = emp.linear_cross_entropy(hidden, weight, labels, backend=backend)
    (gradient,) = torch.autograd.grad(loss, hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="linear_cross_entropy: the gradient must not"):
        torch.autograd.grad(gradient.sum(), hidden)


@at_size
def test_under_torch_compile(backend):
    hidden, weight, _, labels = product(6, 4, 9)

    def step(hidden):
        scores = emp.score_linear(hidden * 2, weight, labels, backend=backend)
        return emp.linear_cross_entropy(hidden * 2, weight, labels, backend=backend), scores.score

    for got, want in zip(torch.compile(step, backend="eager")(hidden), step(hidden), strict=True):
        assert torch.equal(got, want)


@at_size
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autocast_changes_nothing(dtype, cut):
    """No product is taken in a dtype that the tensors do not have, forward or backward."""
    hidden, weight, bias, labels = product(20, 8, 30, dtype)

    def found():
        scores = emp.score_linear(hidden, weight, labels, bias=bias)
        loss, gradients = derivatives(
            lambda h, w, b: emp.linear_cross_entropy(h, w, labels, bias=b), (hidden, weight, bias)
        )
        return (*scores, loss, *gradients)

    want = found()
    for other in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", other):
            got = found()
        for a, b in zip(got, want, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_hidden_states_of_no_width(dtype, cut, backend):
    """Products of no terms are 0: the bias alone gives the logits."""
    hidden, weight, bias, labels = product(12, 0, 30, dtype)
    hidden, labels = hidden.view(3, 4, 0), labels.view(3, 4)
    for own in (bias, None):
        logits = (weight.new_zeros(30) if own is None else own).double().expand(12, 30)
        got = emp.score_linear(hidden, weight, labels, bias=own, backend=backend)
        assert_scores(
            emp.Scores(*(x.view(-1) for x in got)), oracle.statistics(logits, labels.view(-1))
        )
    loss, gradients = derivatives(
        lambda h, w, b: emp.linear_cross_entropy(h, w, labels, bias=b, backend=backend),
        (hidden, weight, bias),
    )
    exact, truths = derivatives(
        lambda b: F.cross_entropy(b.expand(12, 30), labels.view(-1)), (bias.double(),)
    )
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    assert [x.shape for x in gradients] == [(3, 4, 0), (30, 0), (30,)]
    torch.testing.assert_close(gradients[2].double(), truths[0], rtol=1e-2, atol=1e-3)


# ---- memory

PROGRAM = """
import sys, torch
import emp_kernels as emp
n, classes, d = 4096, 20000, 32
torch.set_num_threads(2)
hidden, weight = torch.randn(n, d), torch.randn(classes, d)
hidden, weight = hidden.to(getattr(torch, sys.argv[1])), weight.to(getattr(torch, sys.argv[1]))
labels = torch.randint(classes, (n,))
def status(name):
    return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith(name)) / 1024
def run(n):
    if sys.argv[2] == "score":
        return emp.score_linear(hidden[:n], weight, labels[:n])
    rows = torch.arange(0, n, 2)
    emp.linear_cross_entropy(hidden[:n].requires_grad_(), weight.requires_grad_(), labels[:n],
                             rows=rows).backward()
run(64)
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
run(n)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or INTERPRETED, reason="reads /proc")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("call", ["score", "train"])
def test_memory_of_a_few_tiles(call, dtype):
    """The logits would be 312 MB in float32. Scoring uses one tile; training its gradients, sums
    and a few tiles."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, dtype, call],
        capture_output=True, text=True, cwd=Path(emp.__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < (24 if call == "score" else 48)


# ---- bad input


def refused(error, match, backend, function=None, **changes):
    hidden, weight, bias, labels = product(5, 4, 6)
    arguments = {"hidden": hidden, "weight": weight, "labels": labels, "bias": bias} | changes
    for name in ("score_linear", "linear_cross_entropy") if function is None else (function,):
        with pytest.raises(error, match=rf"^{name}: {match}"):
            getattr(emp, name)(**arguments, backend=backend)


def test_bad_input(backend):
    hidden, weight, bias, labels = product(5, 4, 6)
    for name, tensor in (("hidden", hidden), ("weight", weight), ("labels", labels)):
        for wrong in (None, 3, [[1.0]]):
            refused(TypeError, f"{name} must be a torch.Tensor, got", backend, **{name: wrong})
        refused(TypeError, f"{name} must have layout", backend, **{name: tensor.to_sparse()})
    refused(TypeError, "bias must be a torch.Tensor, got", backend, bias=3)
    refused(TypeError, "hidden must be float32", backend, hidden=hidden.int())
    refused(TypeError, "weight must have the dtype of hidden", backend, weight=weight.bfloat16())
    refused(TypeError, "bias must have the dtype of hidden", backend, bias=bias.double())
    refused(TypeError, "labels must have an integer dtype", backend, labels=labels.float())
    for wrong in (weight.t(), weight[0], weight[None], weight[:, :3]):
        refused(ValueError, r"weight must have shape \(C, 4\), got", backend, weight=wrong)
    for wrong in (bias[:5], bias[None], bias[0]):
        refused(ValueError, r"bias must have shape \(6,\), got", backend, bias=wrong)
    refused(ValueError, "labels must have the leading shape of hidden", backend, labels=labels[:4])
    refused(ValueError, r"labels must be in \[0, 6\), got 6 in row 2", backend,
            labels=torch.tensor([0, 1, 6, 2, 9]))  # fmt: skip
    refused(ValueError, "weight must be on the device", backend, weight=weight.to("meta"))
    refused(TypeError, "ignore_index must be", backend, ignore_index=1.5)
    refused(TypeError, "beta must be", backend, "score_linear", beta="1")
    train = "linear_cross_entropy"
    refused(ValueError, "reduction must be one of", backend, train, reduction="max")
    refused(ValueError, "rows must be in", backend, train, rows=torch.tensor([5]))
    refused(TypeError, "rows must have an integer", backend, train, rows=torch.tensor([0.5]))
    other = emp.score_and_select(torch.randn(4, 6), labels[:4], None, 0.5)
    refused(ValueError, "rows must be a Selection of the 5 rows", backend, train, rows=other)
