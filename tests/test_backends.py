"""The choice of a backend: None takes the fastest, an explicit choice never falls back."""

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest
import torch

import emp_kernels as emp
from emp_kernels import backends

ROOT = pathlib.Path(__file__).parent.parent
LOGITS = torch.randn(40, 9, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(40) % 9
CALLS = {
    "score": lambda **options: emp.score(LOGITS, LABELS, **options),
    "sample_statistics": lambda **options: emp.sample_statistics(LOGITS, LABELS, **options),
    "select": lambda **options: emp.select(LOGITS[:, 0], 0.3, **options),
    "score_and_select": lambda **options: emp.score_and_select(LOGITS, LABELS, None, **options),
}


def run(code, **environment):
    """Output of a fresh interpreter; PYTHONPATH leads to the package that this one imported."""
    path = os.pathsep.join([str(pathlib.Path(emp.__file__).parent.parent), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", textwrap.dedent(code)],
        env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def flat(result):
    """The tensors of a nested result."""
    if isinstance(result, torch.Tensor):
        return [result]
    return [x for part in result for x in flat(part)]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_cpu_tensors_take_the_cpu_backend(call, backend):
    chosen, explicit = flat(CALLS[call]()), flat(CALLS[call](backend="cpu"))
    assert all(torch.equal(a, b) for a, b in zip(chosen, explicit, strict=True))


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_float64_takes_the_reference(backend):
    assert emp.score(LOGITS.double(), LABELS).score.dtype == torch.float64
    for call in (emp.score, emp.sample_statistics):
        with pytest.raises(
            TypeError, match=r": backend 'cpu' must get float32, .*, got torch.float64"
        ):
            call(LOGITS.double(), LABELS, backend="cpu")
    with pytest.raises(TypeError, match=r"select: backend 'cpu' must get .* got torch.float64"):
        emp.select(LOGITS[:, 0].double(), 3, backend="cpu")
    state = emp.EMPState(40)
    with pytest.raises(TypeError, match=r"score_and_select: backend 'cpu' must get .*float64"):
        emp.score_and_select(LOGITS.double(), LABELS, state, backend="cpu")
    assert state.updates.sum() == 0


@pytest.mark.parametrize("call", CALLS)
def test_unknown_names(call):
    for name in ("gpu", "", "CPU", "Reference"):
        with pytest.raises(ValueError, match=f"^{call}: backend must be None or one of .*, got "):
            CALLS[call](backend=name)


@pytest.mark.parametrize("call", CALLS)
def test_an_unavailable_backend_is_an_error_and_never_replaced(call, monkeypatch):
    """What is missing, and the command that fixes it, are in the message."""

    def load(name):
        raise backends.Unavailable("part X is missing; get it with `pip install X`")

    monkeypatch.setattr(backends, "load", load)
    backends._resolve.cache_clear()
    try:
        for name in ("cpu", "reference"):
            with pytest.raises(
                RuntimeError, match=f"^{call}: .*{name}.* X is missing.*pip install"
            ):
                CALLS[call](backend=name)
    finally:
        backends._resolve.cache_clear()


WITHOUT_NATIVE_MODULE = """
    import sys, warnings
    sys.modules["emp_kernels._cpu"] = None  # importing it fails
    import torch
    import emp_kernels as emp
    logits, labels = torch.randn(20, 5), torch.arange(20) % 5
    calls = [
        lambda **options: emp.score(logits, labels, **options),
        lambda **options: emp.sample_statistics(logits, labels, **options),
        lambda **options: emp.select(logits[:, 0], 0.3, **options),
        lambda **options: emp.score_and_select(logits, labels, emp.EMPState(20), **options),
    ]
    for call in calls:
        try:
            call(backend="cpu")
        except RuntimeError as error:
            assert type(error) is RuntimeError, type(error)
            assert "_cpu" in str(error) and "pip install" in str(error), error
        else:
            raise AssertionError("the explicit choice fell back")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for call in calls * 2:
            call()
        emp.gather(logits, labels)
        state = emp.EMPState(20)
        state.update(torch.arange(20), emp.score(logits, labels))
        state.select(0.3)
    caught = [str(w.message) for w in caught if issubclass(w.category, RuntimeWarning)]
    assert len(caught) == 1, caught
    assert "reference" in caught[0] and "pip install" in caught[0], caught
    print("fine")
"""


def test_without_the_native_module():
    """An explicit "cpu" is a RuntimeError; None takes the reference, with one warning."""
    done = run(WITHOUT_NATIVE_MODULE)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "fine\n"


SIZES = ("2", "8", "16", "17", "65", "1000", "2049")
INNER = "every_column or every_size or nan_of_every or layouts or ties or vanish or any_logits"
INNER += " or small_losses or " + " or ".join(f"(hard_rows and cpu-{size}-)" for size in SIZES)


@pytest.mark.parametrize("level", ["avx2", "portable"])
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_the_other_instruction_sets(level, backend):
    """The accuracy, selection and state tests again, on kernels that this machine would not choose
    by default."""
    environment = {"EMP_SIMD": level, "EMP_TEST_BACKENDS": "cpu"}
    if "EMP_SIMD" in os.environ:
        pytest.skip("runs in the outer process only")
    probe = run("from emp_kernels import backends; backends.load('cpu')", **environment)
    if probe.returncode != 0:
        pytest.skip(probe.stderr.strip().splitlines()[-1])
    tests = pathlib.Path(__file__).parent
    files = [str(tests / f"test_{name}.py") for name in ("scoring", "statistics", "selection")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files, "-k", INNER],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " skipped" not in done.stdout.splitlines()[-1]
