"""EMPSampler: the samples and the order of an epoch, its ranks, and resuming."""

import copy
import functools
import gc
import io
import itertools
import math
import pickle
import weakref
from array import array

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader

import emp_kernels as emp
from emp_kernels import backends
from emp_kernels.choosing import gumbel_keys

# Many loops here write no scores, of which samplers warn (tests/test_loop_checks.py).
pytestmark = pytest.mark.filterwarnings("ignore::emp_kernels.EMPWarning")


def seen_state(n, seed=0, beta=1.0):
    """A state in which every sample has a score."""
    state = emp.EMPState(n, beta=beta)
    rescore(state, seed)
    return state


def rescore(state, seed, ids=None):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.arange(state.num_samples) if ids is None else ids
    logits = torch.randn(len(ids), 10, generator=generator)
    labels = torch.randint(10, (len(ids),), generator=generator)
    state.update(ids, emp.score(logits, labels, beta=state.beta))


def ranks_of(count, *arguments, **options):
    return [
        emp.EMPSampler(*arguments, num_replicas=count, rank=rank, **options)
        for rank in range(count)
    ]


def together(parts):
    """The global order of ranks that draw in step."""
    return [i for step in zip(*parts, strict=True) for i in step]


def test_epochs_of_each_kind():
    state = seen_state(50)
    sampler = emp.EMPSampler(state, 0.3, warmup_epochs=2, anneal_epochs=1, epochs=6)
    for epoch in range(6):
        assert sampler.epoch == epoch == state.epoch
        full = epoch < 2 or epoch == 5
        want = torch.arange(50) if full else state.select(0.3)
        length = len(sampler)
        drawn = list(sampler)
        assert all(type(i) is int for i in drawn)
        assert sorted(drawn) == want.tolist()
        assert len(drawn) == length == (50 if full else 15)
        rescore(state, epoch, torch.tensor(drawn))
    assert sorted(sampler) == list(range(50))  # later epochs are like the last
    assert sampler.epoch == state.epoch == 7


def test_never_seen_samples_come_first():
    state = seen_state(20)
    fresh = emp.EMPState(20)
    fresh.update(
        torch.arange(15),
        emp.Scores(
            *(x[:15] for x in emp.score(torch.randn(20, 3), torch.zeros(20, dtype=torch.int64)))
        ),
    )
    sampler = emp.EMPSampler(fresh, 6, warmup_epochs=0)
    assert {15, 16, 17, 18, 19} < set(sampler)
    assert sorted(emp.EMPSampler(state, 6, warmup_epochs=0)) == state.select(6).tolist()


def test_gumbel_draws_without_replacement_in_proportion_to_the_score():
    state = emp.EMPState(6)
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])
    state.update(torch.arange(5), emp.Scores(scores, scores, scores, scores))
    first, pairs = torch.zeros(6), torch.zeros(6, 6)
    epochs = 4000
    for seed in range(epochs):
        sampler = emp.EMPSampler(state, 3, sampling="gumbel", warmup_epochs=0, seed=seed)
        drawn = sorted(sampler)
        assert drawn[2] == 5  # never seen
        pairs[drawn[0], drawn[1]] += 1
        sampler = emp.EMPSampler(state, 2, sampling="gumbel", warmup_epochs=0, seed=seed)
        first[min(sampler)] += 1
    share = scores / scores.sum()
    torch.testing.assert_close(first[:5] / epochs, share, rtol=0, atol=4 * 0.5 / epochs**0.5)
    both = share[:, None] * share * (1 / (1 - share[:, None]) + 1 / (1 - share))
    torch.testing.assert_close(
        pairs[:5, :5] / epochs, both.triu(1), rtol=0, atol=4 * 0.5 / epochs**0.5
    )


