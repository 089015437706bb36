"""Loops that would not train as intended get one warning with the fix; correct loops get none."""

import copy
import warnings

import pytest
import torch
from ranks import on_ranks
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    Subset,
    TensorDataset,
)
from torchdata.stateful_dataloader import StatefulDataLoader

import emp_kernels as emp


def write(state, ids):
    logits, labels = torch.zeros(len(ids), 3), torch.zeros(len(ids), dtype=torch.int64)
    state.update(ids, emp.score(logits, labels))


def told(function, *arguments):
    """The package's warnings from a call, each of which must show a line of this file."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function(*arguments)
    caught = [warning for warning in caught if issubclass(warning.category, emp.EMPWarning)]
    assert {warning.filename for warning in caught} <= {__file__}
    return [str(warning.message) for warning in caught]


def indexed(n):
    return emp.IndexedDataset(TensorDataset(torch.zeros(n, 2), torch.zeros(n)))


def epochs(count, sampler, writes=True, data=None, loader=DataLoader, **options):
    """A loop; the package's warnings."""

    def loop():
        batches = loader(data or indexed(60), batch_size=7, sampler=sampler, **options)
        for _ in range(count):
            for ids, _ in batches:
                if writes:
                    write(sampler.state, ids)

    return told(loop)


# ---- what never reaches the state


@pytest.mark.parametrize("warmup", [0, 1, 2])
def test_a_loop_that_never_writes_is_told_once(warmup):
    state = emp.EMPState(60)
    sampler = emp.EMPSampler(state, 0.3, warmup_epochs=warmup)
    assert not epochs(max(1, warmup), sampler, writes=False)
    (message,) = epochs(3, sampler, writes=False)
    first = max(1, warmup)
    assert message.startswith(f"EMPSampler: epoch {first} keeps 18 of 60 samples, and nothing was")
    assert f"since epoch {first - 1} began" in message
    assert "pass state, indices=ids to emp.cross_entropy" in message
    assert not epochs(2, emp.EMPSampler(state, 0.3, warmup_epochs=0), writes=False)  # once a state


def test_a_loop_that_stops_writing_is_told():
    sampler = emp.EMPSampler(emp.EMPState(60), 0.3)
    assert not epochs(4, sampler)
    assert len(epochs(2, sampler, writes=False)) == 1


def test_epochs_of_everything_need_no_scores():
    sampler = emp.EMPSampler(emp.EMPState(60), 1.0, warmup_epochs=0)
    assert not epochs(4, sampler, writes=False)


def test_scores_written_before_an_epoch_are_written():
    """The refresh protocol: everything is scored as an epoch begins, and nothing in it."""
    state = emp.EMPState(60)
    sampler = emp.EMPSampler(state, 0.3, warmup_epochs=0)
    for _ in range(3):
        write(state, torch.arange(60))
        assert not epochs(1, sampler, writes=False)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("loader", [DataLoader, StatefulDataLoader])
def test_a_right_loop_hears_nothing(loader, workers):
    """Neither do peeks at a batch, resumes, copies and set_epoch."""
    sampler = emp.EMPSampler(emp.EMPState(60), 0.3)

    def looks():
        for _ in range(2):
            next(iter(loader(indexed(60), batch_size=7, sampler=sampler, num_workers=workers)))

    for epoch in range(4):
        assert not told(looks)
        assert not epochs(1, sampler, loader=loader, num_workers=workers)
        assert not told(sampler.set_epoch, epoch + 1)
        assert not told(sampler.load_state_dict, sampler.state_dict())
        sampler = copy.deepcopy(sampler)
    sampler.set_epoch(9)
    assert not told(list, sampler)


def test_an_epoch_resumed_behind_its_last_batch_is_no_epoch_without_scores():
    state = emp.EMPState(60)
    sampler = emp.EMPSampler(state, 0.3)
    assert not epochs(2, sampler)
    drawing = iter(sampler)
    drawn = [next(drawing) for _ in range(18)]
    saved = sampler.state_dict()
    write(state, torch.tensor(drawn))
    sampler.load_state_dict(saved)
    assert not told(list, sampler)
    assert not told(list, sampler)


# ---- never-seen samples


