"""The CUDA extension on a machine without a GPU: it compiles for every target, and its errors name
what is missing."""

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import emp_kernels as emp
from emp_kernels import backends

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))


def nvcc_targets() -> list[str]:
    """The virtual architectures that nvcc compiles for."""
    done = subprocess.run(["nvcc", "--list-gpu-code"], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_compiles_without_spills(source, tmp_path):
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed: the CUDA sources were not compiled")
    targets = [name for name in ("sm_80", "sm_90", "sm_100") if name in nvcc_targets()]
    assert {"sm_80", "sm_90"} <= set(targets)
    command = ["nvcc", "-std=c++17", "-O3", f"-I{ROOT / 'csrc'}", "-Werror", "all-warnings"]
    command += ["-Xptxas", "-v", "-c", str(source), "-o", str(tmp_path / "out.o")]
    for target in targets:
        command += ["-gencode", f"arch={target.replace('sm', 'compute')},code={target}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    report = [line for line in done.stderr.splitlines() if "spill" in line]
    assert len(report) >= len(targets)
    for line in report:
        assert "0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads" in line


def test_explicit_choice_says_what_is_missing():
    scores = torch.randn(5)
    with pytest.raises(RuntimeError, match=r"^select: backend 'cuda' (is not available|does not)"):
        emp.select(scores, 2, backend="cuda")
    with pytest.raises(RuntimeError, match=r"^score: backend 'cuda' (is not available|does not)"):
        emp.score(torch.randn(5, 3), torch.zeros(5).long(), backend="cuda")


def test_a_backend_that_lacks_a_function_says_so(monkeypatch):
    class Partial:
        DTYPES = frozenset({torch.float32})

    monkeypatch.setattr(backends, "load", lambda name: Partial)
    backends._resolve.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=r"^score: backend 'cuda' does not offer score"):
            emp.score(torch.randn(5, 3), torch.zeros(5).long(), backend="cuda")
    finally:
        backends._resolve.cache_clear()
