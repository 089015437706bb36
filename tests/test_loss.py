"""cross_entropy: loss and gradient against float64, the state, and errors."""

import itertools
import math

import hard_rows
import numpy as np
import oracle
import pytest
import torch
from torch.autograd import forward_ad
from torch.nn import functional as F

import emp_kernels as emp

INF = float("inf")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
INTEGER_DTYPES = [torch.int64, torch.int32, torch.int16, torch.int8]
INTEGER_DTYPES += [torch.uint8, torch.uint16, torch.uint32, torch.uint64]
REDUCTIONS = ["mean", "sum", "none"]


def rows(n, classes, dtype=torch.float32, seed=0, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(n, classes, generator=generator)
    return logits.to(dtype), torch.randint(classes, (n,), generator=generator)


def true_gradient(logits, labels, scales):
    """(softmax - onehot) * scale in NumPy float64; p - 1 at the label without cancelling."""
    z, y = oracle.to_float64(logits), labels.long().numpy()
    below = z - z.max(1, keepdims=True)
    e = np.exp(below)
    p = e / e.sum(1, keepdims=True)
    at = np.arange(len(z)), y
    others = p.copy()
    others[at] = 0
    p[at] = -others.sum(1)
    return p * np.asarray(scales, dtype=np.float64).reshape(-1, 1)


def assert_gradient(got, logits, labels, scales, names=None):
    """Within 1.5e-5 relative and one rounding to the gradient's dtype, whose smallest step is
    forgiven; a probability below exp(-87) may be 0."""
    truth = true_gradient(logits, labels, scales)
    info = torch.finfo(got.dtype)
    have = oracle.to_float64(got)
    scales = np.abs(np.asarray(scales, dtype=np.float64)).reshape(-1, 1)
    bound = (1.5e-5 + info.eps / 2) * np.abs(truth) + math.exp(-87) * scales
    bound = bound + 2 * info.smallest_normal * info.eps
    bad = np.argwhere(~(np.abs(have - truth) <= bound))
    shown = [
        f"{names[i] if names else i}, column {j}: got {have[i, j]!r}, want {truth[i, j]!r}"
        for i, j in bad[:8]
    ]
    assert not len(bad), f"{len(bad)} elements wrong\n" + "\n".join(shown)


def gradient_of(logits, labels, *arguments, upstream=None, **options):
    """(loss, gradient) of emp.cross_entropy."""
    leaf = logits.detach().requires_grad_()
    loss = emp.cross_entropy(leaf, labels, *arguments, **options)
    (gradient,) = torch.autograd.grad(loss, leaf, upstream)
    return loss.detach(), gradient


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 2, 3, 8, 15, 16, 17, 31, 33, 63, 65, 130, 1000, 4099])
def test_hard_rows(classes, dtype, backend):
    """Each row's loss and gradient; valid rows only, the others are looked at below."""
    for seed in range(2):
        logits, labels, names = hard_rows.batch(classes, dtype, seed=seed)
        truth = oracle.statistics(logits, labels)
        logits, labels = logits[truth.valid], labels[truth.valid]
        names = [name for name, valid in zip(names, truth.valid, strict=True) if valid]
        want = truth.loss[truth.valid]
        upstream = torch.randn(len(want), generator=torch.Generator().manual_seed(seed))
        loss, gradient = gradient_of(
            logits, labels, upstream=upstream, reduction="none", backend=backend
        )
        assert loss.dtype == torch.float32
        assert oracle.relative_errors(loss, want).max() <= 1e-5
        assert gradient.dtype == dtype
        assert_gradient(gradient, logits, labels, upstream, names)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [32000, 50257])
