"""The fair comparison: equal samples, each method against its definition, statistics against known
values."""

import dataclasses
import itertools
import json
import math
import os
import statistics
from pathlib import Path

import pytest
import torch

import emp_kernels as emp
from bench import harness
from bench.methods.fair import __main__ as running
from bench.methods.fair import (
    fetch,
    pictures,
    plan,
    report,
    saving,
    student,
    texts,
    timing,
    training,
)
from bench.methods.fair.data import Data
from bench.methods.fair.features import Texts
from bench.methods.fair.methods import Balanced, Candidates, Full, Run, Sampling, drawn
from bench.methods.fair.network import Bags
from bench.methods.fair.proxy import Proxied

N, B = 90, 16


@pytest.fixture
def toy():
    """Texts of 1 to 6 features, the first of which determines the class; one class is rare."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 2]).repeat(10)
    lengths = torch.randint(1, 7, (N,), generator=generator)
    starts = lengths.cumsum(0) - lengths
    features = torch.randint(100, 1000, (int(lengths.sum()),), generator=generator)
    features[starts] = labels
    part = Texts(features, starts, lengths, labels)
    return Data(part, part, part, 3, Bags)


def run_of(data, method, seed=0, steps=60):
    model = data.network(data.classes, seed)
    return Run(data.train, model, emp.EMPState(N, beta=method.beta), B, seed, steps)


METHODS = dict.fromkeys(
    method for family in plan.FAMILIES for methods in family.methods.values() for method in methods
)
METHODS = (Full(), *METHODS, Candidates(choose="gumbel"))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_trains_equal_batches_and_learns(toy, method):
    sizes = [len(ids) for ids, _ in itertools.islice(method.batches(run_of(toy, method)), 20)]
    assert sizes == [B] * 20
    found = training.train(toy, method, 0.4, 60, 1, "test", batch_size=B)
    assert (found.steps, found.samples) == (60, 60 * B)
    assert found.accuracy > 90
    again = training.train(toy, method, 0.4, 60, 1, "test", batch_size=B)
    assert found[:3] == again[:3]


def test_full_data_is_whole_passes_with_the_remainder_carried_over(toy):
    ids = torch.cat([ids for ids, _ in itertools.islice(Full().batches(run_of(toy, Full())), 45)])
    for one_pass in ids.split(N):
        assert sorted(one_pass.tolist()) == list(range(N))
    assert len(ids) == 8 * N


def test_sampling_draws_with_the_weights_of_the_epoch_that_drew(toy):
    method = Sampling("importance", keep=30)
    run = run_of(toy, method)
    run.state.update(torch.arange(N), emp.Scores(*([torch.rand(N)] * 4)))
    found = [tuple(map(torch.clone, batch)) for batch in itertools.islice(method.batches(run), 12)]
    ids, weights = (torch.cat(parts)[: N + 3 * 30] for parts in zip(*found, strict=True))
    sampler = emp.EMPSampler(run_of(toy, method).state, 30, sampling="importance")
    sampler.state.load_state_dict(run.state.state_dict())
    for epoch, part in enumerate(ids.split([N, 30, 30, 30])):
        sampler.set_epoch(epoch)
        assert list(sampler) == part.tolist()
        at = N + 30 * (epoch - 1) if epoch else 0
        assert torch.equal(weights[at : at + len(part)], sampler.weights[part])


def test_balanced_draws_classes_by_the_power_of_their_sizes(toy):
    for power in (0.0, 0.5, 1.0):
        method = Balanced(power)
        batches = itertools.islice(method.batches(run_of(toy, method)), 400)
        labels = toy.train.labels[torch.cat([ids for ids, _ in batches])]
        share = torch.bincount(labels).double() / len(labels)
        want = torch.tensor([40.0, 40.0, 10.0]).double() ** power
        torch.testing.assert_close(share, want / want.sum(), rtol=0, atol=0.02)


def test_candidates_are_the_highest_scores_of_each_large_batch(toy):
    method = Candidates(3, beta=0.5)
    run = run_of(toy, method)
    everything = iter(emp.EMPSampler(emp.EMPState(N), 1.0, seed=0))
    (ids, weights) = next(method.batches(run))
    asked = torch.tensor(list(itertools.islice(everything, 3 * B)))
    with torch.no_grad():
        scores = emp.score(run.model(toy.train, asked), toy.train.labels[asked], beta=0.5).score
    best = scores.argsort(descending=True, stable=True)[:B].sort()[0]
    assert ids.tolist() == asked[best].tolist()
    assert weights is None
    assert int((run.state.updates > 0).sum()) == 3 * B


def test_a_step_is_adagrad_on_each_embedding_that_was_used(toy):
    model, ids = Bags(3, 0), torch.tensor([3, 1, 3, 40])
    table = model.table.clone().requires_grad_()
    scale = toy.train.lengths[ids].float().rsqrt()
    bags = torch.stack([table[_features(toy, i)].sum(0) for i in ids.tolist()]) * scale[:, None]
    labels = toy.train.labels[ids]
    want = torch.nn.functional.cross_entropy(model.head(bags), labels)
    gradient = torch.autograd.grad(want, table)[0]
    loss = torch.nn.functional.cross_entropy(model(toy.train, ids), labels)
    torch.testing.assert_close(loss, want)
    model.step(loss, 0.1)
    squares = gradient.square().mean(1)
    expected = table.detach() - 0.1 * gradient / (squares.sqrt() + 1e-8)[:, None]
    torch.testing.assert_close(model.table, expected)
    torch.testing.assert_close(model.squares, squares)


def _features(data, i):
    return data.train.features[data.train.starts[i] :][: data.train.lengths[i]]


def test_texts_are_hashed_as_words_and_pairs():
    words, same = texts.hashed("The cat, the CAT!"), texts.hashed("the cat the cat")
    assert words == same
    assert len(words) == 4 + 3
    assert words[0] == words[2]
    assert len(texts.hashed("...")) == 1
    assert len(texts.hashed("a " * 100)) == 2 * texts.WORDS - 1


def test_sources_are_read():
    lines = [
        "  1 This is a licence  ",
        '00001740 03 n 01 entity 0 003 ~ 0 n 0 | that | "which"; x  ',
    ]
    assert list(fetch.synsets(lines)) == [("03", 'that | "which"; x  ')]
    index = (
        "Package: a\nSection: non-free/web\nDescription: some tool\n\nPackage: b\nSection: x\n\n"
    )
    assert list(fetch.packages(index)) == [("web", "some tool")]
    pairs = [("a", " one  text"), ("b", "One text"), ("c", " "), ("d", "two")]
    assert list(fetch.unique(pairs)) == [("a", "one text"), ("d", "two")]


def test_macro_f1_is_the_mean_over_the_classes_that_are_there():
    predicted, labels = torch.tensor([0, 0, 1, 3, 2, 2]), torch.tensor([0, 1, 1, 0, 2, 2])
    # F1 of 0: 2/(2+2), of 1: 2/(1+2), of 2: 4/(2+2); nothing is of class 3 or 4
    want = 100 * statistics.fmean([0.5, 2 / 3, 1.0])
    assert math.isclose(training.macro_f1(predicted, labels, 5), want, rel_tol=1e-12)


@pytest.mark.parametrize(
    ("degrees", "t"),
    [(1, 12.7062047), (2, 4.3026527), (4, 2.7764451), (7, 2.3646243), (30, 2.0422725)],
)
def test_t_is_that_of_the_tables(degrees, t):
    assert math.isclose(student.quantile(0.95, degrees), t, rel_tol=1e-7)
    assert math.isclose(student.two_sided(t, degrees), 0.05, rel_tol=1e-6)


def test_differences_are_paired_and_corrected():
    found = student.paired([1.0, 2.0, 3.0, 2.0])
    assert math.isclose(found.mean, 2.0)
    assert math.isclose(found.half, 3.1824463 * math.sqrt(2 / 3) / 2, rel_tol=1e-7)
    assert math.isclose(found.p, student.two_sided(2 / (math.sqrt(2 / 3) / 2), 3))
    assert student.holm([0.01, 0.04, 0.03], 3) == [0.03, 0.06, 0.06]
    assert student.holm([0.01, 0.02], 5) == [0.05, 0.08]
    with pytest.raises(ValueError, match="family must be at least 2, got 1"):
        student.holm([0.1, 0.2], 1)


def test_runs_are_rows_that_are_not_repeated(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(running.texts, "load", lambda name: toy)
    lengths = (0.5, 1.0, 2.0)
    monkeypatch.setitem(plan.RECIPES, "debian", plan.Recipe(lengths, (0.2, 0.4, 0.8), B))
    family = plan.Family({"debian": (Candidates(),)}, {Candidates(): 1.4})
    monkeypatch.setattr(plan, "FAMILIES", (family,))
    monkeypatch.setattr(
        harness, "origin", lambda: {"versions": {"torch": "2"}, "machine": {"cpu": "x"}}
    )
    threads = torch.get_num_threads()
    folder = ["--rows", str(tmp_path), "--data", "debian"]
    try:
        running.main([*folder, "--seeds", "3"])
        text = (tmp_path / "fair-debian.jsonl").read_text()
        running.main([*folder, "--seeds", "3"])
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "fair-debian.jsonl").read_text() == text
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == 2 * 3 * (3 + 3) + 3 * 3
    rates = running.tuned(rows)
    for row in rows:
        if row["split"] == "test" and row["epochs"] in lengths:
            assert row["rate"] == rates["debian", row["method"], row["epochs"]]
    compared = report.in_equal_steps(rows, family)
    assert [one.epochs for one in compared] == [0.5, 0.5, 1.0, 1.0, 2.0, 2.0]
    assert len(report.in_equal_time(rows, family)) == 6
    full = report.tested(rows, "debian", "full", 1.0)
    ours = report.tested(rows, "debian", Candidates().name, 1.0)
    differences = [ours[seed]["accuracy"] - full[seed]["accuracy"] for seed in (0, 1, 2)]
    assert math.isclose(compared[2].difference.mean, statistics.fmean(differences))
    table = report.table(rows, family=family)
    assert str(compared[2].difference) in table
    assert table.count("| debian |") == 6
    alone = [row for row in rows if row["method"] == "full"]
    assert report.table(alone, family=family) == "Not measured."


def test_families_count_what_was_named():
    assert sum(1 for _ in plan.TEXTS.compared()) == 2 * (5 * 3 + 3)
    assert sum(1 for _ in plan.IMAGES.compared()) == 2 * 3 + 3 * 2 + 2 * 4 + 2
    assert [(method.name, n) for _, method, n in plan.PARTS.compared()][-1] == ("SeTa", 2.0)
    assert plan.PARTS.lengths("wordnet", plan.FULL) == [1.0, 2.0]
    short = dataclasses.replace(plan.IMAGES, longest=1.0)
    assert short.lengths("cifar100", Candidates(2)) == [0.5, 1.0]
    assert short.lengths("cifar100", Sampling("gumbel")) == []


def test_times_are_compared_within_each_round():
    times = {"full": [1.0, 4.0, 2.0], "2x": [1.5, 5.0, 3.0], "4x": [2.0, 6.0, 4.0]}
    rows = [
        {"method": method.name, "round": i, "ms_a_step": ms, "commit": "0123456789abcdef"}
        for method, own in zip(timing.METHODS["wordnet"], times.values(), strict=True)
        for i, ms in enumerate(own)
    ]
    table = timing.table(rows)
    assert "| 2x candidates by EMP | 3.00 | 1.50 |" in table
    assert "| 4x candidates by EMP | 4.00 | 2.00 |" in table
    assert "0123456789ab." in table


def test_the_crossover_shows_the_differences_of_the_rows(tmp_path):
    draw = pytest.importorskip("bench.methods.fair.draw", exc_type=ImportError)
    rows = []
    for method, more in {
        "full": 0.0,
        "2x candidates by EMP": 1.0,
        "4x candidates by EMP": 2.0,
    }.items():
        for epochs, seed in itertools.product((0.5, 2.0, 8.0), range(3)):
            ends = {"accuracy": 90 + (more + 0.1 * seed) / epochs * (more > 0), "macro_f1": 80.0}
            own = {"data": "digits", "method": method, "epochs": epochs, "seed": seed}
            rows.append(own | ends | {"split": "test"})
    figure = draw.crossover({"digits": rows}, draw.SHORT)
    accuracy, f1 = figure.axes
    lines = {bars.get_label(): bars.lines[0].get_ydata() for bars in accuracy.containers}
    assert set(lines) == {"2x candidates by EMP", "4x candidates by EMP"}
    assert lines["4x candidates by EMP"] == pytest.approx([4.2, 1.05, 0.2625])
    ends = accuracy.containers[0].lines[2][0].get_segments()[0][:, 1]
    want = student.paired([2.0, 2.2, 2.4])
    assert ends == pytest.approx([want.mean - want.half, want.mean + want.half])
    assert f1.get_xticklabels()[0].get_text() == "0.5\n(full 80.0 %)"
    harness.write_rows(tmp_path / "fair-digits.jsonl", rows)
    draw.draw(tmp_path)
    for name in ("crossover", "crossover-digits"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_time_to_an_accuracy_is_read_between_lengths():
    points = [(0.5, 60.0, 1.0), (1.0, 70.0, 3.0), (2.0, 72.0, 5.0)]
    runs = [{"epochs": n, "accuracy": acc, "seconds": s} for n, acc, s in reversed(points)]
    assert saving.time_to(65.0, runs) == 2.0
    assert saving.time_to(71.5, runs) == 4.5
    assert saving.time_to(50.0, runs) == 1.0
    assert saving.time_to(72.1, runs) is None


def test_saved_time_is_that_of_rounds_in_which_both_arrive():
    rows = []
    for seed, (quick, best) in enumerate([(1.0, 70.0), (1.5, 70.0), (1.0, 50.0), (0.5, 70.0)]):
        for method, lengths in saving.LENGTHS.items():
            for i, epochs in enumerate(lengths):
                ours = method == saving.OURS
                seconds = (quick if ours else 2.0) * epochs
                accuracy = min(best if ours else 90.0, 10.0 * (i + 1) + 20 * ours)
                own = {"method": method.name, "seed": seed, "epochs": epochs, "data": "debian"}
                rows.append(own | {"accuracy": accuracy, "seconds": seconds, "commit": "c" * 40})
    lines = saving.table([*rows, rows[0] | {"seed": 9}]).splitlines()  # a round that was stopped
    # Full data's mean after one pass, 40, is at hand after two of ours' lengths, 0.35 passes.
    times = [2.0, 0.35 * statistics.fmean([1.0, 1.5, 1.0, 0.5])]
    saved = student.paired([100 * (1 - 0.35 * quick / 2.0) for quick in (1.0, 1.5, 1.0, 0.5)])
    want = f"| debian | 1 passes | 40.0 | 4 | {times[0]:.2f} | {times[1]:.2f} | {saved} |"
    assert want in lines


def test_a_proxy_chooses_for_another_network_and_learns(toy):
    method = Proxied(3)
    run = run_of(toy, method)
    labels, small = toy.train.labels, Bags(3, 1)  # of the proxy's seed
    everything = drawn(emp.EMPSampler(emp.EMPState(N), 1.0, seed=0), 3 * B)
    for step, (ids, weights) in enumerate(itertools.islice(method.batches(run), 4)):
        candidates, _ = next(everything)
        with torch.no_grad():
            scores = emp.score(small(toy.train, candidates), labels[candidates]).score
        best = candidates[scores.topk(B).indices]
        assert sorted(ids.tolist()) == sorted(best.tolist())
        assert weights is None
        loss = emp.cross_entropy(small(toy.train, ids), labels[ids])
        small.step(loss, method.rate * (1 - step / 60))
    assert not run.state.updates.any()  # the large network looked at nothing


@pytest.mark.parametrize("name", plan.TEXTS.methods)
def test_the_real_texts(name):
    if not (fetch.FOLDER / f"{name}.tsv").exists():
        pytest.skip("python -m bench.methods.fair.fetch was not run")
    data = texts.load(name)
    sizes = [len(part.labels) for part in data[:3]]
    assert sizes[1] == sizes[2] == round(texts.HELD_OUT * sum(sizes))
    assert sum(sizes) > 50_000
    assert data.classes >= 40
    for part in data[:3]:
        assert int(part.lengths.min()) >= 1
        assert int(part.features.max()) < texts.BUCKETS


def test_digits_are_split_and_learned():
    data = pictures.load("digits")
    sizes = [len(part.labels) for part in data[:3]]
    assert sizes == [1167, 130, 500]
    pixels = torch.cat([data.train.pixels, data.validation.pixels])
    assert len(pixels.flatten(1).unique(dim=0)) == 1297
    found = training.train(data, Candidates(2), 0.2, 40, 0, "validation", batch_size=32)
    assert found.accuracy > 90
    assert found.samples == 40 * 32


def test_looking_moves_no_running_mean_and_steps_are_sgd():
    data = pictures.load("digits")
    run = Run(data.train, data.network(10, 3), emp.EMPState(1167), 8, 0, 10)
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    ids = torch.arange(8)
    logits, labels = run.look(ids)
    assert run.model.training
    assert not logits.requires_grad
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, before[name])
    loss = torch.nn.functional.cross_entropy(run.model(data.train, ids), labels)
    weight = run.model.body[-1].weight
    weight_before = weight.detach().clone()
    (gradient,) = torch.autograd.grad(loss, weight, retain_graph=True)
    run.model.step(loss, 0.1)
    decayed = gradient + pictures.DECAY * weight_before
    want = weight_before - 0.1 * (1 + pictures.MOMENTUM) * decayed
    torch.testing.assert_close(weight.detach(), want)


def test_cifar100():
    folder = os.environ.get("CIFAR100")
    if not folder:
        pytest.skip("CIFAR100 does not name the folder that holds the images")
    data = pictures.load("cifar100", Path(folder))
    assert [len(part.labels) for part in data[:3]] == [45_000, 5_000, 10_000]
    assert data.classes == 100
    logits = data.network(100, 0)(data.train, torch.arange(4))
    assert logits.shape == (4, 100)
