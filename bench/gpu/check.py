"""``make gpu-check``: all that needs a GPU, in one command, offline, in under eleven minutes.

Builds the native modules if the tools are installed, then runs, most useful first: the tests that
have not run on a GPU yet, all GPU tests, the benchmarks (our cases first, then those with slow
peers), compute-sanitizer on a small run, and the host time of a call. Rows are written to
bench/results/<date>-<device>/gpu.jsonl, the results of the steps to gpu-check.json next to them,
and the README's table is regenerated from the rows. Without a GPU it only prints a message.
`python -m bench.gpu.check 300` takes at most 300 seconds; steps that do not fit are not measured.

``make gpu-rehearsal`` runs every step's command on a machine without a GPU, as far as it gets: a
wrong path or name is found there, not in the minutes of a rented GPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench import harness
from bench.gpu import timing
from emp_kernels.experiments import provenance

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = 640.0  # seconds for all steps
# Tests of what changed since the last run on a GPU; they also run with all others.
NEW = ("test_gpu_invariance.py", "test_gpu_streams.py", "test_gpu_selection.py")
MODULE = (sys.executable, "-m")
PATHS = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(PATHS)}


class Report:
    """Runs the steps within the time allowed, and keeps their results."""

    def __init__(self, allowed: float = ALLOWED, patience: float = 1.0) -> None:
        self.patience = patience  # factor of each step's time limit
        self.deadline = time.monotonic() + allowed
        self.steps: list[dict[str, object]] = []

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def note(self, step: str, result: str, seconds: float = 0.0) -> None:
        self.steps.append({"step": step, "result": result, "seconds": round(seconds, 1)})
        print(f"gpu-check: {step}: {result} ({seconds:.0f} s)", flush=True)

    def run(self, step: str, command: Sequence[str], limit: float) -> bool:
        """Whether the command succeeded in time; its output goes to the terminal."""
        start = time.monotonic()
        limit = min(limit * self.patience, self.left())
        if limit < 5:
            self.note(step, "not measured (no time left)")
            return False
        try:
            code = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            self.note(step, f"stopped after {limit:.0f} s", time.monotonic() - start)
            return False
        result = "passed" if code == 0 else f"failed with status {code}"
        self.note(step, result, time.monotonic() - start)
        return code == 0


def build(report: Report) -> None:
    """Build the native modules in place if the tools are installed, without a network."""
    missing = [name for name in ("pybind11", "setuptools") if not importlib.util.find_spec(name)]
    missing += [name for name in ("cmake", "ninja", "nvcc") if not shutil.which(name)]
    if missing:
        report.note("build", f"not measured ({', '.join(missing)} not installed)")
        return
    report.run("build", [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], 150)


def sanitize(report: Report) -> None:
    """Run compute-sanitizer; that it cannot run on this machine is not a failure."""
    tool = shutil.which("compute-sanitizer")
    for check in ("memcheck", "racecheck"):
        step = f"compute-sanitizer {check}"
        if tool is None:
            report.note(step, "not measured (not installed)")
            continue
        command = [tool, "--tool", check, "--error-exitcode", "9"]
        command += [sys.executable, "-m", "bench.gpu.sanitized"]
        limit = min(75.0, report.left())
        start = time.monotonic()
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=ENVIRONMENT, timeout=limit, capture_output=True, text=True
            )
        except subprocess.TimeoutExpired:
            report.note(step, f"not measured (not finished after {limit:.0f} s)", limit)
            continue
        report.note(step, verdict(done.returncode, done.stdout), time.monotonic() - start)


def verdict(code: int, output: str) -> str:
    """Result of compute-sanitizer: status 9 means that it found errors, any other failure that it
    or the program could not run on this machine."""
    summary = [line.strip("= \n") for line in output.splitlines() if "SUMMARY" in line]
    if code == 0:
        return "passed"
    if code == 9 and summary and "Device not supported" not in output:
        return f"failed: {summary[-1]}"
    reason = next((line.strip("= \n") for line in output.splitlines() if "rror" in line), "")
    return f"not measured ({reason or f'status {code}'})"


def test(report: Report, step: str, paths: Sequence[str], limit: float) -> None:
    """Run GPU tests, in several processes if xdist is installed: most time is compilation."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(8, provenance.usable_cpus()))]
    report.run(step, command, limit)


def steps(report: Report, rows: Path) -> None:
    """Run all steps, the most useful first; rows are written after each case."""
    build(report)
    test(report, "new tests", [f"tests/gpu/{name}" for name in NEW], 120)
    test(report, "tests", ["tests/gpu"], 150)
    spare = max(0.0, min(240.0, report.left() - 100))
    command = [sys.executable, "-m", "bench.gpu.run", str(rows), f"{spare:.0f}"]
    report.run("benchmarks", command, spare + 20)
    sanitize(report)
    host = str(rows.with_name("gpu-host.jsonl"))
    report.run("host, with a stub driver", [*MODULE, "bench.gpu.host", host], 40)


def rehearse() -> int:
    """Run every step's command without a GPU, on a machine that may be busy; keep no results."""
    report = Report(3600.0, patience=4.0)
    with tempfile.TemporaryDirectory() as folder:
        steps(report, Path(folder, "gpu.jsonl"))
    report.run("program for compute-sanitizer", [*MODULE, "bench.gpu.sanitized"], 60)
    return _failed(report)


def _failed(report: Report) -> int:
    return int(any(str(step["result"]).startswith(("failed", "stopped")) for step in report.steps))


def main(allowed: float = ALLOWED) -> int:
    if not torch.cuda.is_available():
        print("gpu-check: no CUDA GPU here: nothing was run or measured")
        return 0
    report = Report(allowed)
    rows = harness.results_folder(torch.cuda.get_device_name()) / "gpu.jsonl"
    steps(report, rows)
    results = {"steps": report.steps} | timing.origin()
    rows.parent.mkdir(parents=True, exist_ok=True)
    rows.with_name("gpu-check.json").write_text(json.dumps(results, indent=1) + "\n")
    folder = str(rows.parent.relative_to(ROOT))
    if rows.exists():
        for module in (("bench.readme_tables", folder), ("bench.overview",)):
            command = [sys.executable, "-m", *module]
            subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, check=False)
    print(f"gpu-check: rows are in {folder}")
    return _failed(report)


if __name__ == "__main__":
    sys.exit(rehearse() if sys.argv[1:] == ["rehearsal"] else main(*map(float, sys.argv[1:])))
