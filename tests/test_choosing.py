"""Sampling methods: exact counts, known probabilities, the same results everywhere."""

import io
import math

import pytest
import torch

import emp_kernels as emp
from emp_kernels.choosing import SAMPLINGS, importance_draw

INF = math.inf


def state_with(scores):
    """A state with `scores`; +inf means never seen."""
    scores = torch.as_tensor(scores, dtype=torch.float32)
    state = emp.EMPState(len(scores))
    ids = (scores < INF).nonzero()[:, 0]
    seen = scores[ids]
    state.update(ids, emp.Scores(seen, seen.clamp_min(0), seen.clamp_min(0) * 0, seen))
    return state


def some_scores(n, seed=0):
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) ** 4 * 5


def probabilities(scores, count):
    """In float64, by the definition: in proportion to score + mean, at most 1, `count` in all."""
    sizes = torch.as_tensor(scores, dtype=torch.float64).clamp_min(0)
    sizes[sizes == INF] = max(sizes[sizes < INF].tolist(), default=0.0)
    sizes = sizes + sizes.mean() if sizes.max() > 0 else torch.ones_like(sizes)
    certain = torch.zeros(len(sizes), dtype=torch.bool)
    while True:
        left = count - int(certain.sum())
        found = sizes * left / sizes[~certain].sum()
        if not ((found >= 1) & ~certain).any():
            return found.masked_fill(certain, 1.0)
        certain |= found >= 1


@pytest.mark.parametrize(
    ("scores", "count"),
    [
        ([4.0, 3.0, 2.0, 1.0, 0.0, 0.5], 2),
        ([9.0, 0.1, 0.1, 0.1, 0.0], 3),  # the first is drawn for certain
        ([0.0, 0.0, 0.0], 1),
        ([INF, 1.0, 3.0, 0.5, INF, 0.0], 3),  # as if they had 3
        ([INF, INF, INF, INF], 3),
        ([-1.0, 2.0, 1.0, 1.0], 2),  # of a negative beta
    ],
)
def test_importance_draws_with_the_probabilities_that_its_weights_make_up_for(scores, count):
    want, n, epochs = probabilities(scores, count), len(scores), 1500
    state, drawn = state_with(scores), torch.zeros(n)
    for seed in range(epochs):
        sampler = emp.EMPSampler(state, count, sampling="importance", warmup_epochs=0, seed=seed)
        ids = list(sampler)
        assert len(ids) == len(set(ids)) == count
        drawn[ids] += 1
        torch.testing.assert_close(sampler.weights.double(), count / n / want, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        drawn.double() / epochs, want, rtol=0, atol=4 * 0.5 / epochs**0.5, check_dtype=False
    )


@pytest.mark.parametrize("count", [1, 2, 50, 199, 200])
@pytest.mark.parametrize(
    "kind", ["some", "equal", "outlier", "huge", "tiny", "geometric", "unseen"]
)
def test_importance_draws_exactly_so_many_of_any_scores(kind, count):
    scores = {
        "some": some_scores(200),
        "equal": torch.full((200,), 0.7),
        "outlier": some_scores(200).index_fill(0, torch.tensor([17]), 3e38),
        "huge": torch.full((200,), 3.4e38),
        "tiny": some_scores(200) * 1e-45,
        "geometric": 1.5 ** torch.arange(-100.0, 100.0),
        "unseen": some_scores(200).index_fill(0, torch.arange(0, 200, 3), INF),
    }[kind]
    want = probabilities(scores, count)
    for stream in range(8):
        ids, weights = importance_draw(scores, count, stream)
        assert len(ids) == count
        assert torch.equal(ids, ids.unique())
        assert set((want > 1 - 1e-9).nonzero()[:, 0].tolist()) <= set(ids.tolist())
        if count == 200:
            assert weights is None
        else:
            torch.testing.assert_close(weights.double(), count / 200 / want, rtol=1e-4, atol=0)


def test_importance_is_unbiased_over_epochs_and_far_closer_than_independent_draws():
    scores, count, epochs = some_scores(300), 90, 1000
    losses = some_scores(300, seed=1).double()
    sums, means = torch.zeros(300, dtype=torch.float64), []
    for stream in range(epochs):
        ids, weights = importance_draw(scores, count, stream)
        sums[ids] += weights[ids].double()
        means.append((weights[ids] * losses[ids]).mean())
    # each sample's expected weight is count / N: a Bernoulli variable over its own probability
    found = probabilities(scores, count)
    error = count / 300 * ((1 - found) / found / epochs).sqrt()
    assert ((sums / epochs - count / 300).abs() < 5 * error + 1e-6).all()
    mean, error = torch.stack(means).mean(), torch.stack(means).std() / epochs**0.5
    assert abs(mean - losses.mean()) < 4 * error


