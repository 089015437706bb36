"""What a tensor may be, of every tensor that a public function takes: views of which torch negates
what it reads, and rows that are one element repeated."""

from __future__ import annotations

import calls
import oracle
import pytest
import torch
from conftest import BACKENDS

INTERPRETED = BACKENDS == ("triton",)


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
    """Each kind of view that says what `tensor` does."""
    yield negated(tensor)
    if tensor.is_floating_point():
        yield imaginary(tensor)
    if tensor.dim() > 1:
        yield transposed(tensor)


def repeated(tensor):
    """The first element (row, matrix) of `tensor`, at a stride of 0."""
    return tensor[:1].expand(tensor.shape)


def replaced(name, replace):
    """The call's tensors, one of them replaced by each tensor that `replace` yields. All at once in
    Triton's interpreter, which takes its time."""
    tensors = calls.CALLS[name].tensors()
    if INTERPRETED:
        yield {argument: list(replace(given))[-1] for argument, given in tensors.items()}
        return
    for argument, given in tensors.items():
        for view in replace(given):
            yield {argument: view}


def assert_reads_as(name, views, backend):
    """The call makes of `views` what it makes of their copies."""
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
