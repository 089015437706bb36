"""Fixtures that every test file shares: backends, the batch of accuracy records, threads."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

# Before libgomp is loaded: spinning threads starve other processes on a shared machine (the whole
# run takes five times as long).
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch
from hypothesis import HealthCheck, settings

from emp_kernels import backends

# test_triton_interpreter.py runs these tests again for "triton", in a separate process.
BACKENDS = tuple(os.environ.get("EMP_TEST_BACKENDS", "reference,cpu").split(","))

settings.register_profile(
    "suite",
    deadline=None,  # the machine may be shared
    derandomize=True,  # the same examples on every run
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))


def why_missing(name: str) -> str | None:
    """Why backend `name` cannot be loaded here, or None."""
    try:
        backends.load(name)
    except (backends.Unavailable, ImportError) as reason:
        return f"{type(reason).__name__}: {reason}"
    return None


MISSING = {name: why_missing(name) for name in BACKENDS}


# The trainers that the package works with (pyproject.toml, extra "trainers"), and the files of
# tests that cannot even be imported without one.
TRAINERS = ("accelerate", "lightning", "torchdata", "transformers")
NEEDED_BY = {
    "test_integrations_lightning.py": {"lightning"},
    "test_integrations_transformers.py": {"accelerate", "transformers"},
}
ABSENT = [name for name in TRAINERS if importlib.util.find_spec(name) is None]
collect_ignore = [file for file, needs in NEEDED_BY.items() if not needs.isdisjoint(ABSENT)]


# Their tests take half a minute each: begun first, they leave no worker waiting at the end.
LONG = ("test_triton_interpreter.py", "test_kills.py", "test_sharded_checkpoints.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONG)


def pytest_report_header() -> list[str]:
    lines = [
        f"backend {name}: {'loaded' if reason is None else 'NOT TESTED, ' + reason}"
        for name, reason in MISSING.items()
    ]
    if ABSENT:
        lines.append(f"trainers NOT TESTED, since they are not installed: {', '.join(ABSENT)}")
    return lines


@pytest.fixture(params=BACKENDS)
def backend(request) -> str:
    """Each backend's name; skipped only when it cannot be loaded here."""
    reason = MISSING.get(request.param, "not among EMP_TEST_BACKENDS")
    if reason is not None:
        pytest.skip(f"backend {request.param}: {reason}")
    return request.param


@pytest.fixture
def as_default(backend, monkeypatch) -> Iterator[str]:
    """`backend`, also used by functions without a backend argument."""
    monkeypatch.setattr(backends, "default", lambda device_type, dtype: backend)
    choices = backends._resolve, backends.plain
    for choice in choices:
        choice.cache_clear()
    yield backend
    for choice in choices:
        choice.cache_clear()


@pytest.fixture
def threads() -> Iterator[list[int]]:
    """The thread counts to try; the count is restored afterwards."""
    before = torch.get_num_threads()
    yield [1, 2, 3, 4]
    torch.set_num_threads(before)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """In steps of a millisecond a second thread only costs time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


WORST: dict[tuple[str, str, str], dict[str, float]] = {}


@pytest.fixture
def record_ulps():
    """Records the worst error in ulp of (backend, dtype, field) by family; printed after the
    run."""

    def note(backend: str, dtype: torch.dtype, field: str, case: str, ulps: float) -> None:
        cases = WORST.setdefault((backend, str(dtype).removeprefix("torch."), field), {})
        cases[case] = max(cases.get(case, 0.0), ulps)

    return note


def pytest_terminal_summary(terminalreporter) -> None:
    if not WORST:
        return
    terminalreporter.section("largest errors against float64, in float32 ulp")
    for (backend, dtype, field), cases in sorted(WORST.items()):
        worst = sorted(cases.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{case} {ulps:.2f}" for case, ulps in worst[:5])
        at_one = cases.get("scale 1", float("nan"))
        terminalreporter.write_line(
            f"{backend} {dtype} {field}: at scale 1 {at_one:.2f}; worst: {shown}"
        )
