"""The inputs that torch tests its own operations with, given to ours: equal results and gradients.

Torch's samples are internal to it and need expecttest, without which these tests are skipped."""

import warnings

import pytest
import torch

import emp_kernels as emp

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of what torch's own module imports
    pytest.importorskip("expecttest")
    methods = pytest.importorskip("torch.testing._internal.common_methods_invocations")
    modules = pytest.importorskip("torch.testing._internal.common_modules")

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def samples_of(name, dtype):
    """(input, arguments, keyword arguments) of each of torch's samples of an operation."""
    (operation,) = [x for x in methods.op_db if (x.name, x.variant_test_name) == (name, "")]
    found = [*operation.sample_inputs("cpu", dtype), *operation.reference_inputs("cpu", dtype)]
    assert found
    return [(x.input, x.args, x.kwargs) for x in found]


def modules_of(module, dtype):
    """(constructor's keyword arguments, forward arguments) of each of torch's samples."""
    (info,) = [x for x in modules.module_db if x.module_cls is module]
    found = info.module_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=False, training=True
    )
    assert len(found) > 20
    return [(x.constructor_input.kwargs, x.forward_input.args) for x in found]


def backend_of(dtype):
    return "reference" if dtype == torch.float64 else None


def classes_last(tensor):
    """Torch has the classes in the second dimension."""
    return tensor.movedim(1, -1) if tensor.dim() > 1 else tensor


def assert_close(got, want, dtype):
    """Within float32's error, or one rounding of a 16-bit gradient."""
    eps = torch.finfo(dtype).eps if got.dtype == dtype else 0.0
    rtol = 3e-5 + eps
    torch.testing.assert_close(got.double(), want, rtol=rtol, atol=1e-6 + eps / 8, equal_nan=True)


def assert_cross_entropy(dtype, logits, labels, options):
    """Equal to torch's own loss and gradient in float64."""
    soft = labels.is_floating_point()
    options = {name: x for name, x in options.items() if name not in ("size_average", "reduce")}
    leaf = logits.detach().double().requires_grad_()
    theirs = {name: x.double() if torch.is_tensor(x) else x for name, x in options.items()}
    if theirs.get("weight") is not None:
        options["weight"] = options["weight"].detach()
    want = torch.nn.functional.cross_entropy(leaf, labels.double() if soft else labels, **theirs)
    upstream = torch.rand(
        want.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    (gradient,) = torch.autograd.grad(want, leaf, upstream)

    own = classes_last(logits.detach()).clone().requires_grad_()
    ignored = options.pop("ignore_index", -100)
    if soft:
        labels = classes_last(labels).detach()
    else:
        options["ignore_index"] = ignored
    got = emp.cross_entropy(own, labels, backend=backend_of(dtype), **options)
    assert got.shape == want.shape
    assert_close(got.detach(), want.detach(), dtype)
    (found,) = torch.autograd.grad(got, own, upstream.to(got.dtype))
    assert_close(found, classes_last(gradient), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cross_entropy(dtype):
    for logits, (labels,), options in samples_of("nn.functional.cross_entropy", dtype):
        assert_cross_entropy(dtype, logits, labels, options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_module_of_cross_entropy(dtype):
    dims = set()
    for options, (logits, labels) in modules_of(torch.nn.CrossEntropyLoss, dtype):
        assert_cross_entropy(dtype, logits, labels, options)
        dims.add(logits.dim())
    assert {1, 2, 3, 4} <= dims


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["log_softmax", "softmax"])
def test_log_prob_and_entropy(name, dtype):
    generator = torch.Generator().manual_seed(0)
    checked = 0
    for source, arguments, options in samples_of(name, dtype):
        if source.dim() == 0:
            continue  # no row
        own = source.detach().movedim((*arguments, *options.values())[0], -1)
        own = own.clone().requires_grad_()
        if own.shape[-1] == 0:
            continue  # no label is in range
        labels = torch.randint(own.shape[-1], own.shape[:-1], generator=generator)
        leaf = own.detach().double().requires_grad_()
        log_p = leaf.log_softmax(-1)
        want = log_p.gather(-1, labels[..., None])[..., 0], -(log_p.exp() * log_p).sum(-1)
        got = emp.log_prob_and_entropy(own, labels, backend=backend_of(dtype))
        upstream = [torch.rand(x.shape, dtype=x.dtype, generator=generator) for x in want]
        for field, right in zip(got[:2], want, strict=True):
            assert_close(field.detach(), right.detach(), dtype)
        (gradient,) = torch.autograd.grad(want, leaf, upstream)
        (found,) = torch.autograd.grad(got[:2], own, [x.to(got.entropy.dtype) for x in upstream])
        assert_close(found, gradient, dtype)
        scores = emp.score(own.detach(), labels)
        assert_close(scores.loss, -want[0].detach(), dtype)
        assert_close(scores.entropy, want[1].detach(), dtype)
        checked += 1
    assert checked >= 10


@pytest.mark.parametrize("dtype", [*DTYPES, torch.int64, torch.bool, torch.complex64], ids=str)
def test_gather(dtype):
    for source, (dim, indices), _ in samples_of("index_select", dtype):
        if source.dim() == 0:
            continue  # no rows
        own = source.detach().movedim(dim, 0)
        got, want = emp.gather(own, indices.reshape(-1)), own.index_select(0, indices.reshape(-1))
        assert torch.equal(got, want)
        assert got.dtype == want.dtype


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_select(dtype):
    checked = 0
    for source, arguments, options in samples_of("topk", dtype):
        k = options.get("k", *arguments[:1])
        for scores in source.reshape(-1, *source.shape[-1:])[:4] if source.dim() else ():
            if not 0 < k <= len(scores):
                continue
            found = emp.select(scores, k)
            want = scores.topk(k).values.sort().values
            assert torch.equal(scores[found].sort().values, want)
            assert bool((found.diff() > 0).all())
            checked += 1
    assert checked > 5
