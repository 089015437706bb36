"""`make audit`: the Triton kernels' machine code has no spills and loads each logit once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def audit(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("triton")
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "bench.audit", *arguments],
        cwd=ROOT,
        env=kept | {"PYTHONPATH": str(ROOT)} | environment,
        capture_output=True,
        text=True,
    )


# All variants take minutes: `make thorough` and `make audit` compile them.
THOROUGH = os.environ.get("EMP_THOROUGH") == "1"


def test_no_faults():
    done = audit() if THOROUGH else audit("score C=10")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-4000:]
    assert done.stdout.count("sm_90") == done.stdout.count("sm_80") > (20 if THOROUGH else 2)
    assert "FAULT" not in done.stdout


def test_too_many_registers_are_a_fault():
    done = audit("score C=10 float32", EMP_AUDIT_MAX_REGISTERS="1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "registers, more than 1" in done.stdout
    assert "2 faults" in done.stdout


def test_the_interpreter_cannot_be_audited():
    done = audit(TRITON_INTERPRET="1")
    assert done.returncode == 2
    assert "TRITON_INTERPRET must be unset" in done.stdout
