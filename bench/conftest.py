"""The benchmarks' fixtures: the reader, and the rows that a session writes at its end."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest

from bench import harness, tables

ROWS = pytest.StashKey[list[dict[str, Any]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("emp_kernels")
    group.addoption(
        "--rows",
        type=Path,
        metavar="FOLDER",
        help="write FOLDER/cpu.jsonl with a row for each case of this session (default: nowhere)",
    )
    group.addoption(
        "--quick", action="store_true", help="three rounds a case: whether it runs, not how fast"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = []


@pytest.fixture(scope="session")
def reader() -> harness.Reader:
    return harness.Reader()


@pytest.fixture
def case(benchmark, reader, request):
    """A function that measures one case and keeps its row: `case(name, ours, opponents, ...)`."""

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
    """Rows are written only when every case was right."""
    folder = session.config.getoption("--rows")
    rows = session.config.stash[ROWS]
    if folder is not None and rows and exitstatus == pytest.ExitCode.OK:
        harness.write_rows(folder / "cpu.jsonl", rows)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash[ROWS]
    if rows:
        terminalreporter.write_line("\n" + tables.cases(rows))
        if any(row["goals"] for row in rows):
            terminalreporter.write_line("\n" + tables.goals(rows))