def test_a_vocabulary(classes, dtype, backend):
    families = ["scale 1", "scale 30", "confident", "ascending", "constant", "flat"]
    logits, labels, names = hard_rows.batch(classes, dtype, families, seed=1)
    loss, gradient = gradient_of(logits, labels, backend=backend)
    truth = oracle.statistics(logits, labels)
    assert truth.valid.all()
    assert math.isclose(loss.item(), truth.loss.mean(), rel_tol=1e-6)
    assert_gradient(gradient, logits, labels, np.full(len(labels), 1 / len(labels)), names)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_a_gradient_that_streams_past_the_caches(backend):
    """Large enough for non-temporal stores in C++, with rows that start anywhere within a cache
    line."""
    for dtype, classes in ((torch.float32, 1013), (torch.bfloat16, 1999), (torch.float16, 1013)):
        n = (34 << 20) // (classes * dtype.itemsize)
        logits, labels = rows(n, classes, dtype)
        chosen = torch.arange(n)[torch.arange(n) % 3 != 1]
        _, gradient = gradient_of(logits, labels, rows=chosen, reduction="sum", backend=backend)
        _, want = gradient_of(logits, labels, rows=chosen, reduction="sum", backend="reference")
        close = torch.isclose(gradient, want, rtol=1e-5 + torch.finfo(dtype).eps, atol=1e-7)
        assert close.all()
        assert not gradient[1::3].any()


def same_as_torch(got, want, dtype=torch.float32):
    tolerance = {torch.float32: 2e-6, torch.float64: 1e-12}.get(dtype, 0.02)
    torch.testing.assert_close(
        got, want.to(got.dtype), rtol=tolerance, atol=tolerance, equal_nan=True
    )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore_index", [None, -100, 2])
@pytest.mark.parametrize("selected", [False, True])
def test_equals_torch(reduction, ignore_index, selected, backend):
    logits, labels = rows(37, 11)
    if ignore_index is not None:
        labels[::4] = ignore_index
    chosen = torch.tensor([5, 0, 36, 5, 8, 17, 12, 1]) if selected else None  # row 5 counts twice
    leaf = logits.clone().requires_grad_()
    part, part_labels = (leaf, labels) if chosen is None else (leaf[chosen], labels[chosen])
    skip = -100 if ignore_index is None else ignore_index
    want = F.cross_entropy(part, part_labels, ignore_index=skip, reduction=reduction)
    upstream = torch.randn(want.shape, generator=torch.Generator().manual_seed(3))
    (want_gradient,) = torch.autograd.grad(want, leaf, upstream)
    loss, gradient = gradient_of(
        logits,
        labels,
        upstream=upstream,
        rows=chosen,
        ignore_index=ignore_index,
        reduction=reduction,
        backend=backend,
    )
    same_as_torch(loss, want)
    same_as_torch(gradient, want_gradient)
    if chosen is not None:
        left_out = torch.ones(37, dtype=torch.bool)
        left_out[chosen] = False
        assert not gradient[left_out].any()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_all_ignored_and_no_rows_are_as_in_torch(reduction, backend):
    logits, labels = rows(5, 4)
    for given, options in (
        (labels * 0 - 1, {"ignore_index": -1}),
        (labels, {"rows": torch.tensor([], dtype=torch.int64)}),
    ):
        upstream = torch.ones(0 if "rows" in options else 5) if reduction == "none" else None
        loss, gradient = gradient_of(
            logits, given, upstream=upstream, reduction=reduction, backend=backend, **options
        )
        if reduction == "mean":
            assert loss.isnan()
        else:
            assert not loss.any()
        assert not gradient.any()
    loss, gradient = gradient_of(logits[:0], labels[:0], reduction="sum", backend=backend)
    assert loss == 0
    assert gradient.shape == (0, 4)


