"""doctor: its report matches what the operations do."""

import os
import re
import subprocess
import sys
import warnings
from types import FunctionType, SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import emp_kernels as emp
from emp_kernels import backends
from emp_kernels.cli import doctor, main
from emp_kernels.distributed import columns
from emp_kernels.experiments import provenance


def run_doctor(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "emp_kernels", "doctor"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    assert done.stderr == ""
    return done.stdout


def section(report: str, title: str) -> list[str]:
    return re.search(rf"^{title}\n((?:  .*\n|\n(?=  ))*)", report + "\n", re.M)[1].splitlines()


def table(report: str) -> dict[tuple[str, str], dict[str, str]]:
    """(operation, device) -> the backend it takes, under "takes", and the words on each backend."""
    rows = [re.split(r" {2,}", line.strip()) for line in section(report, "Operations") if line]
    assert rows[0] == ["operation", "device", "takes", *backends.NAMES]
    full = [row for row in rows[1:] if len(row) == len(rows[0])]
    return {tuple(row[:2]): dict(zip(rows[0][2:], row[2:], strict=True)) for row in full}


def test_versions_and_machine():
    report = run_doctor()
    versions = "\n".join(section(report, "Versions"))
    for name, value in (("emp_kernels", emp.__version__), ("torch", torch.__version__)):
        assert re.search(rf"^ +{name} +{re.escape(value)}$", versions, re.M)
    assert re.search(r"^ +triton +(not installed|\d+\.\d+.*)$", versions, re.M)
    machine = "\n".join(section(report, "Machine"))
    assert re.search(r"^ +cpu +.+, \d+ cores$", machine, re.M)
    assert re.search(rf"^ +threads +{torch.get_num_threads()} \(", machine, re.M)
    level = r"(avx512|avx2|portable|neon) \(EMP_SIMD names one of .*(portable|neon)\)"
    assert re.search(rf"^ +SIMD level +({level}|none .+)$", machine, re.M)
    for name in backends.NAMES:
        assert re.search(rf"^ +{name} +\S", "\n".join(section(report, "Backends")), re.M)


@pytest.mark.parametrize("operation", doctor.OPERATIONS)
def test_the_backend_named_is_the_one_that_runs(operation, monkeypatch):
    words = table(doctor.report())[operation, "cpu"]
    named = words["takes"]
    assert named == backends.default("cpu", torch.float32)
    assert {name for name in backends.NAMES if words[name] == "taken"} == {named}

    called = []

    def spy(name, original):
        def noted(*arguments):
            called.append(name)
            return original(*arguments)

        return noted

    for name in backends.NAMES:
        try:
            module = backends.load(name)
        except backends.Unavailable:
            continue
        served = backends._SERVED_BY.get(operation, operation)
        for function in (served, f"plain_{served}", f"plain_{operation}"):
            if hasattr(module, function):
                monkeypatch.setattr(module, function, spy(name, getattr(module, function)))
    monkeypatch.setattr(backends, "plain", backends.plain.__wrapped__)  # not what it found before

    monkeypatch.setattr(columns, "check_group", lambda function, group: (1, 0))
    monkeypatch.setattr(columns, "gather_equal", lambda function, tensor, group: [tensor])
    logits, labels = torch.randn(4, 3, requires_grad=True), torch.tensor([0, 1, 2, 0])
    state = emp.EMPState(4)
    scores = emp.score(logits, labels)
    weight = torch.randn(5, 3)
    called.clear()
    {
        "score": lambda: emp.score(logits, labels),
        "sample_statistics": lambda: emp.sample_statistics(logits, labels),
        "score_and_select": lambda: emp.score_and_select(logits, labels, state),
        "rank": lambda: emp.rank(logits, labels),
        "score_linear": lambda: emp.score_linear(logits, weight, labels),
        "score_contrastive": lambda: emp.score_contrastive(weight, weight),
        "linear_cross_entropy": lambda: emp.linear_cross_entropy(logits, weight, labels).backward(),
        "linear_log_prob_and_entropy": lambda: (
            emp.linear_log_prob_and_entropy(logits, weight, labels).entropy.sum().backward()
        ),
        "cross_entropy": lambda: emp.cross_entropy(logits, labels).backward(),
        "log_prob_and_entropy": lambda: (
            emp.log_prob_and_entropy(logits, labels).entropy.sum().backward()
        ),
        "select": lambda: emp.select(scores.score, 0.5),
        "gather": lambda: emp.gather(logits.detach(), labels),
        "EMPState.update": lambda: state.update(torch.arange(4), scores),
        "EMPSampler": lambda: list(emp.EMPSampler(state)),
        "distributed.score_vocab_parallel": lambda: emp.distributed.score_vocab_parallel(
            logits, labels, vocab_start=0
        ),
    }[operation]()
    assert called[0] == named


def test_a_backend_that_cannot_run_is_explained(monkeypatch):
    """As on a machine without the native module: the reason is given, once and in full."""
    reason = "the native module is missing; build it with `pip install .`"
    loaded = backends.load

    def load(name: str):
        if name == "cpu":
            raise backends.Unavailable(reason)
        return loaded(name)

    monkeypatch.setattr(backends, "load", load)
    backends._resolve.cache_clear()
    monkeypatch.setattr(backends, "_warn_once", lambda message: None)
    try:
        report = doctor.report()
    finally:
        backends._resolve.cache_clear()
    assert f"cpu        not available: {reason}" in report
    assert report.count(reason) == 1
    for operation in doctor.OPERATIONS:
        words = table(report)[operation, "cpu"]
        assert words["takes"] == "reference"
        assert words["reference"] == "taken"
        assert words["cpu"] == "missing, see above"


@pytest.fixture
def choices_made_anew():
    """No choice of a backend is cached from before, or kept."""
    remembered = backends.load, backends._resolve, backends._gathers_on_cuda, backends._warn_once
    for choice in remembered:
        choice.cache_clear()
    yield
    for choice in remembered:
        choice.cache_clear()


@pytest.mark.parametrize("device", ["cuda:0", "xpu:0", "mps"])
@pytest.mark.usefixtures("choices_made_anew")
def test_other_accelerators_take_the_reference_with_one_warning(device, monkeypatch):
    """A ROCm build of torch calls its devices cuda; the kernels' assembly is NVIDIA's."""
    device = torch.device(device)
    monkeypatch.setattr(torch.version, "hip", "6.4" if device.type == "cuda" else None)
    monkeypatch.setattr(doctor, "devices", lambda: [torch.device("cpu"), device])
    named = SimpleNamespace(get_device_name=lambda device: "Instinct")
    monkeypatch.setattr(torch, "get_device_module", lambda device: named)

    def fake_tensor() -> torch.Tensor:
        with FakeTensorMode():
            return torch.empty(4, 3, device=device)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for operation in ("score", "select", "score_and_select", "cross_entropy"):
            taken = backends.resolve(operation, None, fake_tensor())
            assert taken is backends.load("reference")
        gather = backends.resolve_gather(fake_tensor(), by_torch=False)
        assert gather is backends.load("reference")
    (warning,) = (entry for entry in caught if issubclass(entry.category, RuntimeWarning))
    reason = "built for ROCm" if device.type == "cuda" else f"no other backend serves {device.type}"
    assert reason in str(warning.message)
    if device.type == "cuda":
        for name, function in (("triton", "score"), ("cuda", "select")):
            with pytest.raises(RuntimeError, match=f"^{function}: backend '{name}' .*ROCm"):
                backends.resolve(function, name, fake_tensor())

    monkeypatch.setattr(backends, "check_no_tracing", lambda function: None)
    with FakeTensorMode():
        report = doctor.report()
    machine = "\n".join(section(report, "Machine"))
    shown = {"cuda": "Instinct, ROCm 6.4", "xpu": "Instinct", "mps": "present"}[device.type]
    assert re.search(rf"^ +{device} +{shown}$", machine, re.M), machine
    words = {row: cells for row, cells in table(report).items() if row[1] == str(device)}
    assert len(words) == len(doctor.OPERATIONS) - 1
    assert {cells["takes"] for cells in words.values()} == {"reference"}
    if device.type == "cuda":
        assert {cells["triton"] for cells in words.values()} == {"missing, see above"}


def test_every_public_operation_is_listed():
    functions = {name for name in emp.__all__ if isinstance(getattr(emp, name), FunctionType)}
    assert functions <= set(doctor.OPERATIONS)


def test_doctor_returns_success(capsys):
    assert main(["doctor"]) == 0
    assert "Operations" in capsys.readouterr().out


def test_doctor_needs_no_optional_package():
    """rich, matplotlib, pillow and triton cannot even be found."""
    block = (
        "import sys\n"
        "for name in ('rich', 'matplotlib', 'PIL', 'triton'): sys.modules[name] = None\n"
        "from emp_kernels.cli import main\n"
        "raise SystemExit(main(['doctor']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", block], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_an_installed_package_has_no_commit(monkeypatch):
    monkeypatch.setattr(provenance, "commit", lambda: None)
    assert not [line for line in section(doctor.report(), "Versions") if "commit" in line]
    monkeypatch.setattr(provenance, "commit", lambda: "0123abc")
    assert "  commit       0123abc" in section(doctor.report(), "Versions")


def test_the_commit_of_files_that_were_copied(monkeypatch):
    monkeypatch.setenv("EMP_COMMIT", "0123abc")
    assert provenance.commit() == "0123abc"
    monkeypatch.delenv("EMP_COMMIT")
    assert provenance.commit() != "0123abc"
