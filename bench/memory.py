"""By how much a process grows: `python -m bench.memory MODULE ARGUMENT...` prints it for the call
that `bench.MODULE.first_call(ARGUMENT...)` prepares."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import harness

MOST = 64 * 2**20  # bytes: what the calls that hold no matrix may take


def growth(call: Callable[[], Any]) -> int:
    """Bytes by which this process's resident memory is larger during `call`, at most, than before:
    tiles, results, and what libraries take for themselves and the allocator keeps. Linux only."""

    def resident(name: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    call()
    return resident("VmHWM") - before


def of_a_first_call(module: str, *arguments: str | int) -> int | None:
    """`growth` of that call in a process of its own, which has made no other; None elsewhere than
    on Linux."""
    if sys.platform != "linux":
        return None
    command = [sys.executable, "-m", "bench.memory", module, *map(str, arguments)]
    done = subprocess.run(command, cwd=harness.ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout)


if __name__ == "__main__":
    prepared = importlib.import_module(f"bench.{sys.argv[1]}").first_call(*sys.argv[2:])
    print(growth(prepared))