def test_rows_that_are_not_finite_are_as_in_torch(backend):
    """NaN if a logit is NaN or +inf or none is above -inf; an infinite loss for a label at -inf,
    with a finite gradient. Rows that are not trained are not affected."""
    logits, labels = rows(7, 6)
    labels[:] = 2
    logits[0, 1], logits[1, 3], logits[2], logits[3, 2] = math.nan, INF, -INF, -INF
    logits[4, 2] = INF
    leaf = logits.clone().requires_grad_()
    want = F.cross_entropy(leaf, labels, reduction="none")
    (want_gradient,) = torch.autograd.grad(want, leaf, torch.ones(7))
    loss, gradient = gradient_of(
        logits, labels, upstream=torch.ones(7), reduction="none", backend=backend
    )
    same_as_torch(loss, want)
    same_as_torch(gradient, want_gradient)
    loss, gradient = gradient_of(logits, labels, rows=torch.tensor([5, 6]), backend=backend)
    assert loss.isfinite()
    assert gradient.isfinite().all()
    assert not gradient[:5].any()


@pytest.mark.parametrize("given_rows", [False, True])
def test_all_rows_reach_the_state_as_by_update(given_rows, backend):
    logits, labels = rows(20, 9)
    labels[3], logits[4, 0] = -1, math.nan
    ids = torch.randperm(50, generator=torch.Generator().manual_seed(1))[:20]
    ids[7] = ids[2]  # the last one counts
    state, want = (emp.EMPState(50, beta=0.5) for _ in range(2))
    chosen = torch.tensor([0, 1, 9]) if given_rows else None
    for call in range(2):
        before = oracle.fingerprint(logits, labels, ids)
        leaf = logits.clone().requires_grad_(call == 0)
        emp.cross_entropy(
            leaf, labels, state, indices=ids, rows=chosen, ignore_index=-1, backend=backend
        )
        assert oracle.fingerprint(logits, labels, ids) == before
        want.update(ids, emp.score(logits, labels, beta=0.5, ignore_index=-1, backend=backend))
        got = state.state_dict()
        for name, value in want.state_dict().items():
            assert torch.equal(torch.as_tensor(got[name]), torch.as_tensor(value)), name


def test_row_i_is_sample_i_without_indices(backend):
    logits, labels = rows(6, 3)
    state = emp.EMPState(6)
    emp.cross_entropy(logits, labels, state, backend=backend)
    assert torch.equal(state.score, emp.score(logits, labels, backend=backend).score)
    with pytest.raises(ValueError, match="cross_entropy: pass indices="):
        emp.cross_entropy(logits, labels, emp.EMPState(7), backend=backend)


