"""Builds the native modules with CMake and Ninja; pyproject.toml describes the package itself.

CMakeLists.txt decides which modules are built. They are compiled in build/, which is kept so that a
rebuild compiles only what changed, and are moved into the package atomically: a process that uses
the old modules keeps them.

The environment variable EMP_CUDA=0 leaves emp_kernels._cuda out.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, __version__, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"


if int(__version__.split(".")[0]) < 77:  # a new environment of Python 3.10 or 3.11 may have this
    raise SystemExit(
        f"emp_kernels: building needs setuptools 77 or newer, got {__version__}, "
        "install it with: pip install -U setuptools"
    )


def find_tool(name: str) -> str:
    """Path of `name`: on PATH, where build isolation puts its own, or next to this interpreter."""
    places = [os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")]
    tool = shutil.which(name, path=os.pathsep.join(places))
    if tool is None:
        raise SystemExit(f"emp_kernels: building needs {name}, install it with: pip install {name}")
    return tool


def cmake(*arguments: str | Path) -> None:
    environment = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count()), **os.environ}
    command = [find_tool("cmake"), *map(str, arguments)]
    if subprocess.call(command, env=environment) != 0:
        raise SystemExit("emp_kernels: the native modules were not built, CMake says why above")


def built_here() -> bool:
    """Whether build/ belongs to this directory and was not copied from another one."""
    cache = BUILD / "CMakeCache.txt"
    return cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" in cache.read_text()


def build_modules(package: Path) -> None:
    """Compile the native modules and move them into `package`, replacing earlier ones."""
    if not built_here():
        shutil.rmtree(BUILD, ignore_errors=True)
    cmake(
        *("-G", "Ninja", "-S", ROOT, "-B", BUILD, "--log-level=NOTICE"),
        f"-DCMAKE_MAKE_PROGRAM={find_tool('ninja')}",
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DEMP_CUDA={os.environ.get('EMP_CUDA', '1')}",
    )
    cmake("--build", BUILD)
    package.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=package) as staging:
        cmake("--install", BUILD, "--prefix", staging, "--strip")
        modules = {path.name: path for path in Path(staging).iterdir()}
        for name, path in modules.items():
            os.replace(path, package / name)
    for earlier in package.glob("_*" + sysconfig.get_config_var("EXT_SUFFIX")):
        if earlier.name not in modules:
            earlier.unlink()


class BuildWithCMake(build_ext):
    def run(self) -> None:
        in_tree = self.inplace or self.editable_mode
        build_modules((ROOT if in_tree else Path(self.build_lib)) / "emp_kernels")


setup(
    # Named so that the wheel counts as compiled; CMake knows the sources.
    ext_modules=[Extension("emp_kernels._cpu", sources=[])],
    cmdclass={"build_ext": BuildWithCMake},
)
