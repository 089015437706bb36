"""Each example runs as its docstring describes."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import emp_kernels

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = Path(emp_kernels.__file__).parent.parent

EXPECTED = {
    "plain.py": "step 62 of 62",
    "ddp.py": "rank 1: 1000 samples scored",
    "accelerate_loop.py": "20 steps; 1000 samples scored",
    "torchtnt_loop.py": "shares [1.0, 0.3, 0.3, 0.3, 0.3]; the same when stopped at batch 20: True",
    "mosaicml_stream.py": "44 steps; the same when stopped at step 23: True",
    "webdataset_stream.py": "44 steps; the same when stopped at step 23: True",
    "huggingface_stream.py": "48 steps; the same when stopped at step 23: True",
    "huggingface.py": "45 steps; shares [1.0, 0.3, 0.3, 0.3, 1.0]",
    "causal_lm.py": "25 steps; shares [1.0, 0.5, 0.5, 0.5]",
    "grpo.py": "the weights are those of TRL's own head: True",
    "ray_data.py": "those that one process selects: True",
    "vocab_parallel.py": "rank 1: state restored True",
    "sequence_parallel.py": "rank 1, per row: as one process on whole sequences: True",
    "simclr.py": "| EMP | 0.3 |",
    "lightning_module.py": "36 steps; shares [1.0, 0.3, 0.3, 0.3, 0.3]\n"
    "Fabric: 36 steps, the same when stopped at 20: True\n",
}
NEEDS = {
    "accelerate_loop.py": ("accelerate",),
    "causal_lm.py": ("accelerate", "transformers"),
    "grpo.py": ("trl",),
    "huggingface.py": ("accelerate", "transformers"),
    "huggingface_stream.py": ("datasets", "torchdata"),
    "mosaicml_stream.py": ("streaming", "torchvision"),  # which streaming imports
    "ray_data.py": ("ray",),
    "webdataset_stream.py": ("webdataset",),
    "lightning_module.py": ("lightning",),
    "torchtnt_loop.py": ("torchtnt", "pkg_resources"),  # nothing installs it
}


def test_every_example_is_run():
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_example(name, tmp_path):
    for package in NEEDS.get(name, ()):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed: {name} was not run")
    path = os.pathsep.join([str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable]
    if name in ("ddp.py", "sequence_parallel.py", "vocab_parallel.py"):
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, str(ROOT / "examples" / name), *(["--quick"] if name == "simclr.py" else [])],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert EXPECTED[name] in done.stdout
    assert "False" not in done.stdout
    assert "nan" not in done.stdout
    if name == "simclr.py":
        assert len((tmp_path / "out/simclr/simclr.jsonl").read_text().splitlines()) == 4
