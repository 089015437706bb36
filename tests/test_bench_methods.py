"""The comparison of pruning methods: each method against its definition, rows, tables, resuming."""

import dataclasses
import itertools
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch

import emp_kernels as emp
from bench import harness, readme_tables
from bench.methods import cells, choosing, networks, plan, report, signals, time_to_accuracy, trial
from bench.methods.choosing import PER_BATCH
from emp_kernels.experiments import images, methods, training
from emp_kernels.experiments.networks import small_cnn

ROOT = Path(__file__).resolve().parents[1]
COMMITTED = sorted((ROOT / "bench/results").glob("*/methods-*.jsonl"))
RECIPE = methods.Recipe(epochs=4, batch_size=16)
N, KEEP, KEPT = 90, 0.3, 27
EVERY_METHOD = (*plan.BY_EPOCH, *map(plan.by_batch, plan.BY_BATCH))

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("error::emp_kernels.EMPWarning"),  # a method that scores nothing too
]


def stripes() -> images.Images:
    """Noisy 6x6 images with a bright row that depends on the class; true labels in the test."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % 3
    pixels = torch.randn(N, 1, 6, 6, generator=generator)
    pixels[torch.arange(N), 0, 2 * labels] += 2
    return images.Images("stripes", pixels, labels, pixels, labels, 3, 1, False)


def watched(method, steps: list):
    """`method`, recording for each step the batch and the state's losses before it."""

    class Watched(type(method)):
        def loss(self, logits, batch, state):
            before = state.loss.clone(), state.entropy.clone(), state.score.clone()
            loss = super().loss(logits, batch, state)
            steps.append((batch, logits.detach(), loss.detach(), before, state.score.clone()))
            return loss

    values = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    return Watched(**values)


def ids_of(steps) -> torch.Tensor:
    return torch.cat([batch.ids for batch, *_ in steps])


@pytest.mark.parametrize("method", EVERY_METHOD, ids=lambda m: f"{m.name} {m.beta} {m!r:.9}")
def test_every_method_takes_equal_steps_and_counts_what_it_trains(method):
    steps = []
    done = training.run(watched(method, steps), KEEP, 3, stripes(), RECIPE)
    assert len(steps) == done.steps == RECIPE.steps(N, KEEP) == 12
    trained = torch.bincount(ids_of(steps), minlength=N)
    assert torch.equal(done.state.selections.long(), trained)
    assert done.samples_trained == trained.sum()
    assert torch.equal(ids_of(steps[:6]).sort().values, torch.arange(N))  # all are seen first
    again = training.run(method, KEEP, 3, stripes(), RECIPE)
    assert torch.equal(done.state.selections, again.state.selections)
    assert done.accuracy == again.accuracy


