"""The benchmarks' fixtures and options: the bandwidth reader, a progress bar, and the rows."""

from __future__ import annotations

import gc
import time
from pathlib import Path
from typing import Any

import pytest

from bench import harness, tables

FILES = {
    pytest.ExitCode.OK: "cpu.jsonl",
    pytest.ExitCode.INTERRUPTED: "interrupted-cpu.jsonl",
}
ROWS = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("emp_kernels")
    group.addoption(
        "--rows",
        type=Path,
        metavar="FOLDER",
        help="write FOLDER/cpu.jsonl with a row for each case of this run (default: write no file)",
    )
    group.addoption(
        "--quick", action="store_true", help="three rounds a case, to see whether it runs"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


class Bar:
    """Replaces pytest's dots on a terminal: number of finished cases, and estimated time left."""

    WIDTH = 24

    def __init__(self, reporter: Any, cases: int) -> None:
        self.reporter, self.cases, self.done = reporter, cases, 0
        self.start = time.monotonic()

    def pytest_report_teststatus(self, report: pytest.TestReport) -> tuple[str, str, str] | None:
        counted = report.outcome if report.when == "call" else ""
        return (counted, "", "") if report.passed else None

    def pytest_runtest_logfinish(self) -> None:
        self.done += 1
        left = (time.monotonic() - self.start) * (self.cases - self.done) / self.done
        minutes, seconds = divmod(round(left), 60)
        filled = self.WIDTH * self.done // self.cases
        bar = "█" * filled + "·" * (self.WIDTH - filled)
        line = f"{bar} {self.done}/{self.cases}, {minutes}:{seconds:02d} left"
        self.reporter.rewrite(line, erase=True)


def pytest_collection_finish(session: pytest.Session) -> None:
    reporter: Any = session.config.pluginmanager.getplugin("terminalreporter")
    if reporter is not None and reporter.isatty and session.items:
        session.config.option.verbose = min(-1, session.config.option.verbose)  # no file names
        session.config.pluginmanager.register(Bar(reporter, len(session.items)))


@pytest.fixture(scope="session")
def reader() -> harness.Reader:
    return harness.Reader()


@pytest.fixture
def case(benchmark, reader, request):
    """A function that measures a case and stores its row: `case(name, ours, opponents, ...)`."""

    def measure(name: str, ours, opponents, *, rounds: int, fields=None, **options) -> None:
        if request.config.getoption("--quick"):
            rounds = 3
        row = {
            "benchmark": Path(request.path).stem.removeprefix("bench_"),
            "case": name,
            **(fields or {}),
            **harness.measure(benchmark, reader, ours, opponents, rounds=rounds, **options),
            **harness.origin(),
        }
        request.config.stash[ROWS].append(row)

    yield measure
    gc.collect()


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Rows are written only if every case was correct; those of an interrupted session go into a
    separate file, which no table reads."""
    folder = session.config.getoption("--rows")
    rows = session.config.stash[ROWS]
    if folder is not None and rows and exitstatus in FILES:
        harness.write_rows(folder / FILES[exitstatus], rows)


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    rows, folder = config.stash[ROWS], config.getoption("--rows")
    if exitstatus == pytest.ExitCode.INTERRUPTED:
        where = f", in {folder / FILES[exitstatus]}" if folder is not None and rows else ""
        terminalreporter.write_line(f"\nstopped: {len(rows)} finished rows{where}")
    if rows:
        terminalreporter.write_line("\n" + tables.cases(rows))
        if any(row["goals"] for row in rows):
            terminalreporter.write_line("\n" + tables.goals(rows))
