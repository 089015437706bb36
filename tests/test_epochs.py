"""The running epoch, its length and position, in typical training loops."""

import copy
import gc
import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import emp_kernels as emp

# Many loops here write no scores, of which samplers warn (tests/test_loop_checks.py).
pytestmark = pytest.mark.filterwarnings("ignore::emp_kernels.EMPWarning")


def seen_state(n, seed=0):
    state = emp.EMPState(n)
    rescore(state, seed)
    return state


def rescore(state, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(state.num_samples, 5, generator=generator)
    labels = torch.zeros(state.num_samples, dtype=torch.int64)
    state.update(torch.arange(state.num_samples), emp.score(logits, labels))


def loader_of(sampler, batch_size, workers=0, kind=DataLoader, **options):
    data = emp.IndexedDataset(torch.arange(sampler.state.num_samples) * 10)
    return kind(data, batch_size=batch_size, sampler=sampler, num_workers=workers, **options)


def ids_of(batches):
    return [ids.tolist() for ids, _ in batches]


LOADERS = [
    (DataLoader, {}),
    (DataLoader, {"workers": 2}),
    (DataLoader, {"workers": 1, "prefetch_factor": 5}),
    (DataLoader, {"workers": 2, "persistent_workers": True}),
    (StatefulDataLoader, {}),
    (StatefulDataLoader, {"workers": 2}),
]


@pytest.mark.parametrize(("kind", "options"), LOADERS)
@pytest.mark.parametrize("batch_size", [10, 8])
def test_a_loop_finds_its_last_batch(kind, options, batch_size):
    """However far workers have prefetched, the length is the running epoch's until the loop has
    ended."""
    sampler = emp.EMPSampler(seen_state(100), 0.3)
    loader = loader_of(sampler, batch_size, kind=kind, **options)
    persistent = "persistent_workers" in options
    for epoch in range(3):
        whole = sampler.epoch_length(epoch)
        count = -(-whole // batch_size)
        if not persistent:  # which holds its iterator from epoch to epoch
            assert (len(sampler), len(loader)) == (whole, count)
        steps = []
        for i, _ in enumerate(loader, 1):
            assert (len(sampler), len(loader)) == (whole, count)
            if i % 4 == 0 or i == len(loader):
                steps.append(i)
        assert steps == sorted({*range(4, count, 4), count})
        assert sampler.epoch == epoch + 1
    assert [sampler.epoch_length(epoch) for epoch in (0, 1, 5)] == [100, 30, 30]


def test_the_length_of_an_epoch_is_refused_in_words():
    sampler = emp.EMPSampler(seen_state(10))
    for error, wrong in (
        (ValueError, -1),
        (ValueError, 2**63),
        (TypeError, 1.0),
        (TypeError, True),
    ):
        for name in ("epoch_length", "set_epoch"):
            with pytest.raises(error, match=rf"EMPSampler.{name}: epoch must "):
                getattr(sampler, name)(wrong)


def test_the_length_goes_on_when_the_iterator_is_let_go():
    sampler = emp.EMPSampler(seen_state(100), 0.3)
    loader = loader_of(sampler, 10)
    batches = iter(loader)
    for _ in range(10):
        next(batches)
    assert len(loader) == 10
    assert next(batches, None) is None
    del batches
    assert len(loader) == 3
    batches = iter(BatchSampler(sampler, 8, False))
    for _ in range(4):
        next(batches)
    assert len(sampler) == 30
    sampler.set_epoch(0)
    assert len(sampler) == 100


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batches", [0, 1, 5, 11])
def test_set_epoch_of_the_running_epoch_changes_nothing(workers, batches):
    one, other = (emp.EMPSampler(seen_state(60), 0.5) for _ in range(2))
    want = ids_of(loader_of(other, 5))
    loader = loader_of(one, 5, workers)
    drawing = iter(loader)
    got = ids_of(itertools.islice(drawing, batches))
    one.set_epoch(0)
    saved = one.state_dict(position=5 * batches)
    assert (saved["epoch"], saved["position"]) == (0, 5 * batches)
    if batches or workers:
        assert saved["order"] is not None
    got += ids_of(itertools.islice(drawing, 1))
    one.set_epoch(0)
    got += ids_of(drawing)
    assert got == want
    assert one.epoch == one.state.epoch == other.epoch == 1
    assert torch.equal(one.state.selections, other.state.selections)


def test_set_epoch_of_the_running_epoch_keeps_its_order():
    sampler = emp.EMPSampler(seen_state(60), 0.5)
    batches = iter(loader_of(sampler, 5))
    next(batches)
    sampler.set_epoch(0)
    ids, _ = next(batches)
    saved = sampler.state_dict(position=5)
    assert saved["order"][0][5:10].tolist() == ids.tolist()

    sampler = emp.EMPSampler(seen_state(60), 0.5)
    drawing = iter(sampler)
    for _ in range(8):
        next(drawing)
    sampler.set_epoch(0)
    assert len(list(drawing)) == 52
    assert sampler.epoch == 1


def test_set_epoch_of_another_epoch_overrides():
    sampler = emp.EMPSampler(seen_state(60), 0.5)
    drawing = iter(sampler)
    next(drawing)
    sampler.set_epoch(4)
    assert (sampler.epoch, len(sampler)) == (4, 30)
    assert sampler.state_dict()["order"] is None
    assert len(list(drawing)) == 59  # the iterator goes on, and is nobody's epoch
    assert sampler.epoch == 4
    assert len(list(sampler)) == 30
    assert sampler.epoch == 5


@pytest.mark.parametrize(("kind", "options"), LOADERS)
def test_a_look_at_a_batch_uses_nothing_up(kind, options):
    sampler = emp.EMPSampler(seen_state(24), 0.5)
    loader = loader_of(sampler, 4, kind=kind, **options)
    for epoch in range(2):
        first = next(iter(loader))[0].tolist()
        gc.collect()
        assert sampler.epoch == epoch
        assert next(iter(loader))[0].tolist() == first
        batches = ids_of(loader)
        assert batches[0] == first
        assert len({i for ids in batches for i in ids}) == 4 * len(batches) == (12 if epoch else 24)
    batches = iter(loader)
    got = ids_of([next(batches)])
    next(iter(loader_of(sampler, 4)))  # a look in mid-loop
    saved = sampler.state_dict(position=4)
    got += ids_of(batches)
    assert saved["order"][0].tolist() == [i for ids in got for i in ids]
    assert sampler.epoch == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_that_was_left_is_drawn_anew(workers):
    state = seen_state(24)
    sampler = emp.EMPSampler(state, 0.5, warmup_epochs=0)
    for batch in loader_of(sampler, 4, workers):
        assert batch[0].tolist()
        break
    gc.collect()
    assert (sampler.epoch, len(sampler)) == (0, 12)
    rescore(state, 5)
    assert sorted(sampler) == state.select(0.5).tolist()  # by the scores of now
    assert sampler.epoch == 1


def test_loaders_side_by_side():
    """zip stops at the shorter one, whose epoch is over; the other was left."""
    short, long = emp.EMPSampler(seen_state(20), 0.5), emp.EMPSampler(seen_state(24), 0.5)
    pairs = list(zip(loader_of(short, 4), loader_of(long, 4), strict=False))
    assert len(pairs) == 5
    gc.collect()
    assert (short.epoch, long.epoch) == (1, 0)
    assert len(list(long)) == 24

    shared = emp.EMPSampler(seen_state(20), 0.5)  # by two loaders: one epoch
    for one, other in zip(loader_of(shared, 4), loader_of(shared, 4), strict=True):
        assert torch.equal(one[0], other[0])
    assert shared.epoch == 1


@pytest.mark.parametrize("resumed_at", [(0, 5), (1, 0), (2, 4), (3, 12)])
def test_a_counter_that_begins_at_0_behind_a_resume(resumed_at):
    epoch, position = resumed_at
    whole = emp.EMPSampler(seen_state(24), 0.5)
    for _ in range(epoch):
        list(whole)
    drawing = iter(whole)
    for _ in range(position):
        next(drawing)
    saved = whole.state_dict()
    wanted = [list(drawing), list(whole), list(whole)]
    sampler = emp.EMPSampler(seen_state(24), 0.5)
    sampler.load_state_dict(saved)
    got = []
    for counter in range(3):
        for _ in range(2):
            sampler.set_epoch(counter)
        got.append(list(sampler))
    assert got == wanted
    assert sampler.epoch == epoch + 3


N, KEEP = 11, 0.4


class Loop:
    """A list-based model of the contract for loops over ranks in step."""

    def __init__(self, state, ranks):
        self.state, self.ranks, self.number = state, ranks, 0
        self.order = None  # of the running epoch, all ranks'
        self.start = self.drawn = 0
        self.held = self.stopped = self.resumed = self.begun = False
        self.resumed_at, self.shift, self.named = None, 0, 0

    def length(self, number):
        return -(-(N if number == 0 else 4) // self.ranks)

    @property
    def share(self):
        rest = self.order[self.start :]
        size = -(-len(rest) // self.ranks) * self.ranks
        return [*rest, *itertools.islice(itertools.cycle(self.order), size - len(rest))]

    @property
    def over(self):
        whole = self.order is not None and self.drawn * self.ranks == len(self.share)
        return self.begun and (self.stopped or (whole and self.drawn > 0))

    @property
    def coming(self):
        return self.number + self.over

    def begin(self):
        if self.order is None or not self.resumed or self.over:
            self.number, self.start, self.resumed = self.coming, 0, False
            fresh = emp.EMPSampler(copy.deepcopy(self.state), KEEP, seed=3)
            fresh.set_epoch(self.number)
            self.order = list(fresh)
            chosen = range(N) if self.number == 0 else self.state.select(KEEP).tolist()
            assert sorted(self.order) == list(chosen)
        self.drawn, self.stopped, self.held, self.begun = 0, False, True, True

    def draw(self, count):
        got = self.share[self.drawn * self.ranks : (self.drawn + count) * self.ranks]
        self.stopped |= count > len(got) // self.ranks
        self.drawn += len(got) // self.ranks
        return got

    def forget(self, number):
        self.number, self.order, self.start, self.drawn = number, None, 0, 0
        self.held = self.stopped = self.resumed = self.begun = False

    def set_epoch(self, number):
        if self.resumed_at is not None:
            zero = number == 0 and self.resumed_at == self.coming
            self.shift, self.resumed_at = self.resumed_at if zero else 0, None
        elif number not in (self.named, self.named + 1):
            self.shift = 0
        self.named = number
        number += self.shift
        told = self.over and (self.stopped or not self.held)
        if self.order is None or number != self.number or told:
            self.forget(number)

    def resume(self, position, ranks):
        """From what was saved with `position`, or None."""
        over = self.over and self.stopped and not self.held
        if position is not None and self.begun:
            over = position >= len(self.share) // self.ranks
        if self.order is None or over:
            self.forget(self.number + over)
        else:
            drawn = self.drawn if position is None else position
            self.start = min(self.start + drawn * self.ranks, len(self.order))
            self.drawn, self.resumed = 0, True
            self.held = self.stopped = self.begun = False
        self.ranks = ranks
        self.resumed_at, self.shift, self.named = self.number, 0, 0


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.integers(0, 6), st.none()),
        st.tuples(st.just("begin"), st.just(4), st.none()),
        st.tuples(st.just("draw"), st.integers(1, 6), st.none()),
        st.tuples(st.just("finish"), st.none(), st.none()),
        st.tuples(st.just("drop"), st.none(), st.none()),
        st.tuples(st.just("set_epoch"), st.integers(0, 3), st.none()),
        st.tuples(st.just("update"), st.integers(0, 99), st.none()),
        st.tuples(st.just("resume"), st.none() | st.integers(0, 8), st.integers(1, 3)),
    ),
    min_size=12,
    max_size=25,
)


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(operations=OPERATIONS, ranks=st.integers(1, 3))
def test_any_history_is_that_of_the_contract(operations, ranks):
    state = seen_state(N)

    def build(ranks):
        options = {"num_replicas": ranks, "seed": 3}
        return [emp.EMPSampler(state, KEEP, rank=rank, **options) for rank in range(ranks)]

    def drawn(iterators, count):
        parts = [[*itertools.islice(iterator, count)] for iterator in iterators]
        return [i for step in zip(*parts, strict=True) for i in step]

    loop, samplers, iterators = Loop(state, ranks), build(ranks), None
    for operation, value, other in operations:
        if operation == "begin":
            iterators = None
            loop.held = False
            loop.begin()
            iterators = [iter(sampler) for sampler in samplers]
            assert drawn(iterators, value) == loop.draw(value)
        elif operation == "draw" and iterators:
            left = len(loop.share) // loop.ranks - loop.drawn
            assert drawn(iterators, value) == loop.draw(value)
            assert value <= left or loop.stopped
        elif operation == "finish" and iterators:
            assert drawn(iterators, 100) == loop.draw(100)
        elif operation == "drop":
            iterators, loop.held = None, False
        elif operation == "set_epoch":
            loop.set_epoch(value)
            for sampler in samplers:
                sampler.set_epoch(value)
            if not loop.held:
                iterators = None
        elif operation == "update":
            rescore(state, value)
        elif operation == "resume":
            if value is not None:
                value = min(value, loop.drawn)
            saved = samplers[-1].state_dict(position=value)
            assert saved["num_samples"] == N
            iterators, samplers = None, build(other)
            loop.resume(value, other)
            for sampler in samplers:
                sampler.load_state_dict(saved)
        running = loop.number if loop.held else loop.coming
        for sampler in samplers:
            assert sampler.epoch == loop.coming
            assert len(sampler) == loop.length(running)
            assert [sampler.epoch_length(e) for e in range(3)] == [*map(loop.length, range(3))]
