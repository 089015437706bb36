"""The fair comparison: equal samples, each method against its definition, statistics against known
values."""

import itertools
import json
import math
import statistics

import pytest
import torch

import emp_kernels as emp
from bench import harness
from bench.methods.fair import __main__ as running
from bench.methods.fair import fetch, plan, report, student, texts, timing, training
from bench.methods.fair.methods import Balanced, Candidates, Full, Run, Sampling
from bench.methods.fair.network import Bags

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
    part = texts.Texts(features, starts, lengths, labels)
    return texts.Data(part, part, part, 3)


def run_of(data, method, seed=0):
    model = Bags(data.classes, seed)
    return Run(data.train, model, emp.EMPState(N, beta=method.beta), B, seed)


METHODS = (*plan.METHODS, Candidates(choose="gumbel"))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_every_method_trains_equal_batches_and_learns(toy, method, monkeypatch):
    monkeypatch.setattr(training, "BATCH", B)
    sizes = [len(ids) for ids, _ in itertools.islice(method.batches(run_of(toy, method)), 20)]
    assert sizes == [B] * 20
    found = training.train(toy, method, 0.4, 60, 1, "test")
    assert (found.steps, found.samples) == (60, 60 * B)
    assert found.accuracy > 90
    again = training.train(toy, method, 0.4, 60, 1, "test")
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
    drawn = [tuple(map(torch.clone, batch)) for batch in itertools.islice(method.batches(run), 12)]
    ids, weights = (torch.cat(parts)[: N + 3 * 30] for parts in zip(*drawn, strict=True))
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
    drawn = torch.tensor(list(itertools.islice(everything, 3 * B)))
    with torch.no_grad():
        scores = emp.score(run.model(toy.train, drawn), toy.train.labels[drawn], beta=0.5).score
    assert (
        ids.tolist() == drawn[scores.argsort(descending=True, stable=True)[:B].sort()[0]].tolist()
    )
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
    monkeypatch.setattr(running, "load", lambda name: toy)
    monkeypatch.setattr(plan, "METHODS", (Full(), Candidates()))
    monkeypatch.setattr(plan, "LONGER_AFTER", Candidates())
    monkeypatch.setattr(plan, "SEEDS", (0, 1, 2))
    monkeypatch.setattr(training, "BATCH", B)
    monkeypatch.setattr(
        harness, "origin", lambda: {"versions": {"torch": "2"}, "machine": {"cpu": "x"}}
    )
    threads = torch.get_num_threads()
    try:
        running.main(["--rows", str(tmp_path), "--data", "debian"])
        text = (tmp_path / "fair-debian.jsonl").read_text()
        running.main(["--rows", str(tmp_path), "--data", "debian"])
    finally:
        torch.set_num_threads(threads)
    assert (tmp_path / "fair-debian.jsonl").read_text() == text
    rows = [json.loads(line) for line in text.splitlines()]
    assert len(rows) == 2 * 3 * (3 + 3) + 3 * 3
    rates = running.tuned(rows)
    for row in rows:
        if row["split"] == "test" and row["epochs"] in plan.LENGTHS:
            assert row["rate"] == rates["debian", row["method"], row["epochs"]]
    compared = report.in_equal_steps(rows)
    assert [one.epochs for one in compared] == [0.5, 0.5, 1.0, 1.0, 2.0, 2.0]
    assert len(report.in_equal_time(rows)) == 6
    full = report.tested(rows, "debian", "full", 1.0)
    ours = report.tested(rows, "debian", Candidates().name, 1.0)
    differences = [ours[seed]["accuracy"] - full[seed]["accuracy"] for seed in (0, 1, 2)]
    assert math.isclose(compared[2].difference.mean, statistics.fmean(differences))
    assert str(compared[2].difference) in report.table(rows)
    assert report.table(rows).count("debian") == 6
    assert "4x candidates by EMP" in report.short(rows)


def test_times_are_compared_within_each_round():
    times = {"full": [1.0, 4.0, 2.0], "2x": [1.5, 5.0, 3.0], "4x": [2.0, 6.0, 4.0]}
    rows = [
        {"method": method.name, "round": i, "ms_a_step": ms, "commit": "0123456789abcdef"}
        for method, own in zip(timing.METHODS, times.values(), strict=True)
        for i, ms in enumerate(own)
    ]
    table = timing.table(rows)
    assert "| 2x candidates by EMP | 3.00 | 1.50 |" in table
    assert "| 4x candidates by EMP | 4.00 | 2.00 |" in table
    assert "0123456789ab." in table


@pytest.mark.parametrize("name", plan.DATA)
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
