"""Benchmarks: the fields of a row, the committed rows, and the tables and plots made from them."""

import importlib.util
import json
import math
import re
import types
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench import bench_tokens, bench_training, draw, grown, harness, peers, roofline, tables

COMMITTED = sorted(harness.RESULTS.glob("*/cpu.jsonl"))
COMMITTED_OF_GPUS = sorted(harness.RESULTS.glob("*/gpu.jsonl"))
GOALS = {  # issues 3 and 5 of the project: case, against, required, stretch
    ("score_and_select 65536×1000 float32", "torch.compile", 3.5, 5),
    ("score_and_select 65536×1000 float32", "share", 0.75, 0.95),
    ("score_and_select 8192×32000 float32", "torch.compile", 4.4, 5),
    ("score_and_select 8192×32000 float32", "share", 0.9, 0.97),
    ("score_and_select 8192×32000 bfloat16", "torch.compile", 5.4, 8),
    ("score_and_select 8192×32000 bfloat16", "share", 0.55, 0.85),
    ("score_and_select 1024×128256 bfloat16", "torch.compile", 6, 8),
    ("score_and_select 1024×128256 bfloat16", "share", 0.6, 0.85),
    ("score_and_select 256×10 float32", "torch.compile", 4, 8),
    ("score_contrastive infonce 16384×128, hidden 512", "torch dense", 2, 4),
    ("select 0.3 of 1e+06", "topk + sort", 16, 25),
    ("select 0.3 of 1e+06", "floor", 6, 3),
    ("select 0.3 of 1e+07", "topk + sort", 25, 40),
    ("select 0.3 of 1e+07", "floor", 6, 2.5),
    ("select 0.3 of 5e+07", "topk + sort", 25, 40),
    ("select 0.3 of 5e+07", "floor", 6, 2.5),
    ("train step, CNN, 128×3×16×16", "torch", 1 / 1.01, None),
    ("cross_entropy and gradient 8192×32000 float32", "torch", 2, 3),
    ("epoch's selection, 0.3 of 1.3e+06", "topk + sort", 5, 15),
    ("epoch's selection, 0.3 of 1.3e+06", "InfoBatch", 10, None),
    ("epoch's order, 0.3 of 1.3e+06", "select", 0.5, None),
    # issue 6: within 1.1 of torch's product and our score; below the product alone
    ("score_linear 128×1024×128256 float32", "matmul, score", 1 / 1.1, 1.0),
    ("score_linear 128×1024×128256 float32", "matmul", 0.9, 1.0),
    ("score_linear 256×1024×128256 bfloat16", "matmul, score", 1 / 1.1, 1.0),
    ("score_linear 256×1024×128256 bfloat16", "matmul", 0.9, 1.0),
}


GPU_GOALS = {  # of every row that is aimed at: against, required, stretch
    ("share", 0.85, 0.95),
    ("torch.compile", 2, 3),
    ("Liger cross-entropy", 1.1, 1.5),
    ("microseconds", 8, 4),
    ("microseconds", 25, 12),
    ("topk + sort", 10, 20),
    ("floor", 2.5, 1.5),
}


class Clock:
    """A clock that advances only inside `work`, so that every figure of a row is known."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(harness.time, "perf_counter", lambda: self.now)

    def work(self, *seconds):
        """A call that takes these times in turn, repeating the last one."""
        left = list(seconds)

        def call():
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


class Benchmark:
    """pytest-benchmark's fixture as far as a case uses it."""

    def __init__(self, clock):
        self.clock = clock
        self.stats = types.SimpleNamespace(stats=types.SimpleNamespace(data=[]))

    def pedantic(self, target, setup, rounds):
        for _ in range(rounds):
            setup()
            start = self.clock.now
            target()
            self.stats.stats.data.append(self.clock.now - start)


def measured(clock, ours, opponents, moved, **options):
    reader = types.SimpleNamespace(read=lambda seconds: read(clock, seconds))

    def read(clock, seconds):
        seconds.setdefault("slow", []).append(harness.timed(clock.work(0.5)))
        seconds.setdefault("fast", []).append(harness.timed(clock.work(0.25)))

    return harness.measure(Benchmark(clock), reader, ours, opponents, moved=moved, **options)