@pytest.mark.parametrize("ignore_index", [None, -100])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_selection_lends_its_losses(reduction, ignore_index, backend):
    logits, labels = rows(40, 7)
    if ignore_index is not None:
        labels[::5] = ignore_index
    state = emp.EMPState(40)
    selection = emp.score_and_select(
        logits, labels, state, 0.3, ignore_index=ignore_index, backend=backend
    )
    options = {"ignore_index": ignore_index, "reduction": reduction, "backend": backend}
    upstream = torch.arange(1.0, 1 + len(selection.indices)) if reduction == "none" else None
    want = gradient_of(logits, labels, rows=selection.indices, upstream=upstream, **options)
    got = gradient_of(logits, labels, rows=selection, upstream=upstream, **options)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    # The forward pass reads no logits: with others, the loss is still the selection's.
    assert torch.equal(
        emp.cross_entropy(logits * math.nan, labels, rows=selection, **options), want[0]
    )
    with pytest.raises(ValueError, match="cross_entropy: state must be None when rows is a Sel"):
        emp.cross_entropy(logits, labels, state, rows=selection, backend=backend)
    with pytest.raises(ValueError, match="cross_entropy: rows must be a Selection of the 39 rows"):
        emp.cross_entropy(logits[:39], labels[:39], rows=selection, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_leading_dimensions_and_strides(dtype, backend):
    logits, labels = rows(24, 10, dtype)
    want_loss, want = gradient_of(logits, labels, backend=backend)
    shaped = logits.reshape(2, 3, 4, 10), labels.reshape(2, 3, 4)
    loss, gradient = gradient_of(*shaped, backend=backend)
    assert torch.equal(loss, want_loss)
    assert torch.equal(gradient.reshape(24, 10), want)
    state = emp.EMPState(24)
    emp.cross_entropy(*shaped, state, indices=torch.arange(24).reshape(2, 3, 4), backend=backend)
    assert (state.updates == 1).all()
    assert emp.cross_entropy(*shaped, reduction="none", backend=backend).shape == (2, 3, 4)
    wide = torch.stack([logits, logits * 2], 2)  # inner stride 2
    columns = torch.cat([logits, logits], 1)  # row stride 20
    for view in (wide[..., 0], columns[:, :10], logits.flip(0).flip(0)):
        leaf = view.detach().requires_grad_()
        (got,) = torch.autograd.grad(emp.cross_entropy(leaf, labels, backend=backend), leaf)
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", INTEGER_DTYPES, ids=str)
def test_labels_and_rows_of_any_integer_dtype(dtype, backend):
    logits, labels = rows(12, 5)
    want = gradient_of(logits, labels, rows=torch.tensor([1, 3]), ignore_index=3, backend=backend)
    got = gradient_of(
        logits,
        labels.to(dtype),
        rows=torch.tensor([1, 3]).to(dtype),
        ignore_index=3,
        backend=backend,
    )
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize(
    "options", [{}, {"temperature": torch.tensor(0.5), "z_loss": 0.1}], ids=str
)
def test_one_row_without_a_leading_dimension(options, reduction, backend):
    """(C,) logits and a label () give what (1, C) and (1,) give, without the leading dimension."""
    logits, labels = rows(1, 11)
    many = {k: x.reshape(1) if torch.is_tensor(x) else x for k, x in options.items()}
    states = emp.EMPState(4), emp.EMPState(4)
    arguments = {"reduction": reduction, "backend": backend}
    loss, gradient = gradient_of(
        logits[0], labels[0], states[0], indices=torch.tensor(2), **options, **arguments
    )
    want, want_gradient = gradient_of(
        logits, labels, states[1], indices=torch.tensor([2]), **many, **arguments
    )
    assert torch.equal(loss, want.reshape(()))
    assert torch.equal(gradient, want_gradient[0])
    for name, field in states[0].state_dict().items():
        assert torch.equal(torch.as_tensor(field), torch.as_tensor(states[1].state_dict()[name]))
    adjustment = {k: x for k, x in options.items() if k == "temperature"}
    adjustments = {k: x for k, x in many.items() if k == "temperature"}
    for function in (emp.score, emp.log_prob_and_entropy):
        found = function(logits[0], labels[0], **adjustment, backend=backend)
        right = function(logits, labels, **adjustments, backend=backend)
        assert [x.shape for x in found] == [()] * len(found)
        assert all(torch.equal(a, b[0]) for a, b in zip(found, right, strict=True))
    found = emp.sample_statistics(logits[0], labels[0], backend=backend)
    right = emp.sample_statistics(logits, labels, backend=backend)
    assert all(torch.equal(a, b[0]) for a, b in zip(found, right, strict=True))


def test_gradcheck_in_float64():
    logits, labels = rows(6, 5)
    logits = logits.double().requires_grad_()
    for chosen, reduction in itertools.product((None, torch.tensor([4, 1, 1])), REDUCTIONS):

        def loss(z, chosen=chosen, reduction=reduction):
            return emp.cross_entropy(z, labels, rows=chosen, reduction=reduction)

        assert loss(logits).dtype == torch.float64
        assert torch.autograd.gradcheck(loss, logits)


def test_backward_twice_but_no_second_derivative(backend):
    logits, labels = rows(6, 5)
    leaf = logits.clone().requires_grad_()
    loss = emp.cross_entropy(leaf, labels, backend=backend)
    loss.backward(retain_graph=True)
    once = leaf.grad.clone()
    loss.backward()
    assert torch.equal(leaf.grad, 2 * once)
    (gradient,) = torch.autograd.grad(
        emp.cross_entropy(leaf, labels, backend=backend), leaf, create_graph=True
    )
    assert torch.equal(gradient, once)
    with pytest.raises(RuntimeError, match="cross_entropy: the gradient must not be different"):
        gradient.square().sum().backward()


def test_logits_changed_before_backward_are_noticed(backend):
    logits, labels = rows(6, 5)
    leaf = logits.clone().requires_grad_()
    hidden = leaf * 1
    loss = emp.cross_entropy(hidden, labels, backend=backend)
    hidden += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("kind", ["all rows", "rows", "Selection"])
def test_losses_of_rows_may_be_changed_in_place(kind, backend):
    """As with torch's losses: weights and masks are multiplied into them."""
    logits, labels = rows(6, 5)
    chosen = {
        "all rows": None,
        "rows": torch.tensor([4, 0, 0]),
        "Selection": emp.score_and_select(logits, labels, None, 0.5, backend=backend),
    }[kind]
    weight = torch.rand(6 if chosen is None else 3)
    gradients = []
    for in_place in (False, True):
        leaf = logits.clone().requires_grad_()
        loss = emp.cross_entropy(leaf, labels, rows=chosen, reduction="none", backend=backend)
        loss = loss.mul_(weight) if in_place else loss * weight
        loss.sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_selection_of_inference_mode_lends_its_losses(reduction, backend):
    logits, labels = rows(6, 5)
    with torch.inference_mode():
        selection = emp.score_and_select(logits, labels, None, 0.5, backend=backend)
    upstream = torch.ones(()) if reduction != "none" else torch.rand(3)
    options = {"reduction": reduction, "upstream": upstream, "backend": backend}
    want = gradient_of(logits, labels, rows=selection.indices, **options)
    got = gradient_of(logits, labels, rows=selection, **options)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_selection_of_float64_lends_its_losses_rounded(dtype, backend):
    logits, labels = rows(6, 5, dtype)
    selection = emp.score_and_select(logits.double(), labels, None, 0.5)
    want = gradient_of(logits, labels, rows=selection.indices, backend=backend)
    got = gradient_of(logits, labels, rows=selection, backend=backend)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs)
    selection = emp.score_and_select(logits, labels, None, 0.5, backend=backend)
    loss, gradient = gradient_of(logits.double(), labels, rows=selection)
    assert loss.dtype == gradient.dtype == torch.float64


