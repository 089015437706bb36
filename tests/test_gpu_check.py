"""`make gpu-check` where there is no GPU, the rows that it writes, and how it words verdicts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from bench import harness  # noqa: E402
from bench.gpu import check, peers, timing  # noqa: E402


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("module", ["bench.gpu.check", "bench.gpu.run"])
def test_without_a_gpu_it_says_so(module, tmp_path):
    rows = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", module, str(rows)]
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
    assert row["peers"]["other"]["ratio"] == pytest.approx(2.0)
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
