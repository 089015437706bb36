"""Torch's global switches change no result: under each, every public function gives the same
result, or one within the contract's bound if the arithmetic changes, or a clear error."""

from __future__ import annotations

import ctypes
import functools
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch_calls import CALLS, public_names

UPWARD = {"x86_64": 0x800, "aarch64": 0x400000}.get(platform.machine())
# Our errors, and torch's for real tensors among fake ones.
WORDED = re.compile(
    r"([\w.]+: \w+ must .*, got |Please convert all Tensors to FakeTensors first )", re.DOTALL
)


@contextmanager
def set_between(set_it: Callable, value, before) -> Iterator[None]:
    set_it(value)
    try:
        yield
    finally:
        set_it(before)


@contextmanager
def rounding_upward() -> Iterator[None]:
    library = ctypes.CDLL(None)
    assert library.fesetround(UPWARD) == 0
    try:
        yield
    finally:
        library.fesetround(0)


def between(set_it: Callable, value, before) -> Callable[[], AbstractContextManager]:
    return lambda: set_between(set_it, value, before)


# Switches that do not affect torch's arithmetic, and those that do.
EXACT = {
    "deterministic algorithms": between(torch.use_deterministic_algorithms, True, False),
    "default dtype float64": between(torch.set_default_dtype, torch.float64, torch.float32),
    "default tensor type": between(
        torch.set_default_tensor_type, torch.DoubleTensor, torch.FloatTensor
    ),
    "default device meta": between(torch.set_default_device, "meta", None),
    "default device cpu": between(torch.set_default_device, "cpu", None),
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "set_grad_enabled": lambda: torch.set_grad_enabled(False),
    "anomaly detection": torch.autograd.detect_anomaly,
    "FakeTensorMode": FakeTensorMode,
    "FunctionalTensorMode": FunctionalTensorMode,
}
INEXACT = {
    "flush_denormal": between(torch.set_flush_denormal, True, False),
    "rounding upward": rounding_upward,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "one thread": between(torch.set_num_threads, 1, torch.get_num_threads()),
    "seven threads": between(torch.set_num_threads, 7, torch.get_num_threads()),
    "matmul precision": between(torch.set_float32_matmul_precision, "medium", "highest"),
}


@pytest.fixture(scope="module", autouse=True)
def group() -> Iterator[None]:
    """One rank, for the calls of many."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_every_public_name_has_a_call():
    assert sorted(CALLS) == sorted(public_names()), "add the missing calls to torch_calls.py"


@functools.cache
def wanted(name: str, backend: str) -> dict:
    return CALLS[name]()


def assert_same(got, want, exact: bool, where: str) -> None:
    """Numbers, dtypes, devices and containers."""
    if isinstance(want, torch.Tensor):
        if isinstance(got, FunctionalTensor):  # what torch's own operations give in its mode
            got = torch._from_functional_tensor(got.elem)
        assert (type(got), got.dtype, got.device) == (type(want), want.dtype, want.device), where
        if exact or not want.is_floating_point():
            assert torch.equal(got.nan_to_num(123.0), want.nan_to_num(123.0)), where
        else:
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6, equal_nan=True)
    elif isinstance(want, dict):
        assert list(got) == list(want), where
        for key, value in want.items():
            assert_same(got[key], value, exact, f"{where}: {key}")
    elif isinstance(want, (tuple, list)):
        assert len(got) == len(want), where
        for i, value in enumerate(want):
            assert_same(got[i], value, exact, f"{where}: {i}")
    else:
        assert got == want or (got != got and want != want), where


@pytest.mark.filterwarnings("ignore:.*set_default_tensor_type", "ignore:Anomaly Detection")
@pytest.mark.parametrize("name", public_names())
@pytest.mark.parametrize("switch", [*EXACT, *INEXACT])
def test_under_a_switch(switch, name, as_default):
    want = wanted(name, as_default)
    with (EXACT | INEXACT)[switch]():
        try:
            got = CALLS[name]()
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            if WORDED.match(str(error)):
                return
            raise
        recorded = torch.is_grad_enabled()
    if not recorded:
        want = {key: value for key, value in want.items() if not key.startswith("gradient")}
    assert_same(got, want, switch in EXACT, name)


def test_without_a_switch_again(as_default):
    for name in public_names():
        assert_same(CALLS[name](), wanted(name, as_default), True, name)