@pytest.mark.parametrize(
    ("method", "formula"),
    [
        (plan.LFL, lambda loss, entropy, el2n: loss),
        (plan.EMP[2], lambda loss, entropy, el2n: loss + 3 * entropy),
        (plan.MINUS, lambda loss, entropy, el2n: loss - entropy),
        (plan.ENTROPY, lambda loss, entropy, el2n: entropy),
        (plan.EL2N, lambda loss, entropy, el2n: el2n),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_stale_ranking_keeps_the_highest_of_its_statistic(method, formula):
    steps = []
    training.run(watched(method, steps), KEEP, 5, stripes(), RECIPE)
    remembered = torch.full((N,), math.nan, dtype=torch.float64)
    for start in (0, 6, 8, 10):
        epoch = steps[start : start + 6] if start == 0 else steps[start : start + 2]
        if start:
            best = remembered.argsort(descending=True, stable=True)[:KEPT]
            assert torch.equal(ids_of(epoch).sort().values, best.sort().values)
        for batch, logits, _, _, after in epoch:
            p = logits.double().softmax(1)
            one_hot = torch.nn.functional.one_hot(batch.labels, 3)
            loss = -p.gather(1, batch.labels[:, None])[:, 0].log()
            values = formula(loss, -(p * p.log()).sum(1), (p - one_hot).norm(dim=1))
            torch.testing.assert_close(after[batch.ids].double(), values, rtol=1e-4, atol=1e-6)
            remembered[batch.ids] = after[batch.ids].double()


@pytest.mark.parametrize(
    ("method", "statistic"),
    [(plan.LFL, "loss"), (plan.EMP[1], "score"), (plan.ENTROPY, "entropy"), (plan.EL2N, "el2n")],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_ranking_per_batch_trains_the_top_of_each_large_batch(monkeypatch, method, statistic):
    seen = []

    def select(scores, count, select=emp.select):
        seen.append((scores, count))
        return select(scores, count)

    monkeypatch.setattr(choosing.emp, "select", select)
    forwards = []

    def network(*arguments):
        model = small_cnn(*arguments)
        model.register_forward_pre_hook(lambda m, x: forwards.append((m.training, len(x[0]))))
        return model

    steps, recipe = [], dataclasses.replace(RECIPE, network=network)
    training.run(watched(plan.by_batch(method), steps), KEEP, 5, stripes(), recipe)
    # 16 / 0.3 = 53 candidates, of which 16 are kept; the 37 left of a pass give 11.
    assert [len(batch.ids) for batch, *_ in steps[6:]] == [16, 11, 16, 11, 16, 11]
    assert forwards[6:-1] == [(False, 53), (True, 16), (False, 37), (True, 11)] * 3
    assert [(len(scores), count) for scores, count in seen] == [(53, 16), (37, 11)] * 3
    assert len(set(ids_of(steps[6:8]).tolist())) == KEPT
    highest = {"entropy": math.log(3), "el2n": math.sqrt(2)}.get(statistic, math.inf)
    for scores, _ in seen:
        assert 0 <= scores.min() < scores.max() <= highest + 1e-5


def test_gumbel_draws_in_proportion_to_the_score():
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])
    draws = torch.Generator().manual_seed(0)
    age, first, second = torch.zeros(5), torch.zeros(5), torch.zeros(5)
    for _ in range(4000):
        keys = plan.GUMBEL.keys(scores, age, 2, draws)
        best, other = keys.argsort(descending=True)[:2]
        first[best] += 1
        if best == 0:
            second[other] += 1
    torch.testing.assert_close(first / 4000, scores / 10, rtol=0, atol=0.03)
    torch.testing.assert_close(
        second / second.sum(), torch.tensor([0, 3, 2, 1, 0]) / 6, rtol=0, atol=0.05
    )


@pytest.mark.parametrize("method", [plan.GUMBEL, plan.HALF_3, plan.AGED], ids=lambda m: m.name)
def test_a_draw_leaves_the_scores_as_they_were(method):
    state = training.run(method, KEEP, 5, stripes(), RECIPE).state
    torch.testing.assert_close(state.score, state.loss + method.beta * state.entropy)


def test_half_random_keeps_the_top_half_and_draws_the_rest_evenly():
    scores = torch.arange(20.0)
    draws = torch.Generator().manual_seed(0)
    taken = torch.zeros(20)
    for _ in range(2000):
        kept = emp.select(plan.HALF.keys(scores, torch.zeros(20), 8, draws), 8)
        taken[kept] += 1
    assert (taken[16:] == 2000).all()
    torch.testing.assert_close(taken[:16] / 2000, torch.full((16,), 0.25), rtol=0, atol=0.05)


def test_ageing_adds_the_score_for_each_epoch():
    keys = plan.AGED.keys(torch.tensor([1.0, 2.0]), torch.tensor([2, 0]), 1, torch.Generator())
    assert keys.tolist() == [3.0, 2.0]


def test_infobatch_trains_the_weighted_mean():
    steps = []
    training.run(watched(plan.INFOBATCH, steps), KEEP, 1, stripes(), RECIPE)
    for batch, logits, loss, _, _ in steps:
        losses = torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")
        torch.testing.assert_close(loss, (batch.weights * losses).mean())
    assert {float(w) for batch, *_ in steps for w in batch.weights} == {1.0, 2.0}


def test_infobatch_prunes_below_the_mean_and_anneals():
    """With given losses, of which two thirds are below the mean."""
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    state = emp.EMPState(N, beta=0.0)
    context = methods.TrainingContext(
        stripes(), KEEP, 0, RECIPE, "cpu", 160, torch.nn.Identity(), state, *generators
    )
    epochs = []  # the batches of each
    state.close_window = lambda: epochs.append([])
    for batch in itertools.islice(plan.INFOBATCH.batches(context), context.steps):
        epochs[-1].append(batch)
        state.loss.fill_(0.1)[60:] = 1.0
    pruned = next(i for i in range(len(epochs)) if sum(map(len, epochs[:i])) >= 140)  # 0.875 of 160
    assert sum(map(len, epochs[:pruned])) == 140

    taken = torch.zeros(N)
    for i, epoch in enumerate(epochs):
        ids, weights = (torch.cat([getattr(b, name) for b in epoch]) for name in ("ids", "weights"))
        assert len(ids.unique()) == len(ids)
        if i in (0, pruned):
            assert torch.equal(ids.sort().values, torch.arange(N))
        if i == 0 or i >= pruned:
            assert (weights == 1).all()
            continue
        assert torch.equal(weights, torch.where(ids < 60, 2.0, 1.0))
        if i < pruned - 1:  # the last is cut short
            assert set(range(60, N)) <= set(ids.tolist())
            taken[ids] += 1
    assert 0.4 < taken[:60].mean() / (pruned - 2) < 0.6
    assert (taken[:60] > 0).all()


def test_full_passes_over_everything():
    done = training.run(plan.FULL, KEEP, 0, stripes(), RECIPE)
    counts = done.state.selections
    assert counts.max() - counts.min() <= 1


# Data


def test_signals_follow_the_recipe(monkeypatch):
    found, labels = signals.signals(1000, 7)
    assert found.shape == (1000, 1, 1, 40)
    assert (torch.bincount(torch.from_numpy(labels)) == 100).all()
    again, _ = signals.signals(1000, 7)
    assert (found == again).all()
    # Without noise, slope and motion, a signal is its template, stretched, then silence.
    for name in ("SCALE", "CORRELATED", "WHITE", "SHEAR"):
        monkeypatch.setattr(signals, name, 0.0)
    monkeypatch.setattr(signals, "TRANSLATION", 1)
    monkeypatch.setattr(signals, "PADDING", (60, 60))
    plain, labels = signals.signals(10, 0)
    for drawn, label in zip(plain[:, 0, 0], labels, strict=True):
        template = signals.TEMPLATES[label]
        template = (template - template[0]) / template.std() / 6
        wanted = np.interp(np.arange(40) * 71 / 39, np.arange(12), template)
        inside = np.arange(40) * 71 / 39 <= 11  # 12 points of 72, of which 40 are read off
        np.testing.assert_allclose(drawn[inside], wanted[inside], atol=1e-6)
        assert abs(drawn[8:]).max() < 1e-6


def test_wrong_labels_are_a_share_and_never_right():
    data = stripes()
    noisy = trial.mislabelled(data, 0.1, 4)
    assert (noisy.train_labels != data.train_labels).sum() == 9
    assert noisy.train_labels.min() >= 0
    assert noisy.train_labels.max() < 3
    assert torch.equal(noisy.test_labels, data.test_labels)
    assert torch.equal(trial.mislabelled(data, 0.1, 4).train_labels, noisy.train_labels)
    assert torch.equal(trial.mislabelled(data, 0.0, 4).train_labels, data.train_labels)


@pytest.mark.parametrize(
    ("network", "shape"),
    [(networks.signal_cnn, (3, 1, 1, 40)), (networks.small_resnet, (3, 3, 16, 16))],
)
def test_networks_depend_on_their_seed_alone(network, shape):
    before = torch.get_rng_state()
    models = [network(shape[1], 10, seed).eval() for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    first, again, other = (model(x) for model in models)
    assert first.shape == (3, 10)
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# What a run trained on


def done_with(selections, method=plan.LFL, keep=0.25) -> training.Run:
    """A finished run of 40 samples whose network returns the image."""
    state = emp.EMPState(40, beta=method.beta)
    state.selections.copy_(torch.as_tensor(selections))
    curve = (training.Point(1, 1.0, 50.0),)
    return training.Run(method, keep, 0, curve, 1, 40, {}, state, torch.nn.Identity())


def test_rarely_trained_samples_are_the_least_selected_tenth():
    labels = torch.arange(40) % 4
    answers = torch.nn.functional.one_hot(labels, 4).float()
    rare = torch.tensor([3, 17, 20, 39])
    answers[rare[:3]] *= -1  # answered wrongly
    answers[[0, 5, 9]] *= -1
    selections = torch.full((40,), 5)
    selections[rare] = 1
    clean = images.Images("answers", answers, labels, answers, labels, 4, 0, False)
    wrong = labels.clone()
    wrong[[3, 0]] = (wrong[[3, 0]] + 1) % 4
    noisy = clean._replace(train_labels=wrong)
    found = trial.frequencies(done_with(selections), clean, noisy)
    assert found["counts"] == [0, 4, 0, 0, 0, 36]
    assert found["rare_accuracy"] == 25
    assert found["other_accuracy"] == pytest.approx(100 * 33 / 36, abs=1e-3)
    assert found["wrong_share"] == pytest.approx(6 / 184, abs=1e-6)


def test_overlap_is_of_pruned_epochs_and_agreement_of_final_scores():
    done = done_with([0] * 40, plan.EMP[1])
    state = done.state
    for ids in (range(40), range(10), range(4, 14), range(4, 14)):  # the warm-up, three epochs
        state.close_window()
        state.selections[list(ids)] += 1
    loss = torch.arange(40.0)
    entropy = torch.zeros(40)
    entropy[:4] = 1000  # four of the top ten by score, none of the top ten by loss
    state.update(torch.arange(40), emp.Scores(loss + entropy, loss, entropy, loss))
    found = trial.selections(done)
    assert found["overlap"] == pytest.approx((0.6 + 1) / 2)
    assert found["chance_overlap"] == 0.25
    assert found["as_by_loss"] == 0.6
    assert trial.selections(done_with([1] * 40))["overlap"] is None


# Plan and command


def test_the_plan_is_the_whole_grid_and_names_each_run_once():
    for data in plan.STUDIES:
        found = [json.dumps(t.key) for t in plan.trials(data)]
        assert len(set(found)) == len(found)
    grid = [t for t in plan.trials("digits") if t.seed == 0]
    assert {(t.keep, t.noise) for t in grid} >= {(k, n) for k in (0.5, 0.3, 0.1) for n in (0, 0.1)}
    betas = {t.method.beta for t in grid if t.method.name == "EMP" and t.protocol == PER_BATCH}
    assert betas == {-1.0, 0.3, 1.0, 3.0, 10.0}
    narrow = [t for t in plan.trials("mnist1d-narrow") if t.keep < 1]
    assert {(t.keep, t.noise, t.protocol) for t in narrow} == {(0.3, 0.0, choosing.STALE)}
    assert {t.method.name for t in plan.trials("cifar100")} >= {
        *("full", "random", "LFL", "InfoBatch", "EMP"),
    }


@pytest.fixture
def tiny(monkeypatch):
    """The command in this process, with stripes instead of the digits and two methods."""
    pytest.importorskip("rich")  # optional package
    from bench.methods import __main__ as command

    monkeypatch.setattr(trial, "load", lambda name, directory: stripes())
    monkeypatch.setitem(plan.STUDIES, "digits", plan.Study(N, RECIPE, 2, evaluations=3))
    monkeypatch.setattr(plan, "BY_EPOCH", (plan.LFL, plan.RANDOM))
    monkeypatch.setattr(plan, "BY_BATCH", (plan.LFL,))

    class Pool:
        def __init__(self, workers, context, initializer, arguments):
            initializer(*arguments)

        def shutdown(self, **options):
            assert options == {"wait": True, "cancel_futures": True}

        def submit(self, call, *arguments):
            future = Future()
            future.set_result(call(*arguments))
            return future

    monkeypatch.setattr(command, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(signal, "signal", lambda *arguments: None)  # this process's stays
    return command.main


def test_ctrl_c_keeps_what_is_finished_and_says_how_many(tmp_path):
    """A terminal sends it to every process; running trials are not waited for."""
    for package in ("rich", "sklearn"):
        pytest.importorskip(package)  # optional packages
    arguments = ["--data", "digits", "--quick", "--methods", "random", "LFL", "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.methods", *arguments, "--rows", str(tmp_path)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background commands ignore it, and so would this one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    file = tmp_path / "methods-digits.jsonl"
    try:
        while not file.exists() and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=120)
    finally:
        process.kill()
    rows = harness.read_rows(file)
    found = re.fullmatch(
        r"python -m bench\.methods: stopped: (\d+) of (\d+) runs are finished and in \S+; the same "
        r"command goes on from there\n",
        said,
    )
    assert found, said
    assert int(found[1]) == len(rows) < int(found[2])
    assert process.returncode == 1


def test_the_command_resumes_where_it_stopped(tiny, tmp_path, capsys):
    call = ["--data", "digits", "--quick", "--rows", str(tmp_path)]
    tiny(call)
    file = tmp_path / "methods-digits.jsonl"
    rows = harness.read_rows(file)
    assert len(rows) == 2 * (2 * 3 + 2)
    assert sorted(row["seed"] for row in rows) == [0] * 8 + [1] * 8
    harness.write_rows(file, rows[:5] + rows[6:])
    capsys.readouterr()
    tiny(call)
    assert "1 to go" not in capsys.readouterr().out
    after = harness.read_rows(file)
    fields = [name for name in rows[5] if "seconds" not in name and name != "curve"]
    assert [after[-1][name] for name in fields] == [rows[5][name] for name in fields]
    tiny(call)
    assert "every run is there" in capsys.readouterr().out
    for row in rows:
        check(row)
        assert len(row["curve"]) == 3


def check(row):
    """A row is consistent and names its origin."""
    study = plan.STUDIES[row["data"]]
    assert sum(row["counts"]) == study.samples
    trained = sum(times * count for times, count in enumerate(row["counts"]))
    assert trained == row["samples_trained"]
    assert row["counts"][0] == 0
    assert row["steps"] == study.recipe.steps(study.samples, row["keep"])
    assert row["curve"][-1][0] == row["steps"]
    assert row["curve"][-1][2] == row["accuracy"]
    assert 0 < row["loss_seconds"] < row["seconds"]
    assert (row["wrong_share"] > 0) == (row["noise"] > 0)
    assert {"python", "torch", "numpy", "emp_kernels"} <= set(row["versions"])
    assert set(row["machine"]) == {"cpu", "cpus", "system", "gpus", "memory_gib"}
    assert isinstance(row["alone"], bool)


@pytest.mark.parametrize("file", COMMITTED, ids=lambda file: f"{file.parent.name} {file.stem}")
def test_committed_rows(file):
    rows = harness.read_rows(file)
    seen = set()
    for row in rows:
        check(row)
        assert re.fullmatch(r"[0-9a-f]{40}", row["commit"])
        key = tuple(row[name] for name in ("method", "beta", "protocol", "keep", "noise", "seed"))
        assert key not in seen
        seen.add(key)


@pytest.mark.parametrize("folder", sorted({f.parent for f in COMMITTED}), ids=lambda f: f.name)
def test_committed_tables_are_those_of_the_rows(folder):
    from bench.methods import draw

    text = draw.book(draw.read(folder).values())
    assert (folder / "methods.md").read_text(encoding="utf-8") == text


# Tables


def row_of(method, seed, accuracy, **fields):
    betas = {"random": None, "LFL": 0.0, "EMP": 1.0, "full": None, "EMP Gumbel": 1.0}
    row = {
        "data": "digits",
        "method": method,
        "beta": betas[method],
        "protocol": None if method == "full" else "stale",
        "keep": 0.3,
        "noise": 0.0,
        "seed": seed,
        "accuracy": accuracy,
        "curve": [[50, 1.0, accuracy - 3], [75, 1.5, accuracy - 0.5], [100, 2.0, accuracy]],
        "steps": 100,
        "samples_trained": 400,
        "seconds": 2.0,
        "choosing_seconds": 0.5,
        "loss_seconds": 0.25,
        "counts": [0, 50, 20, 20, 10],
        "rare_accuracy": 80.0,
        "other_accuracy": 90.0,
        "wrong_share": 0.0,
        "overlap": 0.5,
        "as_by_loss": 0.75,
        "threads": 1,
        "alone": False,
        "workers": 2,
        "epochs": 4,
        "batch_size": 16,
        "machine": {"cpu": "a processor", "cpus": 2, "gpus": []},
        "versions": {"python": "3.11.7"},
        "commit": "0123456789abcdef",
    }
    return row | fields


@pytest.fixture
def rows():
    """EMP is 2 points above LFL in the mean of three seeds, and 3 above random."""
    found = []
    for seed, gain in enumerate((1.0, 2.0, 3.0)):
        base = 90.0 + 5 * seed
        found += [row_of("random", seed, base - 1), row_of("LFL", seed, base)]
        found += [row_of("EMP", seed, base + gain)]
    return found


def test_differences_are_paired_by_seed(rows):
    emp_method = cells.Method("EMP", 1.0)
    found = cells.difference(rows, emp_method, "LFL")
    assert found.mean == pytest.approx(2)
    assert found.error == pytest.approx(statistics.stdev((1, 2, 3)) / math.sqrt(3))
    assert found.clear
    assert str(found) == "+2.0 ± 0.6"
    partial = cells.difference(rows[1:], emp_method, "random")  # seed 0 has no partner
    assert partial.seeds == 2
    assert not partial.clear
    assert cells.difference(rows, cells.Method("LFL", 0.0), "LFL") is None


def test_tables_of_rows(rows):
    text = report.accuracy(rows)
    assert "| EMP, β = 1 | +2.0 ± 0.6 | 97.0 ± 6.0 |" in text
    assert "commit 0123456789ab." in text
    assert "| EMP, β = 1 | 0.3 | 0 % | stale | +2.0 ± 0.6 | +3.0 ± 0.6 | 3 |" in report.clear_gains(
        rows
    )
    assert "1 of 1 comparisons" in report.clear_gains(rows)
    why = report.why(rows)
    assert "| 97.0 ± 6.0 | +3.0 ± 0.6 | 70.0 | 21.1 | 50.0 | 80.0 | 90.0 | 75.0 | – |" in why
    assert time_to_accuracy.table(rows) == "Not measured."


def test_regimes_stand_in_a_line_each(rows):
    tiny = [row | {"data": "tiny", "rare_accuracy": 50.0} for row in rows]
    tiny += [row_of("EMP Gumbel", seed, 100.0, data="tiny") for seed in range(3)]
    tiny += [row_of("LFL", 0, 5.0, data="tiny", noise=0.1), row_of("LFL", 0, 5.0, keep=0.5)]
    nothing = "| – | – | – |"
    assert report.regimes([*rows, *tiny]).splitlines()[2:] == [
        f"| tiny | 3 | 86.0 | 94.0 ± 5.0 | +1.0 ± 0.0 | +2.0 ± 0.6 {nothing} +6.0 ± 2.9 | – |",
        f"| digits | 3 | 89.0 | 94.0 ± 5.0 | +1.0 ± 0.0 | +2.0 ± 0.6 {nothing} – | – |",
    ]


def test_the_verdict_asks_for_two_data_sets(rows):
    other = [row | {"data": "mnist1d"} for row in rows]
    cell = "- EMP, β = 1 at keep 0.3, 0 % wrong labels, stale: digits and mnist1d"
    assert report.verdict([rows, other]) == cell
    assert report.verdict([rows]) == "None."
    elsewhere = [row | {"noise": 0.1} for row in other]
    assert report.verdict([rows, elsewhere]) == "None."
    close = [row | {"accuracy": row["accuracy"] + 3 * (row["method"] == "LFL")} for row in other]
    assert report.verdict([rows, close]) == "None."


@pytest.fixture
def alone(rows):
    """Three seeds of pruned runs and of full data, by as many steps and by three times as many."""
    found = list(rows)
    for seed in range(3):
        found.append(row_of("full", seed, 89.0 + 5 * seed, choosing_seconds=0.25))
        found.append(row_of("full", seed, 92.0 + 5 * seed, keep=1.0, seconds=6.0, steps=300))
    return [row | {"alone": True} for row in found]


def test_time_to_accuracy_is_paired_by_seed_and_takes_runs_that_were_alone(alone):
    """Targets are 91, 96 and 101: EMP ends at 91, 97 and 103 and passes them with its last look,
    the one before last (96.5) and that one again (102.5)."""
    text = time_to_accuracy.table(alone)
    assert "91.0 % (seed 0), 96.0 % (seed 1), 101.0 % (seed 2)" in text
    assert "looked at 3 times a run" in text
    emp_line = "| 97.0 ± 6.0 | +3.0 ± 0.6 | 1.7 | 2.0 | 0.5 | 0.2 | 12.5 |"
    assert f"| EMP, β = 1 | 0.3 | 100 {emp_line}" in text
    assert "| random | 0.3 | 100 | 94.0 ± 5.0 | +0.0 ± 0.0 | not reached |" in text
    assert "| full | 0.3 | 100 | 94.0 ± 5.0 | – | not reached | 2.0 | 0.2 | 0.2 | 0.0 |" in text
    assert "| full | 1 | 300 | 97.0 ± 5.0 | – | 1.5 | 6.0 | 0.5 | 0.2 | 0.0 |" in text
    fallen = alone[2] | {"curve": [[100, 2.0, 90.9]]}  # EMP of seed 0
    text = time_to_accuracy.table([*alone[:2], fallen, *alone[3:]])
    assert "| 1.5 (2 of 3 runs) | 2.0 |" in text
    shared = [*alone[:-1], alone[-1] | {"alone": False}]
    assert time_to_accuracy.table(shared) == "Not measured."
    assert time_to_accuracy.table(alone[:9]) == "Not measured."  # without full data


def test_the_time_plot_shows_every_run_and_target(alone):
    pytest.importorskip("matplotlib")  # optional package
    from bench.methods import draw

    (axes,) = draw.seconds(alone).axes
    curves = [line.get_xydata().tolist() for line in axes.lines]
    for row in alone:
        assert [[time, accuracy] for _, time, accuracy in row["curve"]] in curves
    for target in (91.0, 96.0, 101.0):
        assert [[0, target], [1, target]] in curves
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == [
        *("full, keep 1", "full, keep 0.3", "random, keep 0.3", "loss only (LFL), keep 0.3"),
        "EMP, β = 1, keep 0.3",
    ]


@pytest.mark.parametrize("name", ["data", "machine", "versions", "epochs", "threads"])
def test_rows_of_several_origins_make_no_table(rows, name):
    rows[-1][name] = "another"
    with pytest.raises(ValueError, match=f"rows must come from one {name}"):
        report.accuracy(rows)


def test_two_rows_of_one_run_make_no_table(rows):
    with pytest.raises(ValueError, match="a seed must stand once a cell"):
        report.accuracy([*rows, rows[-1]])


def test_shares_of_counts():
    assert cells.at_most([0, 50, 20, 20, 10], 2) == 0.7
    assert cells.most_trained([0, 50, 20, 20, 10], 0.1) == 40 / 190
    assert cells.most_trained([0, 50, 20, 20, 10], 0.2) == 70 / 190


def test_plots_are_made_of_rows(rows, alone, tmp_path):
    pytest.importorskip("matplotlib")  # optional package
    from bench.methods import draw

    harness.write_rows(tmp_path / "methods-digits.jsonl", rows)
    harness.write_rows(tmp_path / "methods-digits-alone.jsonl", alone)
    draw.draw(tmp_path)
    for name in ("methods-digits.png", "methods-digits-counts.png", "methods-digits-alone.png"):
        assert (tmp_path / name).stat().st_size > 5000
    text = (tmp_path / "methods.md").read_text(encoding="utf-8")
    assert report.accuracy(rows) in text
    assert time_to_accuracy.table(alone) in text


# The page of findings


def test_findings_are_those_of_the_rows():
    """Every measured figure is in a table generated from rows."""
    text = (ROOT / "docs/findings_details.md").read_text(encoding="utf-8")
    assert readme_tables.rewritten(text) == text, "run: python -m bench.readme_tables"
    prose = readme_tables.BLOCK.sub("", text)
    figures = re.findall(r"\d+\.\d+", prose.replace("2408.16031", "").replace("2303.04947", ""))
    keeps = {"0.85", "0.7", "0.5", "0.3", "0.1"}
    assert set(figures) <= keeps | {"2.2", "0.18"}  # the paper's, and the recipe's