@pytest.mark.parametrize("sampling", ["top", "gumbel"])
def test_never_seen_samples_are_chosen_by_seed_and_epoch(sampling):
    state = emp.EMPState(1000)
    write(state, torch.arange(100))
    options = {"sampling": sampling, "warmup_epochs": 0}

    def drawn(seed, epoch=0, **more):
        sampler = emp.EMPSampler(state, 300, seed=seed, **options | more)
        sampler.set_epoch(epoch)
        return list(sampler)

    counts = torch.zeros(1000)
    for seed in range(400):
        ids = drawn(seed)
        assert len(set(ids)) == 300
        counts[ids] += 1
    assert counts[:100].sum() == 0  # what has a score comes behind
    expected = 400 * 300 / 900
    assert ((counts[100:] - expected).abs() < 6 * (expected * 2 / 3) ** 0.5).all()
    assert drawn(3) == drawn(3)
    assert set(drawn(3)) != set(drawn(4))
    assert set(drawn(3)) != set(drawn(3, epoch=1))
    assert drawn(3, shuffle=False) == sorted(drawn(3))
    assert state.select(300).tolist() == list(range(100, 400))  # as the contract has it


def test_few_never_seen_samples_are_all_drawn():
    state = emp.EMPState(100)
    ids = torch.tensor([i for i in range(100) if i not in (3, 50, 97)])
    write(state, ids)
    for keep in (3, 4, 0.3):
        drawn = sorted(emp.EMPSampler(state, keep, warmup_epochs=0))
        assert drawn == state.select(keep).tolist()
        assert {3, 50, 97} <= set(drawn)


def test_never_seen_samples_resume():
    state = emp.EMPState(200)
    sampler = emp.EMPSampler(state, 0.3, warmup_epochs=0, seed=8)
    drawing = iter(sampler)
    for _ in range(20):
        next(drawing)
    resumed = emp.EMPSampler(emp.EMPState(200), 0.3, warmup_epochs=0, seed=8)
    resumed.load_state_dict(sampler.state_dict())
    assert list(resumed) == list(drawing)


def never_seen_of(rank, world):
    state = emp.EMPState(90)
    if rank == world - 1:  # the others learn of it as the epoch begins
        write(state, torch.arange(10))
    return list(emp.EMPSampler(state, 0.4, warmup_epochs=0, seed=2))


def test_never_seen_samples_are_the_same_on_all_ranks():
    (alone,) = on_ranks(1, never_seen_of)
    assert len(alone) == 36
    assert min(alone) >= 10
    parts = on_ranks(2, never_seen_of)
    assert [i for step in zip(*parts, strict=True) for i in step] == alone


# ---- data sets that do not match


@pytest.mark.parametrize("size", [50, 70])
def test_a_state_of_another_size(size):
    def loop(state):
        loader = DataLoader(indexed(60), batch_size=7, sampler=emp.EMPSampler(state))
        next(iter(loader))

    state = emp.EMPState(size)
    (message,) = told(loop, state)
    assert f"as many samples as the loader's data set, 60, got {size}: " in message
    assert ("from 50 on are never drawn" if size == 50 else "from 60 on are not in it") in message
    assert "EMPState(len(dataset))" in message
    assert not told(loop, state)  # once a state


def test_a_subset_shorter_than_the_state():
    def loop(data):
        sampler = emp.EMPSampler(emp.EMPState(60))
        for _ in DataLoader(data, batch_size=7, sampler=sampler):
            pass

    wording = "data set, 4, got 60: ids from 4 on are not in it"
    with pytest.warns(emp.EMPWarning, match=wording), pytest.raises(IndexError):
        loop(emp.IndexedDataset(Subset(indexed(60).dataset, [5, 9, 40, 2])))


def test_a_subset_of_an_indexed_data_set():
    data = Subset(Subset(indexed(60), range(50)), range(40))
    messages = epochs(1, emp.EMPSampler(emp.EMPState(40)), data=data)
    (message,) = messages
    assert "IndexedDataset(Subset(dataset, ids))" in message
    right = emp.IndexedDataset(Subset(indexed(60).dataset, range(40)))
    assert not epochs(3, emp.EMPSampler(emp.EMPState(40)), data=right)


class Own(Dataset):
    """A data set that may yield ids itself."""

    def __init__(self, inner):
        self.inner = inner

    def __len__(self):
        return len(self.inner)

    def __getitem__(self, i):
        return i, self.inner[i]


X, Y = torch.randn(20, 3), torch.zeros(20, dtype=torch.int64)


@pytest.mark.parametrize(
    "data",
    [
        TensorDataset(X, Y),
        TensorDataset(torch.zeros(20, 20, dtype=torch.int64) + torch.arange(20), Y),
        Subset(TensorDataset(X, Y), range(20)),
        [*zip(X, Y.tolist(), strict=True)],
    ],
    ids=["tensors", "integers", "subset", "list"],
)
def test_a_data_set_without_ids(data):
    def loop():
        for ids, (_x, _y) in DataLoader(data, batch_size=4, sampler=sampler):
            write(sampler.state, ids)

    sampler = emp.EMPSampler(emp.EMPState(20))
    wording = "yields no sample ids: wrap it, .*IndexedDataset"
    with pytest.warns(emp.EMPWarning, match=wording), pytest.raises(ValueError, match="unpack"):
        loop()