def test_importance_is_the_same_on_any_number_of_threads_and_either_backend(monkeypatch):
    scores = some_scores(200_000)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 4):
            torch.set_num_threads(count)
            found.append(importance_draw(scores, 60_000, 5))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    reference = emp.backends.load("reference")
    monkeypatch.setattr(emp.backends, "resolve", lambda *_: reference)
    ids, weights = importance_draw(scores, 60_000, 5)
    assert torch.equal(ids, found[0][0])
    assert torch.equal(weights, found[0][1])


def test_pool_takes_the_highest_of_a_random_pool():
    scores, n, count = some_scores(400), 400, 100
    state, drawn, epochs = state_with(scores), torch.zeros(400), 300
    for seed in range(epochs):
        sampler = emp.EMPSampler(state, count, sampling="pool", warmup_epochs=0, seed=seed)
        ids = sorted(sampler)
        assert len(set(ids)) == count
        drawn[ids] += 1
    # its pool holds 200: the 100 highest scores are taken whenever they are in it
    top = state.select(count)
    assert abs(float(drawn[top].mean()) / epochs - 0.5) < 0.02
    assert float(drawn.max()) / epochs < 0.5 + 5 * 0.5 / epochs**0.5
    assert float(drawn[state.score.argsort()[:50]].max()) == 0  # never among the half of any pool
    assert (sampler.weights == 1).all()
    assert sampler.weights.shape == (n,)


def test_pool_holds_all_never_seen_samples():
    scores = some_scores(400)
    scores[::10] = INF
    sampler = emp.EMPSampler(state_with(scores), 100, sampling="pool", warmup_epochs=0)
    drawn = torch.tensor(sorted(sampler))
    assert int((scores[drawn] == INF).sum()) == 40
    assert len(drawn) == 100


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.filterwarnings("ignore:EMPSampler. epoch")  # nothing is written
@pytest.mark.parametrize("keep", [1.0, 0.3, 7, 2])
def test_every_way_draws_so_many_anew_each_epoch(sampling, keep):
    state = state_with(some_scores(50))
    sampler = emp.EMPSampler(state, keep, sampling=sampling, warmup_epochs=1, seed=3)
    assert sorted(sampler) == list(range(50))
    assert (sampler.weights == 1).all()
    orders = [list(sampler) for _ in range(6)]
    assert {len(order) for order in orders} == {len(sampler)} == {len(set(orders[0]))}
    assert len({tuple(order) for order in orders}) > 1
    assert sampler.weights.dtype == torch.float32
    assert sampler.weights.isfinite().all()


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_way_takes_a_state_of_no_samples(sampling):
    assert list(emp.EMPSampler(emp.EMPState(0), 0.3, sampling=sampling, warmup_epochs=0)) == []


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_way_draws_the_same_on_any_number_of_ranks(sampling):
    state = state_with(some_scores(120))
    options = {"sampling": sampling, "warmup_epochs": 0, "seed": 2}
    whole = emp.EMPSampler(state, 0.5, **options)
    ranks = [emp.EMPSampler(state, 0.5, num_replicas=3, rank=r, **options) for r in range(3)]
    order, parts = list(whole), [list(rank) for rank in ranks]
    assert [i for step in zip(*parts, strict=True) for i in step] == order
    for rank in ranks:
        assert torch.equal(rank.weights, whole.weights)


def test_a_resumed_epoch_has_the_weights_that_it_began_with():
    state = state_with(some_scores(40))
    options = {"sampling": "importance", "warmup_epochs": 0}
    sampler = emp.EMPSampler(state, 0.5, **options)
    drawing = iter(sampler)
    [next(drawing) for _ in range(9)]
    weights, file = sampler.weights.clone(), io.BytesIO()
    torch.save(sampler.state_dict(), file)
    file.seek(0)
    rest = list(drawing)
    other = emp.EMPSampler(state_with(some_scores(40, seed=9)), 0.5, **options)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.weights, weights)
    assert len(weights.unique()) > 30
    assert list(other) == rest


def test_weights_belong_to_the_loss_and_not_to_what_is_remembered():
    state = state_with(some_scores(40))
    sampler = emp.EMPSampler(state, 0.5, sampling="importance", warmup_epochs=0)
    ids = torch.tensor(list(sampler))
    logits, labels = torch.randn(20, 4, requires_grad=True), torch.randint(4, (20,))
    loss = emp.cross_entropy(logits, labels, state, indices=ids, sample_weight=sampler.weights[ids])
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(loss, (plain * sampler.weights[ids]).mean())
    torch.testing.assert_close(state.loss[ids], plain.detach())


def test_an_unknown_way_lists_those_that_there_are():
    with pytest.raises(ValueError, match="top or gumbel or pool or importance, got 'best'"):
        emp.EMPSampler(emp.EMPState(5), sampling="best")