def test_forward_mode_is_refused(backend):
    """Without that, the loss would be a constant."""
    logits, labels = rows(6, 5)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(logits, torch.ones_like(logits))
        with pytest.raises(NotImplementedError, match="jvp"):
            emp.cross_entropy(dual, labels, backend=backend)
    with pytest.raises(TypeError, match=r"logits must lie in memory \(call outside of torch.func"):
        torch.func.jvp(
            lambda z: emp.cross_entropy(z, labels, backend=backend), (logits,), (logits,)
        )


def test_without_grad_nothing_is_recorded(backend):
    logits, labels = rows(6, 5)
    leaf = logits.clone().requires_grad_()
    with torch.no_grad():
        loss = emp.cross_entropy(leaf, labels, backend=backend)
    assert not loss.requires_grad
    assert not emp.cross_entropy(logits, labels, backend=backend).requires_grad
    assert torch.equal(loss, emp.cross_entropy(leaf, labels, backend=backend).detach())


def test_autocast_changes_nothing(backend):
    layer = torch.nn.Linear(8, 5)
    inputs, labels = rows(16, 8)[0], rows(16, 5)[1]
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer(inputs)
        assert logits.dtype == torch.bfloat16
        loss = emp.cross_entropy(logits, labels, backend=backend)
        want = F.cross_entropy(logits, labels)
    assert loss.dtype == torch.float32
    same_as_torch(loss, want)
    got, expected = (
        torch.autograd.grad(x, layer.weight, retain_graph=True)[0] for x in (loss, want)
    )
    same_as_torch(got, expected, torch.bfloat16)