@pytest.mark.parametrize(
    "data",
    [
        emp.IndexedDataset(TensorDataset(X, Y)),
        Own(TensorDataset(X, Y)),
        TensorDataset(torch.arange(20), X),
        [(i, x) for i, x in enumerate(X)],
        [{"x": x, "sample": (i, "name")} for i, x in enumerate(X)],
        emp.IndexedDataset([*X]),
    ],
    ids=["indexed", "own", "numbered tensors", "numbered list", "dictionaries", "indexed list"],
)
def test_data_sets_that_may_tell_ids_hear_nothing(data):
    def loop():
        for _ in DataLoader(data, batch_size=4, sampler=emp.EMPSampler(emp.EMPState(20))):
            pass

    assert not told(loop)


def test_a_sampler_without_a_loader_knows_no_data_set():
    assert not told(list, BatchSampler(emp.EMPSampler(emp.EMPState(20)), 6, False))


@pytest.mark.parametrize("drop_last", [False, True])
def test_a_distributed_sampler_around_it_is_refused(drop_last):
    """It would use the number of ids as the size of a data set."""
    sampler = emp.EMPSampler(emp.EMPState(20))
    options = {"num_replicas": 2, "rank": 0, "drop_last": drop_last}
    with pytest.raises(TypeError, match="EMPSampler: sampler must be given to the DataLoader as"):
        DistributedSampler(sampler, **options)
    assert len(DistributedSampler(indexed(20), **options)) == 10
    assert len(sampler) == len(DataLoader(indexed(20), sampler=sampler)) == 20


# ---- keep


def test_keep_of_one():
    with pytest.warns(emp.EMPWarning, match=r"keep=1 keeps one of 500 .*keep=1\.0 for all") as got:
        emp.EMPSampler(emp.EMPState(500), 1)
    assert [warning.filename for warning in got] == [__file__]
    state = emp.EMPState(500)
    for keep in (1.0, 2, 500, 1 / 500):
        assert not told(emp.EMPSampler, state, keep)
    assert not told(emp.EMPSampler, emp.EMPState(5), 1)


# ---- checkpoints in mid-epoch


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("loader", [DataLoader, StatefulDataLoader])
def test_a_checkpoint_that_counts_what_was_prefetched(loader, workers):
    sampler = emp.EMPSampler(emp.EMPState(60), 1.0)
    batches = loader(indexed(60), batch_size=7, sampler=sampler, num_workers=workers)
    assert not told(sampler.state_dict)
    for step, _ in enumerate(batches, 1):
        if loader is StatefulDataLoader:
            assert not told(batches.state_dict)
        if step == len(batches):
            assert not told(sampler.state_dict)  # all that was drawn was handed over
        assert not told(lambda step=step: sampler.state_dict(position=7 * step))
    assert not told(sampler.state_dict)  # nothing is prefetched behind the end
    drawing = iter(batches)
    next(drawing)
    messages = told(sampler.state_dict)
    if workers:
        (message,) = messages
        assert "StatefulDataLoader" in message
        assert "position=ids trained since the epoch began or was last resumed)" in message
        assert not told(sampler.state_dict)
    else:
        assert not messages
    list(drawing)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_position_counts_from_the_last_resume(workers):
    """Counted so, two resumes in one epoch lose nothing; counted from its start, it warns."""
    seen, since_start = [], 0
    sampler = emp.EMPSampler(emp.EMPState(400), 1.0)
    for batches in (5, 8, None):
        loader = DataLoader(indexed(400), batch_size=20, sampler=sampler, num_workers=workers)
        drawing = iter(loader)
        drawn = [ids for _, (ids, _) in zip(range(batches or 99), drawing, strict=False)]
        seen += drawn
        position = sum(map(len, drawn))
        since_start += position
        saved = sampler.state_dict(position=position)
        if batches == 8:
            undrawn = r"\d+ of 300 were drawn since, got 260: the ids in between"
            with pytest.warns(emp.EMPWarning, match=undrawn):
                sampler.state_dict(position=since_start)
        del drawing
        sampler = emp.EMPSampler(emp.EMPState(400), 1.0)
        sampler.load_state_dict(saved)
    assert sorted(torch.cat(seen).tolist()) == list(range(400))
    assert sampler.epoch == 1


def test_the_category():
    assert issubclass(emp.EMPWarning, UserWarning)
