"""`make audit`: the Triton kernels' machine code has no spills and loads each logit once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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


def rows_by_two_kernels():
    """Few rows of many classes, whose pieces are programs' own, and many: bit by bit alike only
    where both kernels add up what threads and warps hold in the same order."""
    from bench.audit import variants
    from bench.audit.recording import recording

    for classes, statistics in ((128256, False), (50257, True)):
        recorded = []
        for rows in (8, 100_000):
            with recording() as launches:
                variants.scoring(rows, classes, torch.bfloat16, statistics=statistics)()
            recorded += launches
        yield recorded


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled")
def test_rows_are_added_up_in_one_order_however_many_they_are():
    pytest.importorskip("triton")
    sys.path.insert(0, str(ROOT))
    from bench.audit.order import sums_of

    for few, many in rows_by_two_kernels():
        assert few.arguments["PARTS"] == many.arguments["PIECES"] > many.arguments["PARTS"] == 1
        assert sums_of(few, 90) == sums_of(many, 90) != set()


def test_too_many_registers_are_a_fault():
    done = audit("score C=10 float32", EMP_AUDIT_MAX_REGISTERS="1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "registers, more than 1" in done.stdout
    assert "2 faults" in done.stdout


def test_the_interpreter_cannot_be_audited():
    done = audit(TRITON_INTERPRET="1")
    assert done.returncode == 2
    assert "TRITON_INTERPRET must be unset" in done.stdout
