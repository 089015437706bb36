"""The files that `make wheels` wrote into dist/, tested in environments without this clone.

A bare environment takes half a minute and torch's download, so that these tests run at the end of
`make wheels` alone, which names the folder in EMP_WHEELS and the interpreters in EMP_PYTHONS.
"""

import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.utils import parse_wheel_filename

import emp_kernels

ROOT = Path(__file__).resolve().parents[1]
DIST = os.environ.get("EMP_WHEELS")
WHEELS = sorted(Path(DIST).resolve().glob("*.whl")) if DIST else []

pytestmark = pytest.mark.skipif(DIST is None, reason="make wheels runs it, on what it built")

LOOP = """
import pathlib, re, sys
{loop}
assert pathlib.Path(emp.__file__).is_relative_to(sys.prefix), emp.__file__
assert state.updates.sum() == 2000 + 2 * 600, state.updates.sum()
torch.set_num_threads(2)
scores = emp.score(torch.zeros(20000, 100), torch.arange(20000) % 100, backend="cpu")
torch.testing.assert_close(scores.loss, torch.full((20000,), 100.0).log())
maps = pathlib.Path("/proc/self/maps").read_text().split()
print("runtimes", *{{name for name in maps if re.search("lib(gomp|omp|iomp5)", name)}})
"""

NATIVE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("emp_kernels._cpu", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
assert "torch" not in sys.modules
print(module.simd_level())
"""


def output(*command: str | Path, **options) -> str:
    """What a command prints; a command that fails shows it all."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=clean,
        **options,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def wheel_of(python: str) -> Path:
    """The one wheel for an interpreter, by its tag."""
    tag = output(python, "-c", "import sys; print('cp%d%d' % sys.version_info[:2])").strip()
    (wheel,) = (path for path in WHEELS if f"-{tag}-{tag}-" in path.name)
    return wheel


def test_there_is_a_wheel_for_every_interpreter():
    pythons = os.environ["EMP_PYTHONS"].split()
    assert len({wheel_of(python) for python in pythons}) == len(pythons) == len(WHEELS)


@pytest.mark.parametrize("wheel", WHEELS, ids=lambda wheel: wheel.name)
def test_a_wheel_fits_other_machines_and_brings_no_library(wheel):
    _, version, _, tags = parse_wheel_filename(wheel.name)
    assert str(version) == emp_kernels.__version__
    assert all(tag.platform.startswith("manylinux_2_") for tag in tags)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        assert not [name for name in names if ".libs/" in name]
        assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]
        for name in names:
            if name.endswith(".so"):
                assert not re.search(rb"lib(torch|c10)\w*\.so", archive.read(name)), name


def test_the_source_archive_is_of_this_version():
    (archive,) = Path(DIST).glob("*.tar.gz")
    assert archive.name == f"emp_kernels-{emp_kernels.__version__}.tar.gz"
    with tarfile.open(archive) as content:
        assert f"emp_kernels-{emp_kernels.__version__}/LICENSE" in content.getnames()


@pytest.mark.parametrize("python", os.environ.get("EMP_PYTHONS", "").split())
def test_the_native_module_loads_without_torch(python, tmp_path):
    with zipfile.ZipFile(wheel_of(python)) as archive:
        (name,) = (name for name in archive.namelist() if name.startswith("emp_kernels/_cpu."))
        module = archive.extract(name, tmp_path)
    level = output(python, "-I", "-c", NATIVE, module).strip()
    assert level in ("avx512", "avx2", "portable", "neon")


def test_the_loop_of_the_readme_runs_in_a_bare_environment(tmp_path):
    """With the versions of constraints.txt, and the OpenMP runtime that torch brings, once."""
    venv.create(tmp_path / "bare", with_pip=True)
    python = tmp_path / "bare" / "bin" / "python"
    install = (python, "-m", "pip", "install", "-qq", "--no-compile")
    output(*install, "-c", ROOT / "constraints.txt", wheel_of(sys.executable))
    readme = (ROOT / "README.md").read_text()
    *_, loop = re.findall(r"^```python\n(.*?)^```$", readme, re.M | re.S)
    script = tmp_path / "loop.py"
    script.write_text(LOOP.format(loop=loop))
    printed = output(python, "-I", script, cwd=tmp_path)
    assert [int(count) for count in re.findall(r"\d: (\d+) samples", printed)] == [2000, 2600, 3200]
    _, runtime = printed.splitlines()[-1].split()
    assert "/torch/lib/" in runtime or "/libgomp" in runtime
    report = output(python, "-I", "-m", "emp_kernels", "doctor", cwd=tmp_path)
    assert re.search(r"^ +score +cpu +cpu +", report, re.M), report