@pytest.mark.skipif(torch.__version__ < "2.13", reason="not recorded by Dynamo of torch 2.6")
def test_a_call_with_a_state_is_in_one_graph():
    """The same bits, in the state too."""
    logits, labels = rows(16, 5)
    state, want_state = emp.EMPState(16), emp.EMPState(16)

    def step(z, labels, state):
        return emp.cross_entropy(z * 2, labels, state) + 1

    torch._dynamo.reset()
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        leaf, other = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        loss, want = compiled(leaf, labels, state), step(other, labels, want_state)
        loss.backward()
        want.backward()
        assert torch.equal(loss, want)
        assert torch.equal(leaf.grad, other.grad)
    assert torch.equal(state.score, want_state.score)
    assert (state.updates == 2).all()
    torch._dynamo.reset()


def test_the_result_does_not_depend_on_threads(threads):
    logits, labels = rows(4001, 129)
    results = []
    for count in threads:
        torch.set_num_threads(count)
        results.append(gradient_of(logits, labels, reduction="sum")[1])
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_wrong_label_or_id_writes_nothing(backend):
    logits, labels = rows(6, 5)
    state = emp.EMPState(8)
    before = oracle.state_fingerprint(state)
    wrong, ids = labels.clone(), torch.arange(6)
    wrong[2] = 5
    leaf = logits.clone().requires_grad_()
    for bad in (wrong, wrong - 6):
        with pytest.raises(ValueError, match=r"cross_entropy: labels must be in \[0, 5\), got"):
            emp.cross_entropy(leaf, bad, state, indices=ids, backend=backend)
    with pytest.raises(ValueError, match=r"cross_entropy: labels must .*got -100 in row 2"):
        emp.cross_entropy(leaf, torch.where(wrong == 5, -100, wrong), backend=backend)
    with pytest.raises(ValueError, match=r"cross_entropy: indices must be in \[0, 8\), got 8"):
        emp.cross_entropy(leaf, labels, state, indices=ids + 3, backend=backend)
    for bad in (-1, 6):
        with pytest.raises(
            ValueError, match=rf"cross_entropy: rows must be in \[0, 6\), got {bad}"
        ):
            emp.cross_entropy(
                leaf, labels, state, indices=ids, rows=torch.tensor([0, bad]), backend=backend
            )
    assert oracle.state_fingerprint(state) == before


def test_what_it_refuses(backend):
    logits, labels = rows(6, 5)
    state, ids = emp.EMPState(6), torch.arange(6)
    wrong = [
        (TypeError, (logits.long(), labels), {}),
        (TypeError, (logits, labels.float()), {}),
        (TypeError, (logits, labels, "state"), {}),
        (TypeError, (logits, labels), {"rows": [1, 2]}),
        (TypeError, (logits, labels), {"rows": torch.ones(6, dtype=torch.bool)}),
        (TypeError, (logits, labels), {"ignore_index": 1.5}),
        (TypeError, (logits, labels, state), {"indices": [0]}),
        (ValueError, (logits[0], labels), {}),
        (ValueError, (logits, labels[:5]), {}),
        (ValueError, (logits, labels), {"rows": torch.zeros(2, 2, dtype=torch.int64)}),
        (ValueError, (logits, labels), {"reduction": "median"}),
        (ValueError, (logits, labels), {"reduction": None}),
        (ValueError, (logits, labels, state), {"indices": ids[:3]}),
        (ValueError, (logits, labels, state.to("meta")), {}),
        (ValueError, (logits, labels), {"backend": "numpy"}),
    ]
    for error, arguments, options in wrong:
        with pytest.raises(error, match=r"cross_entropy: .* must "):
            emp.cross_entropy(*arguments, **{"backend": backend} | options)
    if backend == "cpu":
        with pytest.raises(TypeError, match="cross_entropy: backend 'cpu' must get float32"):
            emp.cross_entropy(logits.double(), labels, backend="cpu")
