"""Where a measurement comes from: the machine, the versions and the commit."""

import functools
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .. import __version__

PACKAGE = Path(__file__).resolve().parents[1]


def package_version(name: str) -> str | None:
    """Version of an installed distribution, without importing it; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def versions() -> dict[str, str | None]:
    """Versions of everything that results depend on; None for packages that are not installed."""
    return {
        "emp_kernels": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": package_version("numpy"),
        "triton": package_version("triton"),
    }


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_model() -> str:
    """The processor's name, as reported by the operating system."""
    if sys.platform == "linux":
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


@functools.cache
def machine() -> dict[str, Any]:
    """The processor, its usable cores, the operating system, and GPUs by name."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": cpu_model(),
        "cpus": usable_cpus(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpus": gpus,
    }


def commit(*also: str) -> str | None:
    """Commit of the checkout that the package runs from, with ``-dirty`` if the package, its native
    sources or the paths `also` differ from it; None outside a checkout. EMP_COMMIT overrides it,
    for files that were copied elsewhere."""
    copied = os.environ.get("EMP_COMMIT")
    if copied:
        return copied
    top = PACKAGE.parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(top), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "emp_kernels/__init__.py")
        changed = git("status", "--porcelain", "--", "emp_kernels", "csrc", "python", *also)
        return git("rev-parse", "HEAD") + ("-dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None
