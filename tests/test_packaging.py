"""The package as users get it: source archive, wheel, requirements, and builds without CUDA."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from itertools import combinations
from pathlib import Path

import pytest
from filelock import FileLock
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import emp_kernels

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
]


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Output of a command, errors included; a command that fails shows it."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]])
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, "PATH": path, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built offline; compiles what changed since the last build."""
    folder = tmp_path_factory.mktemp("wheel")
    command = (sys.executable, "-m", "pip", "wheel", "-q", "--no-index", "--no-deps")
    with FileLock(ROOT / "build" / "wheel.lock"):  # the tests' other processes build there, too
        for earlier in (ROOT / "build").glob("lib.*"):
            shutil.rmtree(earlier)  # setuptools would pack the modules of earlier builds again
        run(*command, "--no-build-isolation", "-w", folder, ".", cwd=ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_the_source_archive_holds_what_a_build_needs(tmp_path: Path) -> None:
    tree = tmp_path / "tree"  # without the file lists that earlier builds left
    for name in ("emp_kernels", "csrc", "python", "tests"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("*.so", "*.pyc"))
    for path in ROOT.glob("*"):
        if path.is_file():
            shutil.copy(path, tree)
    needed = {path.relative_to(tree) for path in tree.glob("*/**/*") if path.is_file()}
    needed = {path for path in needed if path.parts[0] != "tests"}
    needed |= {Path(name) for name in ("CMakeLists.txt", "LICENSE", "README.md", "setup.py")}
    needed |= {Path(name) for name in ("CHANGELOG.md", "CITATION.cff", "SECURITY.md")}
    run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", tmp_path, cwd=tree)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as content:
        inside = {Path(*Path(name).parts[1:]) for name in content.getnames()}
    assert needed - inside == set()
    assert not [path for path in inside if path.parts[:1] == ("tests",)]  # they need the clone


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    modules = {name.split(".")[0] for name in names if name.endswith(".so")}
    assert modules in ({"emp_kernels/_cpu"}, {"emp_kernels/_cpu", "emp_kernels/_cuda"})
    python = {str(path.relative_to(ROOT)) for path in (ROOT / "emp_kernels").rglob("*.py")}
    others = {name for name in names if not name.endswith(".so")}
    assert others == python | {"emp_kernels/py.typed", "emp_kernels/experiments/digits.npz"}


def test_the_metadata_says_what_is_needed(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = importlib.metadata.PathDistribution(zipfile.Path(archive, name).parent).metadata
    assert metadata["Version"] == emp_kernels.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    licences = [
        file
        for file in archive.namelist()
        if ".dist-info/licenses/" in file and not file.endswith("/")
    ]
    assert [Path(file).name for file in licences] == metadata.get_all("License-File") == ["LICENSE"]
    assert metadata["Requires-Python"] == ">=3.10"
    always = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert always == ["torch>=2.6", "numpy"]
    assert set(metadata.get_all("Provides-Extra")) >= {"demo", "bench", "test", "dev", "triton"}


def test_the_installed_wheel_scores_with_the_native_module(wheel: Path, tmp_path: Path) -> None:
    install = (sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps")
    run(*install, "--target", tmp_path, wheel, cwd=tmp_path)
    program = (
        "import torch, emp_kernels as emp\n"
        "scores = emp.score(torch.zeros(2, 4), torch.tensor([0, 3]), backend='cpu')\n"
        "torch.testing.assert_close(scores.loss, torch.full((2,), 4.0).log())\n"
        "print(emp.__file__)"
    )
    printed = run(sys.executable, "-c", program, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert printed.split() == [str(tmp_path / "emp_kernels" / "__init__.py")]


def test_the_module_is_linked_to_neither_torch_nor_openmp(wheel: Path, tmp_path: Path) -> None:
    """It works with any torch version, and with torch's OpenMP runtime under any file name."""
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.startswith("emp_kernels/_cpu."))
        module = archive.extract(name, tmp_path)
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", run("readelf", "--dynamic", module, cwd=tmp_path))
    assert "libc.so.6" in needed
    assert not [library for library in needed if re.match("lib(torch|c10|g?omp|iomp)", library)]


@pytest.mark.usefixtures("wheel")
def test_no_function_is_compiled_for_two_simd_levels() -> None:
    """The linker keeps one copy of an inline function: one for AVX-512 would crash older machines.

    Functions shared by the levels must therefore depend on a template parameter of the level, or
    be local to their file.
    """
    if shutil.which("nm") is None:
        pytest.skip("needs nm")
    levels: dict[str, set[str]] = {}
    build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
    for path in build.glob("CMakeFiles/cpu_kernels.dir/csrc/cpu/*.o"):
        if not (ROOT / "csrc" / "cpu" / path.stem).exists():
            continue  # left by a source file that is gone
        level = re.search(r"_(avx2|avx512)\.cpp\.o$", path.name)
        symbols = run("nm", "--defined-only", path, cwd=ROOT).splitlines()
        weak = {fields[2] for line in symbols if (fields := line.split())[1] in "Ww"}
        levels.setdefault(level[1] if level else "any", set()).update(weak)
    assert "any" in levels
    for one, other in combinations(levels, 2):
        assert not levels[one] & levels[other], f"in both {one} and {other}"


def test_a_missing_cuda_compiler_is_one_clear_line(tmp_path: Path) -> None:
    printed = run(
        *("cmake", "-G", "Ninja", "-S", ROOT, "-B", tmp_path, "--log-level=NOTICE"),
        f"-DPython_EXECUTABLE={sys.executable}",
        cwd=ROOT,
        CUDACXX=str(tmp_path / "nvcc"),
    )
    beyond_status = [line for line in printed.splitlines() if line and not line.startswith("-- ")]
    assert beyond_status == [
        "emp_kernels: no CUDA compiler found, building without the CUDA extension"
    ]


def test_the_console_script_is_the_command_line() -> None:
    assert PROJECT["scripts"] == {"emp-kernels": "emp_kernels.cli:main"}


def test_every_pin_is_exact() -> None:
    for pin in PINS:
        (specifier,) = pin.specifier
        assert specifier.operator == "==", pin
        assert "*" not in specifier.version, pin
        assert pin.url is None, pin
    assert [str(pin.specifier) for pin in PINS if pin.name == "torch"] == ["==2.13.0"]


def test_everything_that_the_make_targets_install_is_pinned() -> None:
    pinned = {canonicalize_name(pin.name) for pin in PINS}
    todo = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    seen: set[str] = set()
    while todo:
        requirement = Requirement(todo.pop())
        name = canonicalize_name(requirement.name)
        if name in seen or name == canonicalize_name(PROJECT["name"]):
            continue
        seen.add(name)
        assert name in pinned, f"constraints.txt lacks {name}"
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform or Python
        wanted = [{"extra": extra} for extra in requirement.extras or {""}]
        for line in needs:
            marker = Requirement(line).marker
            if marker is None or any(marker.evaluate(extra) for extra in wanted):
                todo.append(line)


def test_the_peers_of_the_benchmarks_are_pinned_apart() -> None:
    """They are not an extra of the package, and replace nothing that other targets install."""
    lines = (ROOT / "bench/peers.txt").read_text().splitlines()
    peers = [Requirement(line) for line in lines if not line.startswith("#")]
    for pin in peers:
        (specifier,) = pin.specifier
        assert specifier.operator == "==", pin
    names = {canonicalize_name(pin.name) for pin in peers}
    assert names >= {"verl", "liger-kernel", "cut-cross-entropy"}
    assert not names & {canonicalize_name(pin.name) for pin in PINS}
    assert not names & {Requirement(line).name for e in EXTRAS.values() for line in e}


def test_the_build_requirements_are_in_the_environment_too() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert set(build) <= set(PROJECT["optional-dependencies"]["dev"])


def test_no_file_names_a_place_on_a_machine() -> None:
    """The tree contains no machine paths and no hosts of package indexes."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    folders = "|".join(("work", "tmp", "home", "root", "opt", "mnt", "Users"))
    place = re.compile(rf"(?<![\w.$)}}/-])/({folders})(?![\w-])|--(extra-)?index-url|\.pyenv")
    for name in filter(None, listed.stdout.split("\0")):
        path = ROOT / name
        if path == Path(__file__).resolve() or not path.is_file():
            continue
        text = path.read_bytes().decode("utf-8", errors="ignore")
        found = place.search(text)
        assert found is None, f"{name} names {found[0]!r}"
