"""cross_entropy's options and log_prob_and_entropy, against torch's autograd in float64."""

import math
import os

import hard_rows
import numpy as np
import oracle
import pytest
import torch
from torch.nn import functional as F

import emp_kernels as emp

INF = float("inf")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
ROUNDING = 1.0 if INTERPRETED else 0.5  # of 16 bits: the interpreter cuts them off
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),  # NaN in the interpreter
    pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning"),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
REDUCTIONS = ["mean", "sum", "none"]
ALONE = [
    {"label_smoothing": 0.1},
    {"label_smoothing": 1.0},
    {"weight": "random"},
    {"sample_weight": "random"},
    {"z_loss": 1e-2},
    {"temperature": 0.7},
    {"temperature": "random"},
    {"softcap": 5.0},
    {"probabilities": True},
]
TOGETHER = [
    {"label_smoothing": 0.2, "weight": "random"},
    {"probabilities": True, "label_smoothing": 0.2, "weight": "random"},
    {"temperature": "random", "softcap": 30.0, "z_loss": 1e-3},
    {
        "label_smoothing": 0.1, "weight": "random", "sample_weight": "random", "z_loss": 1e-2,
        "temperature": "random", "softcap": 10.0,
    },
    {
        "probabilities": True, "label_smoothing": 0.1, "weight": "random",
        "sample_weight": "random", "z_loss": 1e-2, "temperature": "random", "softcap": 10.0,
    },
]  # fmt: skip


def name_of(options):
    return " ".join(f"{name}={value}" for name, value in options.items())


every_option = pytest.mark.parametrize("asked", ALONE + TOGETHER, ids=name_of)
some_options = pytest.mark.parametrize("asked", [ALONE[0], *TOGETHER[-3:]], ids=name_of)


def make(n, classes, asked, dtype=torch.float32, seed=0, scale=3.0):
    """logits (n, classes), labels, and the requested options."""
    generator = torch.Generator().manual_seed(seed)
    logits = (scale * torch.randn(n, classes, generator=generator)).to(dtype)
    labels = torch.randint(classes, (n,), generator=generator)
    options = dict(asked)
    if options.pop("probabilities", False):
        labels = torch.rand(n, classes, generator=generator).square()
        labels /= labels.sum(1, keepdim=True)
    for name, size in (("weight", classes), ("sample_weight", n), ("temperature", n)):
        if options.get(name) == "random":
            options[name] = torch.rand(size, generator=generator) + 0.5
    return logits, labels, options


def true_losses(z, labels, options, ignore_index=None):
    """Each row's loss in float64, differentiable, and what "mean" divides by, row by row."""
    o = {"weight": None, "sample_weight": None, "label_smoothing": 0.0, "z_loss": 0.0} | options
    a = oracle.adjusted(z, o.get("temperature", 1.0), o.get("softcap"))
    weight = None if o["weight"] is None else o["weight"].double()
    soft = labels.is_floating_point()
    labels = labels.double() if soft else labels.long()
    skip = -100 if ignore_index is None else ignore_index
    losses = F.cross_entropy(
        a, labels, weight, ignore_index=skip, label_smoothing=o["label_smoothing"],
        reduction="none",
    )  # fmt: skip
    counted = torch.ones(len(z), dtype=torch.float64)
    if not soft:
        counted = (labels != skip).double()
        if weight is not None:
            counted = counted * weight[labels.clamp(0, z.shape[-1] - 1)]
    read = counted > 0 if not soft else torch.ones(len(z), dtype=torch.bool)
    losses = losses + torch.where(read, o["z_loss"] * a.logsumexp(1) ** 2, 0.0)
    if o["sample_weight"] is not None:
        losses = losses * o["sample_weight"].double()
    return losses, counted


def reduce(losses, divisors, reduction, rows=None):
    if rows is not None:
        losses, divisors = losses[rows], divisors[rows]
    return {"none": losses, "sum": losses.sum(), "mean": losses.sum() / divisors.sum()}[reduction]