def test_gumbel_keys_are_counted_by_id():
    """The keys of any part of the scores equal those of the whole, across blocks."""
    scores = torch.rand(150_000)
    scores[::1000] = float("inf")
    keys = gumbel_keys(scores, 2**64 - 5)
    for start, stop in ((0, 7), (65_530, 131_080), (149_999, 150_000), (3, 3)):
        part = gumbel_keys(scores[start:stop], 2**64 - 5, start)
        assert torch.equal(part, keys[start:stop])
    assert not torch.equal(gumbel_keys(scores, 2**64 - 4), keys)
    gumbel = (keys - scores.log())[scores < float("inf")].double()
    assert abs(float(gumbel.mean()) - 0.57722) < 0.02  # Euler's constant
    assert abs(float(gumbel.var()) - 1.64493) < 0.04  # pi**2 / 6


def test_gumbel_draws_anew_each_epoch_and_the_same_on_every_rank():
    state = seen_state(400)
    whole = emp.EMPSampler(state, 0.3, sampling="gumbel", warmup_epochs=1, seed=7)
    parts = ranks_of(2, state, 0.3, sampling="gumbel", warmup_epochs=1, seed=7)
    assert sorted(whole) == list(range(400))
    assert len(list(parts[0])) == len(list(parts[1])) == 200
    first, second = list(whole), list(whole)
    assert len(set(first)) == len(set(second)) == 120
    assert set(first) != set(second)
    assert together([list(part) for part in parts]) == first


def test_the_order_depends_on_seed_epoch_and_state_alone():
    state = seen_state(500)
    torch.manual_seed(1)
    numbers = torch.get_rng_state()
    orders = {
        (seed, epoch): list(_set(emp.EMPSampler(state, 0.5, seed=seed), epoch))
        for seed, epoch in itertools.product((-1, 0, 1, 2**40, 2**63), (1, 2, 3))
    }
    assert torch.equal(torch.get_rng_state(), numbers)
    assert len({tuple(order) for order in orders.values()}) == len(orders)
    assert {tuple(sorted(order)) for order in orders.values()} == {
        tuple(state.select(0.5).tolist())
    }
    torch.manual_seed(2)
    again = emp.EMPSampler(copy.deepcopy(state), 0.5, seed=1)
    assert list(_set(again, 2)) == orders[1, 2]
    assert list(emp.EMPSampler(state, 0.5, warmup_epochs=0, shuffle=False)) == sorted(orders[0, 1])


def test_no_two_seeds_are_alike():
    """However large, and whatever their sign."""
    seeds = [0, 1, 5, 6, 2**63, 2**64 - 1, 2**64, 2**64 + 5, 5 + 2**65, 2**128, 2**128 + 5, 2**500]
    seeds += [-seed for seed in seeds[1:]]
    state = seen_state(60)
    orders = {tuple(emp.EMPSampler(state, seed=seed)) for seed in seeds}
    assert len(orders) == len(seeds)


def test_more_samples_than_can_be_shuffled():
    state = emp.EMPState(2**32, device="meta")
    with pytest.raises(ValueError, match=r"EMPSampler: state must hold fewer than 4294836224 .*"):
        emp.EMPSampler(state)
    assert emp.EMPSampler(state, 0.5, shuffle=False).epoch_length(1) == 2**31


def _set(sampler, epoch):
    sampler.set_epoch(epoch)
    return sampler


LARGE = [2**16 + 1, 2**17 + 1, 2**18, 390_000, 600_001]  # from the first that is no Fisher-Yates


@pytest.mark.parametrize("n", [0, 1, 2, 3, 17, 4097, 2**16, *LARGE])
def test_the_shuffle_is_the_same_permutation_on_every_backend(n, backend, threads):
    ids = torch.arange(n) * 5 + 1
    module, reference = backends.load(backend), backends.load("reference")
    for seed in (0, 2**64 - 1):
        want = reference.shuffle(ids, seed)
        for count in threads:
            torch.set_num_threads(count)
            got = module.shuffle(ids, seed)
            assert torch.equal(got, want)
            assert torch.equal(got.sort().values, ids)
        if n > 1000:
            assert not torch.equal(want, ids)
        if n:
            places = torch.randint(n, (500,))
            assert torch.equal(module.shuffled_at(n, seed, places) * 5 + 1, want[places])


def test_the_shuffle_of_a_release_is_that_of_the_next(backend):
    """Epochs after a resumed one are drawn anew, also across releases."""
    module = backends.load(backend)
    assert module.shuffle(torch.arange(8), 7919).tolist() == [4, 7, 5, 6, 1, 0, 2, 3]
    order = module.shuffle(torch.arange(390_000), 7919)[:4]
    assert order.tolist() == [286480, 270012, 260606, 364452]


