"""For every tensor argument of every public function: supported kinds of tensors (lazily negated
views, repeated elements) and unsupported ones."""

from __future__ import annotations

import os
import warnings

import calls
import oracle
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def negated(tensor):
    """`tensor` as a view of its negative."""
    view = torch._neg_view(-tensor)
    assert view.is_neg()
    return view


def imaginary(tensor):
    """`tensor` as imaginary parts of conjugates, which lie apart."""
    view = torch.complex(torch.ones_like(tensor), -tensor).conj().imag
    assert view.is_neg()
    return view


def transposed(tensor):
    """`tensor` as a negated view whose last dimension lies outside."""
    return negated(tensor.mT.contiguous()).mT


def views_of(tensor):
    """Each kind of view with the values of `tensor`."""
    yield negated(tensor)
    if tensor.is_floating_point():
        yield imaginary(tensor)
    if tensor.dim() > 1:
        yield transposed(tensor)


def repeated(tensor):
    """The first element (row, matrix) of `tensor`, at a stride of 0."""
    return tensor[:1].expand(tensor.shape)


def replaced(name, replace):
    """The call's tensors, with one replaced by each tensor that `replace` yields; all at once in
    Triton's interpreter, which is slow."""
    tensors = calls.CALLS[name].tensors()
    if INTERPRETED:
        yield {argument: list(replace(given))[-1] for argument, given in tensors.items()}
        return
    for argument, given in tensors.items():
        for view in replace(given):
            yield {argument: view}


def assert_reads_as(name, views, backend):
    """The call gives the same results for `views` as for their copies."""
    copies = {argument: view.resolve_neg().contiguous() for argument, view in views.items()}
    want = calls.run(name, calls.CALLS[name].tensors() | copies, backend)
    got = calls.run(name, calls.CALLS[name].tensors() | views, backend)
    if "linear" not in name:
        assert oracle.fingerprint(*got) == oracle.fingerprint(*want), list(views)
    for ours, theirs in zip(got, want, strict=True):  # torch's product rounds as the memory lies
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", calls.CALLS)
def test_views_that_torch_negates(name, as_default):
    for views in replaced(name, views_of):
        assert_reads_as(name, views, as_default)


@pytest.mark.parametrize("name", calls.CALLS)
def test_one_element_that_stands_for_all(name, as_default):
    for views in replaced(name, lambda tensor: [repeated(tensor)]):
        assert_reads_as(name, views, as_default)


def nested(tensor, layout=torch.strided):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says that its nested tensors may change
        rows = list(tensor) if tensor.dim() > 1 else [tensor]
        return torch.nested.nested_tensor(rows, layout=layout)


# Unsupported tensors, and the fix that the error names.
UNUSUAL = {
    "nested": (nested, "to_padded_tensor|unbind"),
    "jagged": (lambda x: nested(x, torch.jagged), "to_padded_tensor|unbind"),
    "COO": (torch.Tensor.to_sparse, "to_dense"),
    "CSR": (lambda x: x.to_sparse_csr(), "to_dense"),
    "fake": (lambda x: FakeTensorMode().from_tensor(x), "outside of FakeTensorMode"),
}
TAKEN = {("COO", "gather", "x"), ("COO", "gather", "y")}  # torch's index_select does
ARGUMENTS = [
    (name, argument)
    for name, call in calls.CALLS.items()
    for argument in call.tensors()
    if argument != "gradient"  # which autograd looks at
]


@pytest.mark.parametrize("kind", UNUSUAL)
def test_tensors_without_rows_in_memory(kind, as_default):
    make, advice = UNUSUAL[kind]
    for name, argument in ARGUMENTS:
        tensors = calls.CALLS[name].tensors()
        if kind == "CSR" and tensors[argument].dim() != 2:
            continue
        unusual = make(tensors[argument])
        if (kind, name, argument) in TAKEN or (kind == "fake" and name == "gather"):
            continue
        with pytest.raises(TypeError, match=rf" must (?s:.*)({advice})(?s:.*), got "):
            calls.run(name, tensors | {argument: unusual}, as_default)


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_tensors_of_torch_func(name, argument, as_default):
    tensors = calls.CALLS[name].tensors()
    stacked = torch.stack([tensors[argument], tensors[argument]])

    def run(tensor):
        return tuple(calls.run(name, tensors | {argument: tensor}, as_default))

    if name == "gather" and argument != "indices":  # as index_select
        for got, want in zip(torch.func.vmap(run)(stacked), run(tensors[argument]), strict=True):
            assert torch.equal(got, torch.stack([want, want]))
        return
    with pytest.raises(TypeError, match=r" must lie in memory \(call outside of torch.func"):
        torch.func.vmap(run)(stacked)