def check(
    logits, labels, options, backend, *, reduction="mean", rows=None, ignore_index=None, state=None,
    indices=None,
):  # fmt: skip
    """Loss and gradient against the truth: losses within 1e-5, gradients within 2e-5 of the row's
    largest element and, of 16 bits, one rounding."""
    positions = rows.indices if isinstance(rows, emp.Selection) else rows
    leaf = logits.detach().double().requires_grad_()
    want = reduce(*true_losses(leaf, labels, options, ignore_index), reduction, positions)
    upstream = torch.randn(want.shape, generator=torch.Generator().manual_seed(3))
    (want_gradient,) = torch.autograd.grad(want, leaf, upstream.double())
    ours = logits.detach().requires_grad_()
    loss = emp.cross_entropy(
        ours, labels, state, indices=indices, rows=rows, reduction=reduction,
        ignore_index=ignore_index, backend=backend, **options,
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(loss, ours, upstream)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), want.detach(), rtol=1e-5, atol=1e-12)
    assert gradient.dtype == logits.dtype
    assert_gradient(gradient, want_gradient)


def assert_gradient(got, want):
    want = want.double()
    largest = want.abs().amax(-1, keepdim=True)
    info = torch.finfo(got.dtype)
    bound = 2e-5 * largest + info.smallest_normal * info.eps
    if got.dtype != torch.float32:
        bound = bound + ROUNDING * info.eps * want.abs()
    error = (got.double() - want).abs()
    assert (error <= bound).all(), (error / largest).max()


@every_option
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_loss_and_gradient(asked, dtype, backend):
    for classes in (1, 2, 17, 100):
        logits, labels, options = make(9, classes, asked, dtype, seed=classes)
        check(logits, labels, options, backend)


@every_option
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("selected", [False, True])
def test_reductions_rows_and_ignored_labels(asked, reduction, selected, backend):
    logits, labels, options = make(37, 11, asked)
    ignore_index = None
    if not labels.is_floating_point():
        labels[::4], ignore_index = -1, -1
    rows = torch.tensor([5, 0, 36, 5, 8, 17, 12, 1]) if selected else None  # row 5 counts twice
    check(
        logits, labels, options, backend, reduction=reduction, rows=rows, ignore_index=ignore_index
    )


@pytest.mark.parametrize("classes", [1023, 1024, 1025, 4099])
@some_options
def test_rows_of_several_chunks(asked, classes, backend):
    for dtype in DTYPES:
        check(*make(5, classes, asked, dtype, scale=6.0), backend)


def test_rows_that_begin_or_end_with_whole_chunks_at_minus_infinity(backend):
    logits, labels, _ = make(4, 5000, {}, scale=6.0)
    logits[0, :2500], logits[1, 2500:], logits[2, :4999] = -INF, -INF, -INF
    labels[:3] = torch.tensor([4000, 7, 4999])
    options = {"temperature": 0.7, "weight": torch.rand(5000) + 0.5, "z_loss": 1e-3}
    check(logits, labels, options, backend)
    found = emp.log_prob_and_entropy(logits, labels, temperature=0.7, backend=backend)
    truth = oracle.statistics(oracle.adjusted(logits, 0.7), labels)
    assert oracle.relative_errors(-found.log_prob, truth.loss).max() <= 1e-5
    assert oracle.relative_errors(found.entropy, truth.entropy).max() <= 1e-5


