"""The Triton kernels without a GPU: Triton's interpreter runs them on CPU tensors.

TRITON_INTERPRET must be set before the kernels are imported, and nothing can be compiled then, so
the interpreted tests run in a separate process.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# Processes that can run side by side: tests of the kernels, and those of all backends that are
# quick enough for an interpreter.
PROCESSES = {
    "scoring": ("test_triton_scoring.py",),
    "selection and state": ("test_triton_selection.py", "test_triton_state.py"),
    "all backends": (
        "test_bad_input.py", "test_contrastive.py", "test_linear.py", "test_tokens.py",
        "test_tensor_arguments.py", "test_torch_defaults.py", "test_batch_invariance.py",
    ),
}  # fmt: skip
if os.environ.get("EMP_THOROUGH") == "1":  # make thorough
    PROCESSES["losses with options"] = (
        "test_loss_options.py", "test_linear_options.py", "test_loss_shards.py",
        "test_linear_shards.py",
    )  # fmt: skip
    PROCESSES["switches"] = ("test_torch_switches.py",)


@pytest.mark.parametrize("files", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
def test_kernels_in_the_interpreter(files):
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "EMP_TEST_BACKENDS": "triton"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += [str(HERE / name) for name in files]
    done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "NOT TESTED" not in done.stdout