def deviations(counts):
    """The deviation of the spread of counts (cells,) from Poisson's, in standard deviations."""
    mean = counts.double().mean()
    square = ((counts - mean) ** 2 / mean).sum() - (len(counts) - 1)
    return float(square) / math.sqrt(2 * (len(counts) - 1))


def test_the_shuffle_is_uniform():
    """Every id at every place equally often: chi-squared over 6 ids, and over buckets of many."""
    module = backends.load("reference")
    counts = torch.zeros(6, 6, dtype=torch.int64)
    for seed in range(3000):
        counts[torch.arange(6), module.shuffle(torch.arange(6), seed * 7919)] += 1
    assert ((counts - 500.0) ** 2 / 500).sum() < 60  # 25 degrees of freedom: p = 1e-4
    order = module.shuffle(torch.arange(60_000), 3)
    table = torch.bincount(order // 6000 * 10 + torch.arange(60_000) // 6000, minlength=100)
    assert ((table - 600.0) ** 2 / 600).sum() < 140  # 81 degrees of freedom
    steps = order.diff().abs().double().mean()
    assert math.isclose(float(steps), 20_000, rel_tol=0.02)  # neighbours are strangers


@pytest.mark.parametrize("n", LARGE)
def test_a_large_order_looks_random(n):
    """Ids by position, neighbours by residue, and differences of ids a few positions or a row of
    the network's table apart, all as frequent as by chance."""
    rows = math.isqrt(n - 1) + 1
    columns = -(-n // rows)
    places = torch.arange(n)
    for seed in range(3):
        order = backends.load("reference").shuffle(places, seed)
        found = {"places": torch.bincount(order * 64 // n * 64 + places * 64 // n, minlength=4096)}
        for modulus in (64, 97, columns):
            pairs = order[1:] % modulus * modulus + order[:-1] % modulus
            found[f"neighbours modulo {modulus}"] = torch.bincount(pairs, minlength=modulus**2)
        for apart in (1, 2, 3, 16, columns - 1, columns, 2 * columns, rows, n // 2):
            steps = torch.bincount((order.roll(-apart) - order) % n, minlength=n)
            found[f"{apart} apart"] = steps[1:]
        far = {name: z for name, z in ((k, deviations(v)) for k, v in found.items()) if abs(z) > 5}
        assert not far
        rises = (order.diff() > 0).sum() - (n - 1) / 2
        assert abs(float(rises)) < 5 * math.sqrt(n / 12)
        assert (order == places).sum() < 8  # a fixed place is expected


def test_large_orders_of_many_seeds_are_strangers():
    """Where the ids of a few positions go, individually and in pairs, over 4000 orders."""
    n, module = 2**16 + 1, backends.load("cpu")
    at = torch.tensor([0, 1, 2, 255, 256, 257, 2**15, n - 2, n - 1])
    orders = [module.shuffle(torch.arange(n), seed)[at] for seed in range(4000)]
    eighths = torch.stack(orders, 1) * 8 // n
    for i, j in itertools.product(range(len(at)), repeat=2):
        if i != j:
            assert abs(deviations(torch.bincount(eighths[i] * 8 + eighths[j], minlength=64))) < 5


def test_an_iterator_is_fresh_and_its_order_is_fixed():
    state = seen_state(40)
    sampler = emp.EMPSampler(state, 0.5, warmup_epochs=0)
    first, second = iter(sampler), iter(sampler)
    assert first is not second
    want = emp.EMPSampler(copy.deepcopy(state), 0.5, warmup_epochs=0)
    rescore(state, 9)
    assert list(second) == list(want)  # whatever happened to the scores
    assert next(second, None) is None
    assert sampler.epoch == 1  # once
    third = iter(sampler)
    assert sorted(third) == state.select(0.5).tolist()
    assert list(first)  # still usable, and no longer the sampler's own
    assert sampler.epoch == 2


def test_it_ends_in_torchs_batch_sampler():
    """InfoBatch's sampler starts anew there and never ends an epoch."""
    state = seen_state(50)
    sampler = emp.EMPSampler(state, 0.3)
    for drop_last in (False, True):
        sampler.set_epoch(0)
        batches = BatchSampler(sampler, 10, drop_last)
        sizes = [[len(batch) for batch in batches] for _ in range(3)]
        assert sizes[0] == [10] * 5
        assert sizes[1] == sizes[2] == ([10] if drop_last else [10, 5])
        assert sampler.epoch == 3


def test_an_epoch_that_was_drawn_without_asking_for_more_is_over():
    sampler = emp.EMPSampler(seen_state(10), 0.5)
    for epoch in range(3):
        length = len(sampler)
        assert len([*itertools.islice(iter(sampler), length)]) == length == (5 if epoch else 10)
    assert len(sampler) == 5
    assert sampler.state_dict()["position"] == 5  # its end can still be resumed


def test_set_epoch_overrides():
    sampler = emp.EMPSampler(seen_state(30), 0.5)
    warmup = list(sampler)
    sampler.set_epoch(0)
    assert len(sampler) == 30
    assert list(sampler) == warmup
    sampler.set_epoch(7)
    assert len(list(sampler)) == len(sampler) == 15
    assert sampler.epoch == 8
    for error, wrong in ((ValueError, -1), (TypeError, 1.0), (TypeError, None)):
        with pytest.raises(error, match=r"EMPSampler.set_epoch: epoch must "):
            sampler.set_epoch(wrong)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("n", [1, 2, 10, 28, 61])
def test_ranks_share_an_epoch_equally(count, drop_last, n):
    state = seen_state(n)
    whole = list(emp.EMPSampler(state, 0.5, warmup_epochs=0))
    samplers = ranks_of(count, state, 0.5, warmup_epochs=0, drop_last=drop_last)
    parts = [list(sampler) for sampler in samplers]
    assert {len(part) for part in parts} == {len(_set(sampler, 0)) for sampler in samplers}
    order = together(parts)
    if drop_last:
        assert order == whole[: len(whole) // count * count]
    else:
        padding = -len(whole) % count
        assert order == whole + [*itertools.islice(itertools.cycle(whole), padding)]


@pytest.mark.parametrize("drop_last", [False, True])
def test_total_steps(drop_last):
    options = {"warmup_epochs": 2, "anneal_epochs": 1, "epochs": 7, "drop_last": drop_last}
    for count, batch_size in itertools.product((1, 2, 3), (1, 7, 16, 1000)):
        state = seen_state(101)
        sampler = emp.EMPSampler(state, 0.3, num_replicas=count, rank=count - 1, **options)
        for of_loader in (False, True):
            want = sampler.total_steps(batch_size, drop_last=of_loader)
            batches = BatchSampler(sampler, batch_size, of_loader)
            sampler.set_epoch(0)
            assert sum(len(list(batches)) for _ in range(7)) == want
    with pytest.raises(ValueError, match=r"EMPSampler.total_steps: epochs must be given"):
        emp.EMPSampler(state).total_steps(5)
    for error, wrong in ((ValueError, 0), (TypeError, 2.0)):
        with pytest.raises(error, match=r"EMPSampler.total_steps: batch_size must "):
            sampler.total_steps(wrong)
        with pytest.raises(error, match=r"EMPSampler.total_steps: accumulation must "):
            sampler.total_steps(5, accumulation=wrong)
    with pytest.raises(TypeError, match=r"EMPSampler.total_steps: drop_last must be a bool"):
        sampler.total_steps(5, drop_last=1)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 100])
def test_total_steps_with_accumulation(parts, drop_last):
    """Those that a loop takes which steps after every `parts` batches and at an epoch's end."""
    for n, batch_size in ((1797, 50), (1000, 50), (61, 7), (40, 10), (3, 5)):
        options = {"anneal_epochs": 1, "epochs": 3}
        sampler = emp.EMPSampler(seen_state(n), 0.3, **options)
        dataset = emp.IndexedDataset(range(n))
        loader = DataLoader(dataset, batch_size, sampler=sampler, drop_last=drop_last)
        taken = 0
        for _ in range(3):
            for i, _ in enumerate(loader):
                taken += (i + 1) % parts == 0 or i + 1 == len(loader)
        planned = sampler.total_steps(batch_size, drop_last=drop_last, accumulation=parts)
        assert planned == taken


def saved(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("position", [0, 1, 7, 14, 15])
@pytest.mark.parametrize("by", ["state_dict", "pickle", "copy"])
def test_an_epoch_is_resumed_anywhere(position, by):
    state = seen_state(30)
    sampler = emp.EMPSampler(state, 0.5, warmup_epochs=0, seed=4)
    drawing = iter(sampler)
    drawn = [next(drawing) for _ in range(position)]
    if by == "state_dict":
        resumed = emp.EMPSampler(emp.EMPState(30), 0.5, warmup_epochs=0, seed=4)
        resumed.state.load_state_dict(state.state_dict())
        resumed.load_state_dict(saved(sampler.state_dict()))
    else:
        resumed = pickle.loads(pickle.dumps(sampler)) if by == "pickle" else copy.deepcopy(sampler)
    rescore(state, 5)
    rescore(resumed.state, 6)  # whatever happened to the scores
    resumed.set_epoch(0)  # as training loops do
    assert len(resumed) == 15
    rest = list(drawing)
    assert list(resumed) == rest
    assert sorted(drawn + rest) == sorted(set(drawn + rest))
    assert resumed.epoch == sampler.epoch == 1
    assert torch.equal(resumed.state.selections, state.selections)
    resumed.state.load_state_dict(state.state_dict())
    assert list(resumed) == list(sampler)  # and the epochs behind it


def test_a_resumed_epoch_survives_an_iterator_that_nobody_used():
    state = seen_state(30)
    sampler = emp.EMPSampler(state, 0.5, warmup_epochs=0)
    drawing = iter(sampler)
    [next(drawing) for _ in range(4)]
    snapshot, rest = sampler.state_dict(), list(drawing)
    sampler.load_state_dict(snapshot)
    iter(sampler)
    rescore(state, 5)
    sampler.set_epoch(0)
    assert sampler.state_dict()["start"] == 4
    assert list(sampler) == rest


def test_without_set_epoch_epochs_follow_one_another():
    """The documented default: a loop that never calls it draws the same as one that always does."""
    one, other = (emp.EMPSampler(seen_state(30), 0.5, warmup_epochs=2) for _ in range(2))
    orders = []
    for epoch in range(5):
        other.set_epoch(epoch)
        orders.append(list(one))
        assert orders[-1] == list(other)
        assert one.epoch == other.epoch == epoch + 1
    assert [len(order) for order in orders] == [30, 30, 15, 15, 15]
    assert len({tuple(order) for order in orders}) == 5


def test_another_epoch_than_the_resumed_one_can_be_asked_for():
    sampler = emp.EMPSampler(seen_state(30), 0.5, warmup_epochs=0)
    drawing = iter(sampler)
    [next(drawing) for _ in range(4)]
    sampler.load_state_dict(sampler.state_dict())
    sampler.set_epoch(1)
    assert len(list(sampler)) == 15
    assert sampler.epoch == 2


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4), (4, 3), (3, 3), (2, 7)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_is_resumed_with_another_number_of_ranks(before, after, drop_last):
    state = seen_state(101)
    whole = list(emp.EMPSampler(state, 0.3, warmup_epochs=0))
    for position in (0, 1, 4, math.ceil(30 / before)):
        samplers = ranks_of(before, state, 0.3, warmup_epochs=0, drop_last=drop_last)
        drawings = [iter(sampler) for sampler in samplers]
        length = len(samplers[0])
        position = min(position, length)
        drawn = together([[next(drawing) for _ in range(position)] for drawing in drawings])
        snapshot = samplers[-1].state_dict()
        later = ranks_of(after, emp.EMPState(101), 0.3, warmup_epochs=0, drop_last=drop_last)
        for sampler in later:
            sampler.load_state_dict(snapshot)
        rest = together([list(sampler) for sampler in later])
        left = whole[len(drawn) :]
        if drop_last:
            assert rest == left[: len(left) // after * after]
        else:
            assert rest[: len(left)] == left
            assert rest[len(left) :] == whole[: -len(left) % after]
        if before == after:
            continued = together([list(drawing) for drawing in drawings])
            assert rest == continued


def loader_of(cls, sampler, n, workers=0, batch_size=4):
    data = emp.IndexedDataset(torch.arange(n) * 10)
    return cls(data, batch_size=batch_size, sampler=sampler, num_workers=workers)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stop", [0, 1, 3, 8])
def test_stateful_dataloader_resumes(workers, stop):
    """Also with worker processes, which have prefetched ids after the last batch."""
    stateful = pytest.importorskip("torchdata.stateful_dataloader")

    def build(state):
        sampler = emp.EMPSampler(state, 0.5, seed=3)
        return sampler, loader_of(stateful.StatefulDataLoader, sampler, 60, workers)

    state = seen_state(60)
    sampler, loader = build(state)
    list(loader)
    batches = iter(loader)
    for _ in range(stop):
        next(batches)
    snapshot, scores = saved(loader.state_dict()), state.state_dict()
    rest = [ids.tolist() for ids, _ in batches]
    assert sum(map(len, rest)) == 30 - 4 * stop + (2 if stop == 8 else 0)
    after = [ids.tolist() for ids, _ in loader]

    other = seen_state(60, seed=9)
    resumed_sampler, resumed = build(other)
    resumed.load_state_dict(snapshot)
    assert [ids.tolist() for ids, _ in resumed] == rest
    assert resumed_sampler.epoch == sampler.epoch - 1 == 2
    other.load_state_dict(scores)
    assert [ids.tolist() for ids, _ in resumed] == after


@pytest.mark.parametrize("batch_size", [4, 5])
def test_a_plain_loop_resumes_at_every_batch(batch_size):
    """Also at a short last batch, for which more ids were requested than existed."""
    data = emp.IndexedDataset(torch.arange(30))

    def train(state, sampler, stop=None, first=0):
        loader, seen = DataLoader(data, batch_size=batch_size, sampler=sampler), []
        for epoch in range(first, 3):
            for ids, _ in loader:
                rescore(state, 31 * epoch + int(ids[0]), ids)
                seen.append((epoch, ids.tolist()))
                if len(seen) == stop:
                    return seen, epoch, saved(sampler.state_dict()), state.state_dict()
        return seen, 3, saved(sampler.state_dict()), state.state_dict()

    def fresh():
        state = emp.EMPState(30)
        return state, emp.EMPSampler(state, 0.5)

    whole, _, last, _ = train(*fresh())
    assert last["epoch"] == 3
    assert last["order"] is None
    for stop in range(1, len(whole)):
        seen, epoch, order, scores = train(*fresh(), stop)
        state, sampler = fresh()
        state.load_state_dict(scores)
        sampler.load_state_dict(order)
        rest = train(state, sampler, first=epoch)[0]
        assert seen + rest == whole


def test_a_plain_dataloader_with_workers_draws_every_id_once():
    state = seen_state(60)
    sampler = emp.EMPSampler(state, 0.5)
    for workers in (0, 2):
        for _ in range(2):
            want = torch.arange(60) if sampler.epoch == 0 else state.select(0.5)
            ids = torch.cat([ids for ids, _ in loader_of(DataLoader, sampler, 60, workers)])
            assert ids.dtype == torch.int64
            assert torch.equal(ids.sort().values, want)


def test_selections_count_what_was_drawn():
    state = seen_state(40)
    sampler = emp.EMPSampler(state, 0.5)
    counts = torch.zeros(40, dtype=torch.int32)
    for i in itertools.islice(sampler, 13):
        counts[i] += 1
        assert torch.equal(state.selections, counts)
    for _ in range(3):
        counts += torch.bincount(torch.tensor(list(sampler)), minlength=40).int()
    assert torch.equal(state.selections, counts)
    assert state.updates.max() == 1


def test_an_id_that_is_no_sample_is_not_counted(backend):
    ids, counts = torch.tensor([3, 0, 30, 1]), torch.zeros(30, dtype=torch.int32)
    for wrong in (30, -1, 2**62, -(2**63)):
        counts.zero_()
        ids[2] = wrong
        progress, ended = array("q", [0, 0, 0]), []
        drawing = backends.load(backend).draws(
            ids, progress, 2, lambda position: counts, functools.partial(ended.append, True)
        )
        assert [next(drawing), next(drawing)] == [3, 0]
        with pytest.raises(IndexError, match=f"id {wrong} is out of range for 30 samples"):
            next(drawing)
        assert counts.nonzero()[:, 0].tolist() == [0, 3]
        assert progress.tolist()[:2] == [2, 0]
        assert not ended


def test_what_draws_the_ids(backend):
    """Chunk by chunk, into the current counts or none; the end is reported once."""
    ids = torch.arange(10).flip(0)
    counts = [torch.zeros(10, dtype=torch.int32) for _ in range(3)]
    progress, asked, ended = array("q", [0, 0, 0]), [], []

    def begin(position):
        asked.append(position)
        return None if position == 8 else counts[position // 4]

    drawing = backends.load(backend).draws(ids, progress, 4, begin, lambda: ended.append(True))
    alive = weakref.ref(drawing)
    assert iter(drawing) is drawing
    for position, i in enumerate(ids.tolist(), 1):
        assert next(drawing) == i
        assert progress.tolist()[:2] == [position, 0]
    for _ in range(2):
        assert next(drawing, None) is None
        assert progress.tolist()[:2] == [10, 1]
    assert asked == [0, 4, 8]
    assert ended == [True]
    assert [c.nonzero()[:, 0].tolist() for c in counts] == [[6, 7, 8, 9], [2, 3, 4, 5], []]
    del drawing
    assert alive() is None

    progress, moved = array("q", [0, 0, 0]), iter(counts)
    drawing = backends.load(backend).draws(ids, progress, 9, lambda _: next(moved).zero_(), print)
    for i in ids[:3].tolist():  # each is asked for where the counts have moved
        assert next(drawing) == i
        progress[2] = 0
    assert [c.nonzero()[:, 0].tolist() for c in counts] == [[9], [8], [7]]

    def cycle():
        holder = []
        holder.append(backends.load(backend).draws(ids, progress, 4, lambda _: holder, print))
        return weakref.ref(holder[0])

    alive = cycle()
    gc.collect()
    assert alive() is None


def test_no_samples():
    sampler = emp.EMPSampler(emp.EMPState(0))
    for _ in range(3):
        assert len(sampler) == 0
        assert list(sampler) == []


def test_a_wrong_checkpoint_changes_nothing():
    sampler = emp.EMPSampler(seen_state(30), 0.5)
    list(sampler)
    drawing = iter(sampler)
    [next(drawing) for _ in range(3)]
    good = sampler.state_dict()
    wrong = [(TypeError, [], "must be a mapping")]
    wrong += [
        (ValueError, {k: v for k, v in good.items() if k != name}, f"must hold .*without {name}")
        for name in good
    ]
    wrong += [
        (ValueError, good | {"version": 0}, "version must be 2, got 0"),
        (ValueError, good | {"num_samples": 31}, "num_samples must be the state's 30, got 31"),
        (ValueError, good | {"position": -1}, "position must be at least 0, got -1"),
        (TypeError, good | {"start": None}, "start must be an int, got NoneType"),
        (TypeError, good | {"num_replicas": 1.0}, "num_replicas must be an int, got float"),
        (TypeError, good | {"order": 3}, "order must be a tuple of one tensor or None, got int"),
        (TypeError, good | {"order": ([1],)}, "order must be a tuple of one tensor"),
        (TypeError, good | {"order": ()}, "order must be a tuple of one tensor"),
        (TypeError, good | {"num_samples": 30.0}, "num_samples must be an int, got float"),
        (TypeError, good | {"epoch": True}, "epoch must be an int, got bool"),
        (TypeError, good | {"epoch": math.nan}, "epoch must be an int, got float"),
        (ValueError, good | {"epoch": 10**20}, r"epoch must be below 2\*\*63, got 1000"),
        (ValueError, good | {"num_replicas": 0}, "num_replicas must be at least 1, got 0"),
        (
            ValueError,
            good | {"position": 10**20},
            "position must be at most the 15 ids",
        ),
        (ValueError, good | {"position": 8, "num_replicas": 2, "start": 1}, "at most the 7 ids"),
        (ValueError, good | {"start": 16}, "start must be at most the order's length 15, got 16"),
        (ValueError, good | {"order": None}, "position must be 0 where order is None, got 3"),
    ]
    ids = good["order"][0]
    for error, order, message in [
        (TypeError, ids.float(), "order must hold torch.int64, got torch.float32"),
        (TypeError, ids.int(), "order must hold torch.int64, got torch.int32"),
        (TypeError, ids > 3, "order must hold torch.int64, got torch.bool"),
        (TypeError, ids * torch.nan, "order must hold torch.int64, got torch.float32"),
        (TypeError, ids.to_sparse(), "order must have layout torch.strided"),
        (TypeError, ids.to("meta"), "order must lie in memory, got a tensor on meta"),
        (ValueError, ids[0], r"order must have shape \(L,\), got \(\)"),
        (ValueError, ids[None], r"order must have shape \(L,\), got \(1, 15\)"),
        (ValueError, ids + 20, r"order must be in \[0, 30\), got \d+ at position \d+"),
        (ValueError, ids - 30, r"order must be in \[0, 30\), got -\d+ at position 0"),
        (ValueError, ids.repeat(2), "order must hold each id once"),
        (ValueError, ids.repeat(3), "order must hold at most the 30 samples, got 45"),
    ]:
        wrong.append((error, good | {"order": (order,)}, message))
    for weights, error, message in [
        (torch.ones(30).double(), TypeError, "weights must hold torch.float32, got torch.float64"),
        (torch.full((30,), math.nan), ValueError, "weights must be finite, got nan at position 0"),
        (torch.ones(29), ValueError, r"weights must have shape \(30,\), got \(29,\)"),
    ]:
        wrong.append((error, good | {"weights": (weights,)}, message))
    for error, state_dict, message in wrong:
        with pytest.raises(error, match=rf"EMPSampler.load_state_dict: .*{message}"):
            sampler.load_state_dict(state_dict)
        assert sampler.state_dict() == good
    assert len(list(drawing)) == 12


def test_a_state_of_another_size_than_the_data_set_is_noticed():
    """Ids beyond the data set are errors of the data set; a checkpoint of another size is one of
    loading."""
    loader = loader_of(DataLoader, emp.EMPSampler(emp.EMPState(12)), 10)
    with pytest.raises(IndexError):
        list(loader)
    with pytest.raises(ValueError, match=r"num_samples must be this state's 10, got 12"):
        emp.EMPState(10).load_state_dict(emp.EMPState(12).state_dict())


def test_wrong_arguments():
    state = emp.EMPState(10)
    wrong = [
        (TypeError, (None,), {}),
        (TypeError, (state, True), {}),
        (TypeError, (state, "0.5"), {}),
        (ValueError, (state, 0.0), {}),
        (ValueError, (state, 1.5), {}),
        (ValueError, (state, 11), {}),
        (TypeError, (state,), {"sampling": True}),
        (ValueError, (state,), {"sampling": "best"}),
        (TypeError, (state,), {"shuffle": 1}),
        (TypeError, (state,), {"drop_last": None}),
        (TypeError, (state,), {"seed": 0.5}),
        (TypeError, (state,), {"seed": True}),
        (TypeError, (state,), {"warmup_epochs": 1.0}),
        (ValueError, (state,), {"warmup_epochs": -1}),
        (ValueError, (state,), {"anneal_epochs": 1}),
        (ValueError, (state,), {"anneal_epochs": 3, "epochs": 2}),
        (TypeError, (state,), {"epochs": "3"}),
        (ValueError, (state,), {"num_replicas": 0}),
        (ValueError, (state,), {"num_replicas": 2, "rank": 2}),
        (ValueError, (state,), {"rank": -1}),
        (TypeError, (state,), {"num_replicas": 2.0, "rank": 0}),
    ]
    for error, arguments, options in wrong:
        with pytest.raises(error, match=r"EMPSampler: .* must "):
            emp.EMPSampler(*arguments, **options)