@every_option
@pytest.mark.parametrize("given_rows", [False, True])
def test_the_state_remembers_the_plain_loss(asked, given_rows, backend):
    logits, labels, options = make(20, 9, asked)
    ids = torch.randperm(50, generator=torch.Generator().manual_seed(1))[:20]
    state, want = (emp.EMPState(50, beta=0.5) for _ in range(2))
    rows = torch.tensor([0, 1, 9]) if given_rows else None
    before = oracle.fingerprint(logits, labels, ids)
    check(logits, labels, options, backend, rows=rows, state=state, indices=ids)
    assert oracle.fingerprint(logits, labels, ids) == before
    a = oracle.adjusted(logits, options.get("temperature", 1.0), options.get("softcap"))
    log_p = a.log_softmax(1)
    t = labels.double() if labels.is_floating_point() else F.one_hot(labels, 9).double()
    loss, entropy = -(t * log_p).sum(1), -(log_p.exp() * log_p).sum(1)
    want.update(ids, emp.Scores(*(x.float() for x in (loss + 0.5 * entropy, loss, entropy, loss))))
    for name in ("loss", "entropy", "score"):
        torch.testing.assert_close(getattr(state, name), getattr(want, name), rtol=1e-5, atol=1e-12)
    assert torch.equal(state.updates, want.updates)


def test_row_i_is_sample_i_and_wrong_ids_write_nothing(backend):
    logits, labels, options = make(6, 5, {"label_smoothing": 0.1})
    state = emp.EMPState(6)
    emp.cross_entropy(logits, labels, state, backend=backend, **options)
    assert (state.updates == 1).all()
    before = oracle.state_fingerprint(state)
    for given, ids, message in (
        (labels, torch.arange(6) + 3, "indices must be in"),
        (labels + 4, torch.arange(6), "labels must be in"),
    ):
        with pytest.raises(ValueError, match=f"cross_entropy: {message}"):
            emp.cross_entropy(logits, given, state, indices=ids, backend=backend, **options)
    assert oracle.state_fingerprint(state) == before


@every_option
def test_a_selection(asked, backend):
    """Its results are reused if they suffice: replacing the logits by NaN then makes no
    difference."""
    logits, labels, options = make(40, 7, asked)
    adjustment = {name: options[name] for name in ("temperature", "softcap") if name in options}
    plain = torch.zeros(40, dtype=torch.int64) if labels.is_floating_point() else labels
    a = oracle.adjusted(logits, **adjustment)
    scores = emp.Scores(*(x.float() for x in emp.score(a, plain)))
    selection = emp.Selection(
        torch.tensor([3, 4, 17, 39]), scores, torch.tensor(0.0), torch.tensor(0)
    )
    for reduction in REDUCTIONS:
        check(logits, labels, options, backend, rows=selection, reduction=reduction)
    reuses = "label_smoothing" not in options and not labels.is_floating_point()
    if reuses:
        given = {"rows": selection, "backend": backend, **options}
        assert torch.equal(
            emp.cross_entropy(logits * math.nan, labels, **given),
            emp.cross_entropy(logits, labels, **given),
        )
    with pytest.raises(ValueError, match="cross_entropy: state must be None when rows is a Sel"):
        emp.cross_entropy(
            logits, labels, emp.EMPState(40), rows=selection, backend=backend, **options
        )


@pytest.mark.parametrize(
    "adjustment", [{"temperature": 2.0}, {"softcap": 3.0}, {"temperature": torch.full((8,), 0.5)}]
)
def test_a_selection_of_logits_that_are_not_adjusted(adjustment):
    """Its losses would be taken for those of the adjusted logits; its indices are the way."""
    logits, labels, _ = make(8, 5, {})
    selection = emp.score_and_select(logits, labels, None, 0.5)
    message = r"cross_entropy: rows must be a Selection .* pass rows=selection\.indices"
    with pytest.raises(ValueError, match=message):
        emp.cross_entropy(logits, labels, rows=selection, **adjustment)
    with pytest.raises(ValueError, match=f"linear_{message}"):
        emp.linear_cross_entropy(logits, torch.eye(5), labels, rows=selection, **adjustment)
    made = selection._replace(scores=emp.score(logits, labels, **adjustment))
    want = emp.cross_entropy(logits, labels, rows=selection.indices, **adjustment)
    torch.testing.assert_close(emp.cross_entropy(logits, labels, rows=made, **adjustment), want)
    nothing = selection._replace(indices=selection.indices[:0])
    assert emp.cross_entropy(logits, labels, rows=nothing, **adjustment).isnan()