def row_of(clock, benchmark, case, **fields):
    """A whole row: ours 0.5 s, all that a benchmark names three times that."""
    names = {"pruning": tables.OPPONENTS[:3], "selection": ("topk + sort", "argpartition + sort")}
    names["tokens"] = ("torch.compile", "TRL")
    names |= {"gathering": ("index_select", "numpy"), "training": ("InfoBatch", "select")}
    names["linear"] = ("matmul, score", "matmul")
    names["contrastive"] = ("torch dense",)
    opponents = {name: clock.work(1.5) for name in names.get(benchmark, ())}
    found = measured(clock, clock.work(0.5), opponents, 2**28, rounds=5)
    return {"benchmark": benchmark, "case": case, **fields, **found, **harness.origin()}


def check(row):
    """A row's figures are consistent, and it names its origin."""
    assert row["benchmark"] in tables.BENCHMARKS
    for seconds in (row["seconds"], *(o["seconds"] for o in row["opponents"].values())):
        assert 0 < seconds["p20"] <= seconds["median"] <= seconds["p80"]
    rate = row["bytes"] / row["seconds"]["median"] / 1e9
    assert math.isclose(row["gb_per_s"], rate, rel_tol=1e-9)
    assert row["read"]["way"]
    assert 0.4 < row["share"] / (rate / row["read"]["gb_per_s"]) < 2.5  # medians of other things
    few = row["seconds"]["median"] > 2  # a call of seconds: two rounds have to do
    assert row["rounds"] >= (2 if few else 9)
    for opponent in row["opponents"].values():
        assert opponent["rounds"] >= (2 if few else harness.FEWEST)
        assert opponent["ratio"] > 0
    for name, goal in row["goals"].items():
        ratios = {key: found["ratio"] for key, found in row["opponents"].items()}
        ratios |= {"share": row["share"], "floor": 1 / row["share"]}
        assert goal["measured"] == ratios[name]
    assert row["threads"] >= 1
    assert row["simd"] in ("avx512", "avx2", "portable")
    assert set(row["machine"]) == {"cpu", "cpus", "system", "gpus", "memory_gib"}
    assert {"python", "torch", "numpy", "emp_kernels"} <= set(row["versions"])
    assert re.fullmatch(r"[0-9a-f]{40}", row["commit"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"])


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.parent.name)
def test_committed_rows(file):
    rows = harness.read_rows(file)
    for row in rows:
        check(row)
    assert len({row["case"] for row in rows}) == len(rows)
    measured_by = {row["benchmark"] for row in rows}
    assert measured_by <= set(tables.BENCHMARKS)
    assert set(tables.BENCHMARKS) - measured_by <= {"options"}  # younger than the oldest rows
    found = {
        (row["case"], name, goal["required"], goal["stretch"])
        for row in rows
        for name, goal in row["goals"].items()
    }
    assert found >= GOALS
    dtypes = {"float32", "bfloat16", "float16"}
    assert {row["dtype"] for row in rows if row["benchmark"] == "limits"} == dtypes
    for row in rows:
        if row["benchmark"] == "tokens":
            assert set(peers.TOKENS) <= set(row["opponents"]) | set(row["not_measured"])
            assert set(row["errors"]) == {"emp_kernels", *row["opponents"]}
            assert max(row["errors"]["emp_kernels"]["plain"]) <= 1e-5
    for benchmark, _, _, series in grown.PANELS:
        for quantity, start, _ in series:
            for line in grown.lines_of(rows, benchmark, [(quantity, start, "")]):
                sizes = [size for size, _ in line.points]
                assert min(sizes) == 1000
                assert max(sizes) >= 10 * start
    logits = [row["size"] for row in rows if row.get("growth") == "N·C"]
    assert max(logits) > 2**31


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: file.parent.name)
def test_committed_tables_and_plots_stand_beside_their_rows(file):
    text = draw.page(harness.read_rows(file))
    assert (file.parent / "cpu.md").read_text(encoding="utf-8") == text
    for name in draw.FIGURES:
        assert (file.parent / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def check_gpu(row):
    """Figures are consistent, and every goal was measured or has a reason for being missing."""
    for seconds in (row["seconds"], *(o["seconds"] for o in row["opponents"].values())):
        assert 0 < seconds["p20"] <= seconds["median"] <= seconds["p80"]
    measured = {name: found["ratio"] for name, found in row["opponents"].items()}
    measured["microseconds"] = row["seconds"]["median"] * 1e6
    if "share" in row:
        rate = row["bytes"] / row["seconds"]["median"] / 1e9
        assert math.isclose(row["gb_per_s"], rate, rel_tol=1e-9)
        assert math.isclose(row["share"], rate / row["copy_gb_per_s"], rel_tol=1e-9)
        measured |= {"share": row["share"], "floor": 1 / row["share"]}
    for name, goal in row["goals"].items():
        if name in row["not_measured"]:
            assert goal["measured"] is None
        else:
            assert goal["measured"] == pytest.approx(measured[name])
    assert row["device"] in row["machine"]["gpus"]
    assert {"python", "torch", "triton", "emp_kernels"} <= set(row["versions"])
    assert re.fullmatch(r"[0-9a-f]{40}", row["commit"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", row["date"])


@pytest.mark.parametrize("file", COMMITTED_OF_GPUS, ids=lambda file: file.parent.name)
def test_committed_rows_of_gpus(file):
    rows = harness.read_rows(file)
    for row in rows:
        check_gpu(row)
    assert len({row["case"] for row in rows}) == len(rows)
    for start, own in {
        "score_and_select C=": ["share"],
        "score_and_select 256×1000": ["microseconds"],
        "select": ["floor", "topk + sort"],
    }.items():
        found = [set(row["goals"]) for row in rows if row["case"].startswith(start)]
        assert found
        assert all(goals >= set(own) for goals in found)
    aims = {
        (name, goal["required"], goal["stretch"])
        for row in rows
        for name, goal in row["goals"].items()
    }
    assert aims <= GPU_GOALS


def test_ratios_and_shares_are_medians_of_paired_rounds(monkeypatch):
    """The first time of each competitor and the first two of ours are warm-up."""
    clock = Clock(monkeypatch)
    found = measured(
        clock,
        clock.work(9, 9, 1, 2, 4),
        {"other": clock.work(9, 3, 2, 20), "slow": clock.work(100)},
        moved=2**28,
        rounds=3,
        goals={"other": (2, 4), "share": (0.1, None)},
    )
    assert found["seconds"] == {"median": 2, "p20": pytest.approx(1.4), "p80": pytest.approx(3.2)}
    assert found["opponents"]["other"]["ratio"] == 3  # of 3/1, 2/2 and 20/4
    assert found["opponents"]["other"]["seconds"]["median"] == 3
    assert found["opponents"]["slow"]["rounds"] == harness.FEWEST
    assert found["read"] == {"gb_per_s": harness.READ_BYTES / 0.25 / 1e9, "way": "fast"}
    assert found["share"] == pytest.approx(2**28 / 2 / (harness.READ_BYTES / 0.25))
    assert found["goals"]["other"] == {"required": 2, "stretch": 4, "measured": 3}
    assert found["goals"]["share"]["measured"] == found["share"]


@pytest.mark.parametrize("rounds", [1, 4, 5])
def test_ours_comes_first_in_every_second_round(monkeypatch, rounds):
    clock, order = Clock(monkeypatch), []

    def call(name):
        work = clock.work(1)
        return lambda: (order.append(name), work())

    found = measured(clock, call("ours"), {"other": call("other")}, 2**28, rounds=rounds)
    assert found["opponents"]["other"]["rounds"] == rounds
    pairs = [("other", "ours"), ("ours", "other")]
    timed = order[len(order) - 2 * rounds :]
    assert timed == [name for i in range(rounds) for name in pairs[i % 2]]


def test_the_interval_holds_the_median_of_paired_rounds():
    """About 95 of 100 intervals contain the true median, for 400 normal samples."""
    random = np.random.default_rng(0)
    held = 0
    for sample in random.standard_normal((400, 101)):
        found = harness.ratio_of_rounds(sample.tolist())
        assert found["ratio_low"] < found["ratio"] < found["ratio_high"]
        assert found["ratio_p20"] < found["ratio_low"]
        assert found["ratio_high"] < found["ratio_p80"]
        held += found["ratio_low"] <= 0 <= found["ratio_high"]
    assert 0.92 <= held / 400 <= 0.98
    few = harness.ratio_of_rounds([3, 1, 2])
    assert (few["ratio_low"], few["ratio"], few["ratio_high"]) == (1, 2, 3)


@pytest.fixture
def session():
    """The module of the benchmarks' hooks, distinct from this folder's conftest."""
    spec = importlib.util.spec_from_file_location(
        "bench_session", Path(harness.__file__).with_name("conftest.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("status", "written"),
    [
        (pytest.ExitCode.OK, {"cpu.jsonl"}),
        (pytest.ExitCode.INTERRUPTED, {"interrupted-cpu.jsonl"}),
        (pytest.ExitCode.TESTS_FAILED, set()),
    ],
)
def test_what_an_interrupted_session_finished_is_kept_apart(session, status, written, tmp_path):
    done = [{"case": "a"}, {"case": "b"}]
    config = SimpleNamespace(stash={session.ROWS: done}, getoption=lambda name: tmp_path)
    session.pytest_sessionfinish(SimpleNamespace(config=config), status)
    assert {path.name for path in tmp_path.iterdir()} == written
    for name in written:
        assert harness.read_rows(tmp_path / name) == done


def test_the_bar_says_how_far_the_session_is(session, monkeypatch):
    now = iter([0.0, 10.0, 20.0, 90.0])
    monkeypatch.setattr(session.time, "monotonic", lambda: next(now))
    lines = []
    reporter = SimpleNamespace(rewrite=lambda line, erase: lines.append(line))
    bar = session.Bar(reporter, 3)
    for _ in range(3):
        bar.pytest_runtest_logfinish()
    assert [line.split(" ", 1)[1] for line in lines] == [
        "1/3, 0:20 left",
        "2/3, 0:10 left",
        "3/3, 0:00 left",
    ]
    assert [line.count("█") for line in lines] == [8, 16, 24]


def test_many_calls_a_round_are_divided(monkeypatch):
    clock = Clock(monkeypatch)
    opponents = {"other": clock.work(0.02)}
    found = measured(clock, clock.work(0.01), opponents, 100, rounds=4, calls=8)
    assert found["seconds"]["median"] == pytest.approx(0.01)
    assert found["opponents"]["other"]["ratio"] == pytest.approx(2)
    assert found["gb_per_s"] == pytest.approx(1e-5)


def test_wrong_results_are_not_timed():
    scores = torch.tensor([1.0, 3.0, 2.0, 3.0, 2.0])
    harness.check_selection(scores, torch.tensor([1, 2, 3]), 3)
    for wrong in ([1, 3, 4], [0, 1, 3], [1, 2]):  # a later tie, too low a score, too few
        with pytest.raises(AssertionError):
            harness.check_selection(scores, torch.tensor(wrong), 3)
    harness.check_selected_values(scores, torch.tensor([4, 3, 1]), torch.tensor([1, 2, 3]))
    with pytest.raises(AssertionError):
        harness.check_selected_values(scores, torch.tensor([0, 1, 3]), torch.tensor([1, 2, 3]))

    logits, labels = torch.randn(9, 7), torch.randint(0, 7, (9,))
    _, loss, entropy = harness.score_lines(logits, labels)
    harness.check_scores(logits, labels, loss, entropy)
    with pytest.raises(AssertionError):
        harness.check_scores(logits, labels, loss, entropy * (1 + 2e-5))
    with pytest.raises(AssertionError):
        harness.check_scores(logits, labels, loss.roll(1), entropy)


def test_the_lines_that_opponents_run_agree_with_the_package():
    import emp_kernels as emp

    logits, labels = torch.randn(200, 11), torch.randint(0, 11, (200,))
    ours = emp.score_and_select(logits, labels, None, 0.3)
    score, loss, entropy, indices = harness.torch_lines(logits, labels, 60)
    torch.testing.assert_close((score, loss, entropy), ours.scores[:3])
    assert torch.equal(indices, ours.indices)


@pytest.fixture
def rows(monkeypatch):
    """Synthetic rows of every benchmark."""
    clock = Clock(monkeypatch)
    growth = [
        row_of(clock, of, f"growth {name} {size} {dtype}", growth=name, size=size, dtype=dtype)
        for of, name, dtype in (
            *(("scoring", "N·C", "float32"), ("scoring", "N·C", "bfloat16")),
            *(("scoring", "C", "float32"), ("selection", "n", "float32")),
            *(("selection", "K", "float32"), ("gathering", "K", None)),
        )
        for size in (10**3, 10**6, 10**7)
    ]
    for row in growth:  # proportional to the size
        row["seconds"]["median"] = row["size"] * 1e-6
    errors = {"emp_kernels": {"plain": [1e-7, 2e-7], "confident": [3e-7, 4e-7]}}
    errors["TRL"] = {"plain": [5e-3, 2e-2], "confident": [1.0, 5e-2]}
    errors["torch.compile"] = errors["TRL"]
    tokens = {"n": 8, "c": 3, "dtype": "float32", "errors": errors}
    tokens["not_measured"] = {"verl": "No module named 'verl'"}
    tokens["peer_versions"] = {"trl": "1.2"}
    limits = [
        row_of(clock, "limits", "score from cache", n=2**30, c=2, dtype="float32"),
        row_of(clock, "limits", "product", n=2**20, c=2**10, d=8, dtype="float32"),
    ]
    return [
        row_of(clock, "tokens", "log-probability 8×3", **tokens),
        *limits,
        row_of(clock, "pruning", "score_and_select 8×3 float32", n=8, c=3, dtype="float32"),
        *growth,
        row_of(clock, "selection", "select 0.3 of 1e+05", n=10**5),
        row_of(clock, "selection", "select 0.3 of 1e+06", n=10**6),
        row_of(clock, "gathering", "gather rows of 4 B", n=10, row_bytes=[4]),
        row_of(clock, "training", "epoch's order", n=10),
        row_of(
            clock,
            "linear",
            "score_linear 2×3×4",
            n=2,
            d=3,
            c=4,
            dtype="float32",
            peak_bytes=3 << 20,
            logits_bytes=9 << 30,
        ),
        row_of(clock, "contrastive", "score_contrastive infonce 8×2", n=8, c=8, dtype="float32"),
    ]


def test_tables_and_plots_are_made_of_rows_alone(rows, tmp_path):
    pruning = next(row for row in rows if row["benchmark"] == "pruning")
    pruning["goals"] = {
        "torch.compile": {"required": 2, "stretch": 4, "measured": 3.0},
        "floor": {"required": 6, "stretch": 3, "measured": 2.5},
    }
    harness.write_rows(tmp_path / "cpu.jsonl", rows)
    assert harness.read_rows(tmp_path / "cpu.jsonl") == json.loads(json.dumps(rows))
    draw.draw(tmp_path)
    text = (tmp_path / "cpu.md").read_text(encoding="utf-8")
    assert "| torch.compile | 2.00× | 4.00× | 3.00× | required |" in text
    assert "| 6.00× | 3.00× | 2.50× | stretch |" in text
    for name in draw.FIGURES:
        assert (tmp_path / f"{name}.png").stat().st_size > 5000
    block = tables.readme(rows, "folder")
    assert "| score_and_select 8×3 float32 | 500 | 0.5 | 0.25 | 3.00× | 3.00× | 3.00× |" in block
    assert "| epoch's order | 500 | – | – | 3.00× | 3.00× |" in block
    assert "| score_linear 2×3×4 | 500 | 0.5 | 0.25 | 3.00× | 3.00× |" in block
    assert "| score_linear 2×3×4 | 3 | 9216 |" in block
    assert "| log-probability 8×3 | 500 | 0.5 | 0.25 | 3.00× | 3.00× | not measured |" in block
    assert "Not measured: verl: No module named 'verl'." in block
    assert "| TRL | 5e-03 / 2e-02 | 1e+00 / 5e-02 |" in block
    assert "triton" in block
    assert ", trl 1.2;" in block
    assert "growth" not in block.replace("cpu-growth", "")
    assert "(folder/cpu-growth.png)" in block
    assert "(folder/cpu-roofline.png)" in block
    line = "| score_and_select, C = 1000: N·C, bfloat16 | 1.0e+03 | 1.0e+07 | 1.0e+06 | 1.000 |"
    assert line in text
    assert rows[0]["commit"][:12] in block


def test_rows_of_two_runs_make_no_table(rows):
    rows[-1]["commit"] = "0" * 40
    with pytest.raises(ValueError, match="one commit"):
        tables.origin(rows)


def test_the_slope_is_the_exponent_from_where_it_is_fitted():
    points = [(10.0**e, 3 * 10.0 ** (1.5 * e)) for e in range(6, 10)]
    assert grown.slope(points) == pytest.approx(1.5)
    assert grown.Line("", [(10, 5), (10**6, 1), (10**8, 100)], 10**6).slope == pytest.approx(1)


def test_a_point_of_the_roofline_is_below_its_lower_limit(rows):
    """All calls take half a second and move 2^28 bytes; memory is read at 2^31 bytes a second."""
    found = {point.row["case"]: point for point in roofline.points(rows)}
    assert not any(name.startswith(("growth", "product", "score from")) for name in found)
    point = found["score_and_select 8×3 float32"]
    assert point.intensity == 24 / 2**28
    assert point.rate == 24 / 0.5 / 1e9
    assert point.memory == pytest.approx(24 / 2**28 * 2**31 / 1e9)
    assert point.arithmetic == 2**32 / 1e9
    assert point.bound == "memory"
    product = found["score_linear 2×3×4"]
    assert product.arithmetic == pytest.approx(2**34 / 3 / 1e9)
    assert found["select 0.3 of 1e+05"].arithmetic is None
    assert roofline.elements({"n": 10, "row_bytes": [4, 12]}) == 3 * 4
    bound = roofline.Point({}, 1.0, 1.0, 8.0, 2.0)
    assert (bound.roof, bound.bound) == (2.0, "arithmetic")


# Opponents


def test_peers_that_cannot_run_say_why():
    def absent():
        import a_package_that_nobody_has  # noqa: F401

    def renamed():
        from bench.peers import gone  # noqa: F401

    def broken():
        return lambda: 1 / 0

    makers = {"absent": absent, "renamed": renamed, "broken": broken, "there": lambda: lambda: 7}
    calls, missing = peers.made(makers)
    assert {name: call() for name, call in calls.items()} == {"there": 7}
    assert missing == {
        "absent": "No module named 'a_package_that_nobody_has'",
        "renamed": "cannot import name 'gone' from 'bench.peers'",
        "broken": "ZeroDivisionError: division by zero",
    }


def test_errors_of_a_way_are_the_largest_of_plain_and_confident_rows():
    logits = torch.randn(200, 50, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(200) % 50

    def wrong(logits, labels):
        log_p = logits.double().log_softmax(1)
        loss, entropy = -log_p.gather(1, labels[:, None])[:, 0], -(log_p.exp() * log_p).sum(1)
        return lambda: (loss * (1 + 3e-5), entropy * (1 - 2e-5))

    found = bench_tokens.errors(wrong, logits, labels)
    assert found["plain"] == pytest.approx([3e-5, 2e-5], rel=1e-2)
    assert found["confident"] == pytest.approx([3e-5, 2e-5], rel=1e-2)
    assert max(bench_tokens.errors(bench_tokens.ours, logits, labels)["confident"]) < 1e-6
    float32 = bench_tokens.errors(bench_tokens.torch_lines, logits, labels)
    assert max(float32["confident"]) > 1e-4  # nothing near zero is left of a rounded logarithm
    with pytest.raises(AssertionError):
        bench_tokens.errors(lambda z, y: lambda: (2 * wrong(z, y)()[0],), logits, labels)


def test_composer_draws_high_losses_more_often():
    losses = torch.randn(2000, generator=torch.Generator().manual_seed(0))
    bench_training.check_composer(losses, 0.3)
    random = np.random.RandomState(0)
    taken = torch.zeros(2000)
    for _ in range(400):
        taken[bench_training.composer_lines(losses, random, 0.01)] += 1
    halves = taken[losses.argsort()].view(2, -1).sum(1)
    assert halves[0] < 0.01 * halves[1]  # (1/2)^100 of them, without replacement a few


def test_infobatch_keeps_the_hard_and_weighs_the_rest():
    losses = np.random.RandomState(1).exponential(size=1000).astype(np.float32)
    bench_training.check_infobatch(losses)
    ids, weights = bench_training.infobatch_lines(losses, np.random.RandomState(0), pruned=0.75)
    easy = losses < losses.mean()
    assert len(ids) == (~easy).sum() + easy.sum() // 4
    assert set(weights[ids[easy[ids]]]) == {4.0}
    assert set(weights[ids[~easy[ids]]]) == {1.0}
    order = bench_training.infobatch_order(losses, np.random.RandomState(0))
    assert len(set(order)) == len(order) == (~easy).sum() + easy.sum() // 2
    assert order != sorted(order)
