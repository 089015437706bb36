"""Memory that a call needs: `python -m bench.memory MODULE ARGUMENT...` prints it for the call that
`bench.MODULE.first_call(ARGUMENT...)` prepares."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import harness

MOST = 64 * 2**20  # bytes allowed for calls that do not materialise a matrix


def growth(call: Callable[[], Any]) -> int:
    """Peak increase of this process's resident memory during `call`, in bytes: tiles, results, and
    what libraries and the allocator take. Linux only."""

    def resident(name: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    call()
    return resident("VmHWM") - before


def of_a_first_call(module: str, *arguments: str | int) -> int | None:
    """`growth` of that call in a process that makes no other; None except on Linux."""
    if sys.platform != "linux":
        return None
    command = [sys.executable, "-m", "bench.memory", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=harness.ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout)


if __name__ == "__main__":
    prepared = importlib.import_module(f"bench.{sys.argv[1]}").first_call(*sys.argv[2:])
    print(growth(prepared))
