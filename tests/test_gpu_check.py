"""`make gpu-check` without a GPU, the rows that it writes, and its verdicts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench import harness, readme_tables, tables  # noqa: E402
from bench.gpu import cases, check, peers, run, timing  # noqa: E402
from emp_kernels import backends  # noqa: E402


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("module", ["bench.gpu.check", "bench.gpu.run"])
def test_without_a_gpu_it_says_so(module, tmp_path):
    rows = tmp_path / "rows.jsonl"
    takes = {"bench.gpu.check": ["60"], "bench.gpu.run": [str(rows), "60"]}
    command = [sys.executable, "-m", module, *takes[module]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "no CUDA GPU here" in done.stdout
    assert not rows.exists()


def test_row(tmp_path):
    row = timing.row(
        "case", [2e-3, 1e-3, 3e-3], moved=4 * 10**9, copy=4e12, peers={"other": [4e-3, 4e-3, 3e-3]},
        not_measured={"third": "not installed"}, goals={"share": (0.85, 0.95), "other": (2.0, 3.0)},
        fields={"n": 7},
    )  # fmt: skip
    assert row["seconds"]["median"] == 2e-3
    assert row["gb_per_s"] == pytest.approx(2000)
    assert row["share"] == pytest.approx(0.5)
    assert row["opponents"]["other"]["ratio"] == pytest.approx(2.0)
    assert row["goals"]["share"] == {"required": 0.85, "stretch": 0.95, "measured": row["share"]}
    assert row["goals"]["other"]["measured"] == pytest.approx(2.0)
    assert {"machine", "versions", "commit", "date"} <= set(row)
    file = tmp_path / "rows.jsonl"
    harness.write_rows(file, [row, row])
    assert harness.read_rows(file) == [json.loads(json.dumps(row))] * 2
    text = timing.line(row)
    assert "2000.0 us" in text
    assert "other 2.00x" in text
    assert "third: not measured (not installed)" in text


def test_a_goal_without_its_peer_is_not_measured():
    row = timing.row("case", [1.0], goals={"torch.compile": (2.0, 3.0)})
    assert row["goals"]["torch.compile"]["measured"] is None


def test_steps_that_fail_or_take_too_long(capsys):
    report = check.Report()
    assert report.run("good", [sys.executable, "-c", ""], 60)
    assert not report.run("bad", [sys.executable, "-c", "raise SystemExit(3)"], 60)
    assert not report.run("slow", [sys.executable, "-c", "import time; time.sleep(60)"], 6)
    report.deadline = 0.0
    assert not report.run("late", [sys.executable, "-c", ""], 60)
    results = [step["result"] for step in report.steps]
    assert results == [
        "passed", "failed with status 3", "stopped after 6 s", "not measured (no time left)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "output", "want"),
    [
        (0, "========= ERROR SUMMARY: 0 errors", "passed"),
        (9, "========= ERROR SUMMARY: 2 errors", "failed: ERROR SUMMARY: 2 errors"),
        (9, "========= Error: Device not supported\n= ERROR SUMMARY: 1 error", "not measured"),
        (1, "Traceback: RuntimeError: CUDA error 999", "not measured"),
    ],
)
def test_verdicts_of_the_sanitizer(code, output, want):
    assert check.verdict(code, output).startswith(want)


def test_peers_that_are_not_there(monkeypatch):
    def absent(logits, labels, count):
        raise ImportError

    def broken(logits, labels, count):
        return lambda: 1 / 0

    monkeypatch.setattr(peers, "SCORING", {"absent": absent, "broken": broken})
    calls, missing = peers.made(["absent", "broken"], torch.randn(2, 3), torch.zeros(2).long(), 1)
    assert not calls
    assert missing == {"absent": "not installed", "broken": "ZeroDivisionError: division by zero"}


# The cases and their order


def test_ours_is_measured_before_anything_waits_for_slow_peers():
    plan = run.plan()
    slow = [bool(set(case.peers) - set(peers.AT_ONCE)) for case in plan]
    assert slow == sorted(slow)
    first = [case.name for case, late in zip(plan, slow, strict=True) if not late]
    again = [case.name for case, late in zip(plan, slow, strict=True) if late]
    assert len(set(first)) == len(first)
    assert again == first[: len(again)]
    kinds = ("128256 bfloat16", "1000 bfloat16", "32000 float32", "32000 bfloat16")
    assert again == [f"score_and_select C={kind}" for kind in kinds]
    assert set(plan[-1].peers) == set(peers.SCORING)


def fake(name, seconds, beside=()):
    """A case that took what is said, or raises it."""

    def measure(copy):
        if isinstance(seconds, Exception):
            raise seconds
        times = {peer: [2 * seconds] for peer in beside}
        return timing.row(name, [seconds], moved=10**9, copy=copy, peers=times)

    return cases.Case(name, measure, beside)


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    monkeypatch.setattr(timing, "copy_bandwidth", lambda: 4e12)
    monkeypatch.setattr(timing, "origin", dict)


def test_a_later_row_replaces_its_case_and_failures_stop_nothing(
    on_a_gpu, monkeypatch, tmp_path, capsys
):
    plan = [
        fake("a", 1.0), fake("b", backends.Unavailable("no compiler")), fake("c", 3.0),
        fake("d", AssertionError("wrong")), fake("a", 1.5, ("slow",)),
        fake("c", RuntimeError("no memory"), ("slow",)),
    ]  # fmt: skip
    monkeypatch.setattr(run, "plan", lambda: plan)
    assert run.main(str(tmp_path / "rows.jsonl")) == 1
    rows = harness.read_rows(tmp_path / "rows.jsonl")
    found = [(row["case"], row["seconds"]["median"], list(row["opponents"])) for row in rows]
    assert found == [("a", 1.5, ["slow"]), ("c", 3.0, [])]
    said = capsys.readouterr().out
    assert "b: not measured (no compiler)" in said
    assert "d: failed" in said
    assert "c, against slow: failed" in said
    assert "slow 2.00x  [0.0 s]" in said


def test_what_the_time_does_not_allow_is_not_measured(on_a_gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(run, "plan", lambda: [fake("a", 1.0, ("slow",))])
    assert run.main(str(tmp_path / "rows.jsonl"), -1.0) == 0
    assert "a, against slow: not measured (no time left)" in capsys.readouterr().out
    assert not (tmp_path / "rows.jsonl").exists()


# The README's table


@pytest.fixture
def rows(monkeypatch):
    """Made-up rows of one run."""
    origin = timing.origin() | {"device": "a GPU", "commit": "ab" * 20}
    monkeypatch.setattr(timing, "origin", lambda: origin)
    return [
        timing.row(
            "score_and_select C=1000 bfloat16", [4e-4] * 3, moved=10**9, copy=4e12,
            peers={"torch": [2e-2] * 3, "Liger cross-entropy": [3e-4] * 3},
            not_measured={"verl": "not installed"}, fields={"peer_versions": {"trl": "1.2"}},
        ),
        timing.row("score_and_select 256×1000 float32, host", [1.234e-5]),
        timing.row(
            "select 0.3 of 1e+08, cuda", [1e-3], moved=10**9, copy=4e12,
            peers={"topk + sort": [5e-2]},
        ),
    ]  # fmt: skip


def test_table(rows):
    text = tables.gpu(rows, "folder")
    assert (
        "| score_and_select | µs | GB/s | share of copy bandwidth "
        "| × torch | × verl | × Liger cross-entropy |"
    ) in text
    assert (
        "| score_and_select C=1000 bfloat16 | 400 | 2500 | 0.62 | 50.00× | not measured | 0.75× |"
    ) in text
    assert "| score_and_select 256×1000 float32, host | 12.3 | – | – | – | – | – |" in text
    assert "\n\nNot measured: verl: not installed.\n\n" in text
    assert "| select | µs | GB/s | share of copy bandwidth | × topk + sort |" in text
    assert "| select 0.3 of 1e+08, cuda | 1000 | 1000 | 0.25 | 50.00× |" in text
    last = text.splitlines()[-1]
    assert last.startswith("a GPU; copies at 4000 GB/s; emp_kernels ")
    assert last.endswith(f", trl 1.2; commit {'ab' * 6}.")


def test_the_readme_takes_the_table_from_its_rows(rows, tmp_path, monkeypatch):
    monkeypatch.setattr(readme_tables, "ROOT", tmp_path)
    block = "<!-- table gpu results/gpu.jsonl -->\n{}\n<!-- end -->"
    assert readme_tables.rewritten(block.format("old")) == block.format("Not measured.")
    harness.write_rows(tmp_path / "results/gpu.jsonl", rows)
    table = tables.gpu(rows, "results")
    assert readme_tables.rewritten(block.format("old")) == block.format(table)


def test_rows_of_two_devices_make_no_table(rows):
    rows[-1] = rows[-1] | {"device": "another GPU"}
    with pytest.raises(ValueError, match="one device"):
        tables.gpu(rows, "folder")


def test_every_peer_has_a_column():
    assert set(peers.SCORING) <= set(tables.OPPONENTS)
    calls, missing = peers.select_peers(torch.randn(9), 3)
    assert {*calls, *missing} <= set(tables.OPPONENTS)
