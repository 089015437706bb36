"""Selecting the Triton backend where it cannot run: errors that name what is missing and the
fix."""

import os
import sys

import pytest
import torch

import emp_kernels as emp
from emp_kernels import backends

needs_plain_triton = pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter takes CPU tensors"
)


@pytest.fixture
def fresh_backends():
    """Resets the cached choice of backends, also after the test."""
    for cache in (backends.load, backends._resolve, backends._warn_once):
        cache.cache_clear()
    yield
    for cache in (backends.load, backends._resolve, backends._warn_once):
        cache.cache_clear()


@needs_plain_triton
def test_cpu_tensors_are_refused():
    pytest.importorskip("triton")
    with pytest.raises(RuntimeError, match=r"^select: backend 'triton' does not serve cpu.*cuda"):
        emp.select(torch.randn(4), 2, backend="triton")


def test_triton_missing(monkeypatch, fresh_backends):
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(RuntimeError, match=r"^select: .*Triton is missing.*pip install triton"):
        emp.select(torch.randn(4), 2, backend="triton")


def test_default_on_cuda_without_triton_warns_once(monkeypatch, fresh_backends):
    monkeypatch.setitem(sys.modules, "triton", None)
    functions = ("score", "select", "score_and_select")
    with pytest.warns(RuntimeWarning, match="'reference' backend: Triton is missing") as caught:
        taken = [backends._resolve(name, None, "cuda", torch.float32) for name in functions]
    assert taken == [backends.load("reference")] * 3
    assert len(caught) == 1


def test_a_gpu_that_is_too_old(monkeypatch, fresh_backends):
    pytest.importorskip("triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    with pytest.raises(RuntimeError, match=r"compute capability 8\.0 or newer.* 7\.5.*reference"):
        emp.select(torch.randn(4), 2, backend="triton")
    with pytest.warns(RuntimeWarning, match=r"capability 8\.0"):
        assert backends._resolve("score", None, "cuda", torch.float32) is backends.load("reference")


def test_float64_on_cuda_takes_the_reference_silently(recwarn, fresh_backends):
    module = backends._resolve("score", None, "cuda", torch.float64)
    assert module is backends.load("reference")
    assert not recwarn.list


def test_no_argument_of_a_kernel_launched_directly_makes_a_variant():
    """Its cache uses only dtypes and constants, so all other arguments must be declared as not
    specialising."""
    pytest.importorskip("triton")
    from emp_kernels.kernels import launch, plan
    from emp_kernels.kernels.launching import Kernel

    kernels = [value for value in vars(launch).values() if isinstance(value, Kernel)]
    assert len(kernels) == 10
    for kernel in kernels:
        for parameter in kernel.function.params:
            if not parameter.is_constexpr and parameter.name != "beta":  # always a float
                declared = plan.SIZES if parameter.do_not_specialize else plan.POINTERS
                assert parameter.name in declared, (kernel.function, parameter.name)
                assert parameter.do_not_specialize or parameter.do_not_specialize_on_alignment


class _Compiled:
    """Replaces a JITFunction and its compiled kernel: counts compilations and records launches."""

    def __init__(self):
        self.arg_names = ["x", "y", "FIRST", "SECOND"]
        self.made, self.launched = [], []

    def __getitem__(self, grid):
        def make(*arguments, **constants):
            self.made.append((grid, arguments, constants))
            return self.Again(self)

        return make

    class Again:
        run = None  # of another Triton's launcher nothing is known

        def __init__(self, parent):
            self.parent = parent

        def __getitem__(self, grid):
            def launch(*arguments, stream):
                self.parent.launched.append((grid, stream, arguments))

            return launch


@needs_plain_triton
def test_a_kernel_is_compiled_once_for_like_arguments(monkeypatch):
    pytest.importorskip("triton")
    from emp_kernels.kernels import launching
    from emp_kernels.kernels.launching import Kernel

    monkeypatch.setattr(launching, "stream_of", lambda device: 77)
    function = _Compiled()
    kernel = Kernel(function)
    kernel.direct = True
    x, half = torch.zeros(3), torch.zeros(3, dtype=torch.float16)
    kernel[(5,)](x, 7, SECOND=2, FIRST=1)
    kernel[(6,)](x[1:], 8, SECOND=2, FIRST=1)
    assert function.made == [((5,), (x, 7), {"SECOND": 2, "FIRST": 1})]
    ((grid, stream, arguments),) = function.launched
    assert (grid, stream) == ((6, 1, 1), 77)
    assert arguments[1:] == (8, 1, 2)  # constants in the kernel's order, whatever the caller's
    for unlike in ((half, 7), (x, 2**31), (x, None), (x, x), (x, 1.0)):
        kernel[(5,)](*unlike, SECOND=2, FIRST=1)
    kernel[(5,)](x, 7, SECOND=3, FIRST=1)
    assert len(function.made) == 7
    assert len(function.launched) == 1