@some_options
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_leading_dimensions_and_strides(asked, dtype, backend):
    logits, labels, options = make(24, 10, asked, dtype)
    leaf = logits.clone().requires_grad_()
    loss = emp.cross_entropy(leaf, labels, backend=backend, **options)
    (want,) = torch.autograd.grad(loss, leaf)
    shaped = dict(options)
    if isinstance(options.get("temperature"), torch.Tensor):
        shaped["temperature"] = options["temperature"].reshape(2, 3, 4)
    if "sample_weight" in options:
        shaped["sample_weight"] = options["sample_weight"].reshape(2, 3, 4)
    given = labels.reshape(2, 3, 4, *labels.shape[1:])
    leaf = logits.reshape(2, 3, 4, 10).requires_grad_()
    found = emp.cross_entropy(leaf, given, backend=backend, **shaped)
    assert torch.equal(found, loss)
    assert torch.equal(torch.autograd.grad(found, leaf)[0].reshape(24, 10), want)
    assert emp.cross_entropy(
        leaf, given, reduction="none", backend=backend, **shaped
    ).shape == (2, 3, 4)  # fmt: skip
    wide, columns = torch.stack([logits, logits * 2], 2), torch.cat([logits, logits], 1)
    for view in (wide[..., 0], columns[:, :10], logits.t().contiguous().t()):
        leaf = view.detach().requires_grad_()
        found = emp.cross_entropy(leaf, labels, backend=backend, **options)
        assert torch.equal(torch.autograd.grad(found, leaf)[0], want)
    if labels.is_floating_point():
        strided = torch.stack([labels, labels], 2)[..., 0]
        found = emp.cross_entropy(logits, strided, backend=backend, **options)
        assert torch.equal(found, loss)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_probabilities_of_any_dtype(dtype, backend):
    for logit_dtype in DTYPES:
        logits, labels, options = make(6, 40, {"probabilities": True}, logit_dtype)
        check(logits, labels.to(dtype), options, backend)


def test_near_certain_rows_keep_their_accuracy(backend):
    """Losses and gradients of 1e-8 to 1e-32, by label and by probabilities that say the same."""
    logits = torch.tensor([[20.0, -1.0, 0.5, 0.0], [0.0, 31.0, -60.0, 1.0], [0.0, 5.0, 6.0, 80.0]])
    labels = torch.tensor([0, 1, 3])
    e = (logits.double() - logits.double().amax(1, keepdim=True)).exp()
    others = e.scatter(1, labels[:, None], 0.0)
    total = others.sum(1, keepdim=True)
    want = (others / (1 + total)).scatter(1, labels[:, None], -total / (1 + total))
    weight = torch.tensor([0.5, 2.0, 3.0, 0.7])
    for options, given, scale in (
        ({"weight": weight}, labels, weight[labels]),
        ({"sample_weight": weight[:3]}, labels, weight[:3]),
        ({}, F.one_hot(labels, 4).float(), torch.ones(3)),
    ):
        leaf = logits.clone().requires_grad_()
        loss = emp.cross_entropy(leaf, given, reduction="none", backend=backend, **options)
        assert oracle.relative_errors(loss, (total[:, 0].log1p() * scale).numpy()).max() <= 1e-5
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        truth = want * scale[:, None]
        largest = truth.abs().amax(1, keepdim=True)
        assert ((gradient - truth).abs() <= 2e-5 * largest + math.exp(-87)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 33] if INTERPRETED else [1, 2, 7, 16, 17, 33, 130, 1000])
@pytest.mark.parametrize("adjustment", [{}, {"temperature": 0.7}, {"temperature": 2.5}], ids=str)
def test_log_probs_of_hard_rows(adjustment, classes, dtype, backend):
    """For valid rows; temperatures keep the accuracy of scale 1, also far from zero."""
    for seed in range(1 if INTERPRETED else 2):
        logits, labels, _ = hard_rows.batch(classes, dtype, seed=seed)
        logits = logits[((logits.abs() < 1e30) | logits.isinf()).all(1)]
        labels = hard_rows.labels_for(logits, seed)
        a = oracle.adjusted(logits, **adjustment)
        truth = oracle.statistics(a, labels)
        keep = truth.valid
        leaf = logits[keep].clone().requires_grad_()
        found = emp.log_prob_and_entropy(leaf, labels[keep], backend=backend, **adjustment)
        assert oracle.relative_errors(-found.log_prob, truth.loss[keep]).max() <= 1e-5
        assert oracle.relative_errors(found.entropy, truth.entropy[keep], 64).max() <= 1e-5
        torch.testing.assert_close(
            found.lse.double(), torch.from_numpy(truth.lse[keep]), rtol=1e-6, atol=1e-6
        )
        scale = adjustment.get("temperature", 1.0)
        (gradient,) = torch.autograd.grad(found.entropy.sum(), leaf, retain_graph=True)
        assert_gradient_of_rows(gradient, oracle.entropy_gradient(a[keep]) / scale)
        (gradient,) = torch.autograd.grad(-found.log_prob.sum(), leaf)
        assert_gradient_of_rows(gradient, label_gradient(a[keep], labels[keep]) / scale)


def label_gradient(a, labels):
    """p - onehot of float64 rows, p - 1 at the label from the sum of the others."""
    z = oracle.to_float64(a)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    at = np.arange(len(z)), labels.numpy()
    p[at] = 0
    p[at] = -p.sum(1)
    return p


def assert_gradient_of_rows(got, want):
    """Within 2e-5 of each row's largest element, and what underflows."""
    info = torch.finfo(got.dtype)
    have, largest = oracle.to_float64(got), np.abs(want).max(1, keepdims=True)
    bound = 2e-5 * largest + ROUNDING * info.eps * np.abs(want)
    # What underflows, times d, up to some hundred.
    bound = bound + 2 * info.smallest_normal * info.eps + 500 * math.exp(-87)
    assert (np.abs(have - want) <= bound).all(), np.abs(have - want).max()


@pytest.mark.parametrize("adjustment", [{}, {"temperature": "random", "softcap": 20.0}], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_log_probs_with_all_gradients(adjustment, dtype, backend):
    for classes in (2, 33, 2100):
        logits, labels, options = make(12, classes, adjustment, dtype, seed=classes)
        labels[3] = -7
        upstream = torch.randn(3, 12, generator=torch.Generator().manual_seed(5))
        ours, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
        found = emp.log_prob_and_entropy(ours, labels, ignore_index=-7, backend=backend, **options)
        log_p = oracle.adjusted(exact, **options).log_softmax(1)
        y = labels.clamp(min=0)[:, None]
        counted = (labels >= 0).double()
        want = [log_p.gather(1, y)[:, 0], -(log_p.exp() * log_p).sum(1)]
        want.append(oracle.adjusted(exact, **options).logsumexp(1))
        want = [x * counted for x in want]
        for have, truth in zip(found, want, strict=True):
            assert have.dtype == torch.float32
            torch.testing.assert_close(have.double(), truth, rtol=1e-5, atol=1e-6)
        for used in ([0], [1], [2], [0, 1], [0, 1, 2]):
            (got,) = torch.autograd.grad(
                sum((found[i] * upstream[i]).sum() for i in used), ours, retain_graph=True
            )
            (truth,) = torch.autograd.grad(
                sum((want[i] * upstream[i].double()).sum() for i in used), exact, retain_graph=True
            )
            assert_gradient(got, truth)
            assert not got[3].any()


@pytest.mark.parametrize(
    "asked", [{"temperature": 0.5}, {"temperature": "random", "softcap": 20.0}], ids=name_of
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scores_of_adjusted_logits(asked, dtype, backend):
    logits, labels, options = make(24, 33, asked, dtype)
    labels[3] = -7
    given = {"beta": 0.5, "ignore_index": -7, "backend": backend}
    found = emp.score(logits.requires_grad_(), labels, **given, **options)
    truth = oracle.statistics(oracle.adjusted(logits, **options), labels, -7)
    for name in ("loss", "entropy", "lse"):
        want = getattr(truth, name)
        np.testing.assert_allclose(oracle.to_float64(getattr(found, name)), want, rtol=1e-5)
    assert found.score[3] == -INF
    assert not found.score.requires_grad
    score = truth.loss + 0.5 * truth.entropy
    counted = ~truth.ignored
    np.testing.assert_allclose(oracle.to_float64(found.score)[counted], score[counted], rtol=1e-5)
    if isinstance(options["temperature"], torch.Tensor):
        options["temperature"] = options["temperature"].view(4, 6)
    shaped = emp.score(logits.view(4, 6, 33), labels.view(4, 6), **given, **options)
    assert all(torch.equal(a.view(24), b) for a, b in zip(shaped, found, strict=True))
    hidden, weight = logits.detach(), torch.eye(33, dtype=dtype)
    linear = emp.score_linear(hidden, weight, labels.view(24), **given, **asked_of(options))
    for ours, theirs in zip(linear, found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"^score: temperature must be positive"):
        emp.score(logits, labels, temperature=0.0, **given)


def asked_of(options):
    return {k: v.reshape(-1) if isinstance(v, torch.Tensor) else v for k, v in options.items()}


def test_columns_at_minus_infinity(backend):
    logits, labels, options = make(6, 9, {"probabilities": True})
    logits[:, 4] = -INF
    labels[:, 4] = 0
    for given in (labels, torch.tensor([0, 1, 2, 3, 5, 6])):
        leaf = logits.clone().requires_grad_()
        loss = emp.cross_entropy(leaf, given, z_loss=0.1, backend=backend, **options)
        (gradient,) = torch.autograd.grad(loss, leaf)
        assert loss.isfinite()
        assert gradient.isfinite().all()
        assert not gradient[:, 4].any()
    found = emp.log_prob_and_entropy(logits.clone().requires_grad_(), given, backend=backend)
    assert found.entropy.isfinite().all()
    smooth = emp.cross_entropy(logits, given, label_smoothing=0.1, backend=backend)
    assert smooth == INF


def test_rows_that_are_not_finite(backend):
    """NaN and +inf propagate to the loss, as in torch; a softcap makes an infinite logit finite."""
    logits, labels, _ = make(6, 7, {})
    logits[0, 1], logits[1, 3], logits[2] = math.nan, INF, -INF
    leaf = logits.clone().requires_grad_()
    loss = emp.cross_entropy(leaf, labels, z_loss=0.1, reduction="none", backend=backend)
    assert loss[:3].isnan().all()
    assert loss[3:].isfinite().all()
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    assert gradient[:3].isnan().any(1).all()
    assert gradient[3:].isfinite().all()
    (gradient,) = torch.autograd.grad(
        emp.cross_entropy(
            leaf, labels, temperature=2.0, rows=torch.tensor([4, 5]), backend=backend
        ),
        leaf,
    )
    assert not gradient[:4].any()
    capped = emp.log_prob_and_entropy(leaf, labels, softcap=5.0, backend=backend)
    truth = oracle.statistics(oracle.adjusted(logits, 1.0, 5.0), labels)
    assert capped.log_prob[0].isnan()
    np.testing.assert_allclose(-oracle.to_float64(capped.log_prob)[1:], truth.loss[1:], rtol=1e-5)
    np.testing.assert_allclose(oracle.to_float64(capped.entropy)[1:], truth.entropy[1:], rtol=1e-5)


@some_options
def test_gradcheck_in_float64(asked):
    logits, labels, options = make(6, 5, asked, torch.float64)

    def loss(z):
        return emp.cross_entropy(z, labels, rows=torch.tensor([4, 1, 1]), **options)

    assert loss(logits).dtype == torch.float64
    assert torch.autograd.gradcheck(loss, logits.requires_grad_())
    if not labels.is_floating_point():
        assert torch.autograd.gradcheck(
            lambda z: emp.log_prob_and_entropy(z, labels, temperature=0.5, softcap=4.0), logits
        )


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_a_gradient_that_streams_past_the_caches(backend):
    """Large enough for non-temporal stores in C++, with rows that start anywhere within a cache
    line."""
    for dtype, classes, asked in (
        (torch.float32, 1013, TOGETHER[-2]),
        (torch.bfloat16, 1999, TOGETHER[1]),
    ):
        n = (34 << 20) // (classes * dtype.itemsize)
        logits, labels, options = make(n, classes, asked, dtype)
        rows = torch.arange(n)[torch.arange(n) % 3 != 1]
        gradients = []
        for name in (backend, "reference"):
            leaf = logits.clone().requires_grad_()
            loss = emp.cross_entropy(
                leaf, labels, rows=rows, reduction="sum", backend=name, **options
            )
            gradients += torch.autograd.grad(loss, leaf)
        got, want = gradients
        largest = want.float().abs().amax(1, keepdim=True)
        error = (got.float() - want.float()).abs()
        step = torch.finfo(dtype).eps if dtype != torch.float32 else 0.0
        assert (error <= 2e-5 * largest + step * want.float().abs()).all()
        assert not got[1::3].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "asked",
    [{}, {"label_smoothing": 0.2}, {"weight": "random"}, {"temperature": "random", "softcap": 9.0}],
    ids=name_of,
)
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_a_gradient_by_probabilities_is_made_with_the_loss(asked, dtype, backend, monkeypatch):
    """The bits of one made by the backward pass, also if a row is certain, has ties or no finite
    loss; if it is then scaled, within a rounding. It is given away once."""
    logits, labels, options = make(8, 1100, {"probabilities": True, **asked}, dtype)
    logits[1, 3] = 90.0
    labels[1] = F.one_hot(torch.tensor(3), 1100) * 0.99999 + labels[1] * 0.00001
    logits[2, 5] = logits[2, 6] = logits[2, 1050] = 20.0
    logits[3, 7], logits[4, 8], logits[5, :1030] = INF, torch.nan, -INF
    labels[5, :1030] = 0.0
    for n, reduction in ((8, "mean"), (7, "mean"), (7, "sum"), (1, "mean"), (0, "sum")):
        if "temperature" in options:
            options["temperature"] = options["temperature"][:n]
        results = []
        for limit in (1 << 20, -1):
            monkeypatch.setattr("emp_kernels.weighted_loss._READY_BYTES", limit)
            leaf = logits[:n].clone().requires_grad_()
            state, found = emp.EMPState(n or 1), []
            for scale in (1.0, 0.25, -0.3, 0.0, torch.nan):
                loss = emp.cross_entropy(
                    leaf, labels[:n], state, indices=torch.arange(n), reduction=reduction,
                    backend=backend, **options,
                )  # fmt: skip
                found.append(loss.detach())
                for _ in range(2):
                    (gradient,) = torch.autograd.grad(scale * loss, leaf, retain_graph=True)
                    found.append(gradient.clone())
                    gradient.fill_(7)
            results.append([*found, state.loss, state.entropy])
        for i, (made, want) in enumerate(zip(*results, strict=True)):
            scaled = i in (4, 7) and dtype == torch.float32
            atol = 4e-7 * float(want.nan_to_num(0, 0, 0).abs().max()) if scaled and n else 0.0
            torch.testing.assert_close(made, want, rtol=0.0, atol=atol, equal_nan=True)


def test_the_result_does_not_depend_on_threads(threads):
    logits, labels, options = make(301, 2129, TOGETHER[-1])
    results = []
    for count in threads:
        torch.set_num_threads(count)
        leaf = logits.clone().requires_grad_()
        loss = emp.cross_entropy(leaf, labels, reduction="sum", **options)
        results.append(torch.cat([loss[None], torch.autograd.grad(loss, leaf)[0].flatten()]))
    assert all(torch.equal(result, results[0]) for result in results)


def test_no_second_derivative(backend):
    logits, labels, options = make(6, 5, {"z_loss": 0.1})
    leaf = logits.clone().requires_grad_()
    for loss, name in (
        (emp.cross_entropy(leaf, labels, backend=backend, **options), "cross_entropy"),
        (emp.log_prob_and_entropy(leaf, labels, backend=backend).entropy.sum(), "log_prob_and_ent"),
    ):
        (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        with pytest.raises(RuntimeError, match=f"{name}.*: the gradient must not be different"):
            gradient.square().sum().backward()


def test_nothing_as_large_as_the_logits_is_kept(backend):
    logits, labels, options = make(8, 300, TOGETHER[-2])
    leaf = logits.clone().requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        emp.cross_entropy(leaf, labels, backend=backend, **options)
        emp.log_prob_and_entropy(leaf, labels, backend=backend)
    others = [x for x in kept if x.data_ptr() != leaf.data_ptr()]
    assert max(x.numel() for x in others) < leaf.numel()


def test_plain_options_change_no_bit(backend):
    logits, labels, _ = make(30, 40, {})
    plain = {"label_smoothing": 0, "z_loss": 0, "temperature": 1, "softcap": None, "weight": None}
    results = []
    for options in ({}, plain):
        leaf = logits.clone().requires_grad_()
        loss = emp.cross_entropy(leaf, labels, backend=backend, **options)
        results.append((loss, *torch.autograd.grad(loss, leaf)))
    assert all(map(torch.equal, *results))


def test_what_it_refuses(backend):
    logits, labels, _ = make(6, 5, {})
    soft = torch.rand(6, 5)
    ones = torch.ones
    wrong = [
        (TypeError, labels, {"label_smoothing": "0.1"}),
        (TypeError, labels, {"label_smoothing": True}),
        (ValueError, labels, {"label_smoothing": 1.5}),
        (ValueError, labels, {"label_smoothing": math.nan}),
        (TypeError, labels, {"z_loss": None}),
        (ValueError, labels, {"z_loss": -1.0}),
        (ValueError, labels, {"z_loss": INF}),
        (TypeError, labels, {"softcap": "30"}),
        (ValueError, labels, {"softcap": 0.0}),
        (ValueError, labels, {"softcap": math.nan}),
        (TypeError, labels, {"temperature": None}),
        (ValueError, labels, {"temperature": 0.0}),
        (ValueError, labels, {"temperature": -INF}),
        (TypeError, labels, {"temperature": ones(6).double()}),
        (ValueError, labels, {"temperature": ones(5)}),
        (ValueError, labels, {"temperature": -ones(6)}),
        (ValueError, labels, {"temperature": ones(6, requires_grad=True)}),
        (TypeError, labels, {"weight": [1.0] * 5}),
        (TypeError, labels, {"weight": ones(5).long()}),
        (ValueError, labels, {"weight": ones(6)}),
        (ValueError, labels, {"weight": ones(5, requires_grad=True)}),
        (TypeError, labels, {"sample_weight": labels}),
        (ValueError, labels, {"sample_weight": ones(5)}),
        (ValueError, labels, {"sample_weight": ones(6, requires_grad=True)}),
        (TypeError, soft[:5], {}),
        (ValueError, soft, {"ignore_index": 3}),
        (ValueError, soft.requires_grad_(), {}),
    ]
    for error, given, options in wrong:
        state = emp.EMPState(6)
        before = oracle.state_fingerprint(state)
        with pytest.raises(error, match=r"^cross_entropy: .* must "):
            emp.cross_entropy(logits, given, state, backend=backend, **options)
        assert oracle.state_fingerprint(state) == before
    for error, options in (
        (ValueError, {"temperature": ones(5)}),
        (TypeError, {"ignore_index": 1.5}),
        (ValueError, {"softcap": -1.0}),
    ):
        with pytest.raises(error, match=r"^log_prob_and_entropy: .* must "):
            emp.log_prob_and_entropy(logits, labels, backend=backend, **options)
