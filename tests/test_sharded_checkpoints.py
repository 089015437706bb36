"""A sharded state and its sampler in checkpoints: on any number of ranks, and unsharded."""

import copy

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from ranks import on_ranks
from test_distributed_sharded import SHARED, differences, same, trained, values_of
from torch.utils.data import DataLoader

import emp_kernels as emp
from emp_kernels.choosing import SAMPLINGS

SIZE = 60
LAST = list(SAMPLINGS)[-1]


def made(kind, size=SIZE):
    if kind == "shared":
        return emp.distributed.ShardedState(size, dist.group.WORLD, beta=0.5)
    return emp.EMPState(size, beta=0.5)


def steps_of(rank, world, kind, sampling, folder, first, last):
    """Train steps [first, last) of 12 ids, after a checkpoint if `first` is not 0; checkpoint.

    Returns the ids, and the whole state after it."""
    state = made(kind)
    sampler = emp.EMPSampler(state, 0.4, seed=5, sampling=sampling)
    data, drawn, step = emp.IndexedDataset(torch.arange(SIZE)), [], first
    kept = {"state": state, "sampler": sampler}
    if first:
        checkpoint.load(kept, checkpoint_id=folder)
    while step < last:
        for ids, _ in DataLoader(data, batch_size=12 // world, sampler=sampler):
            drawn.append(ids.tolist())
            state.update(ids, values_of(ids, step))
            step += 1
            if step == last:
                break
    if kind == "whole":
        emp.distributed.sync(state)
    checkpoint.save(kept, checkpoint_id=folder)
    whole = emp.EMPState(SIZE, beta=0.5)
    whole.load_state_dict(state.state_dict())
    return drawn, {
        name: getattr(whole, name).tolist()
        for name in ("score", "seen_at", "updates", "selections", "_counted", "_drawn", "clock")
    }


def together(ranks):
    """The ids of each step, in the order that one process would draw them in."""
    return [
        [i for row in zip(*parts, strict=True) for i in row]
        for parts in zip(*(drawn for drawn, _ in ranks), strict=True)
    ]


@pytest.mark.parametrize(
    ("before", "after", "stop", "sampling"),
    [(1, 3, 3, "top"), (4, 2, 7, "gumbel")],
)
def test_any_number_of_ranks_resumes(before, after, stop, sampling, tmp_path):
    """In the warm-up, at its end and in mid-epoch after it: exactly the rest is drawn."""
    whole, part = str(tmp_path / "whole"), str(tmp_path / "part")
    ((alone, want),) = on_ranks(1, steps_of, "whole", sampling, whole, 0, 9)
    saved = on_ranks(before, steps_of, "shared", sampling, part, 0, stop)
    rest = on_ranks(after, steps_of, "shared", sampling, part, stop, 9)
    assert together(saved) + together(rest) == alone
    assert [state for _, state in rest] == [want] * after


def crossing(rank, world, folder, n):
    """A saved state loads into either kind, with and without torch.distributed.checkpoint."""
    shared, state = made("shared", n), made("whole", n)
    for x in (shared, state):
        ids = torch.arange(n)[rank :: 2 * world]
        x.update(ids, values_of(ids, rank))
        first = shared.owned.start if x is state else 0
        x.selections[first : first + min(1, len(shared.owned))] += 1
        emp.distributed.sync(x)
        x.epoch, x.warned = 5, True
    wrong = []
    for source, into in ((shared, "whole"), (state, "shared"), (shared, "shared")):
        path = f"{folder}/{into}{type(source).__name__}"
        checkpoint.save({"state": source}, checkpoint_id=path)
        loaded, copied = made(into, n), made(into, n)
        checkpoint.load({"state": loaded}, checkpoint_id=path)
        copied.load_state_dict(source.state_dict())
        for x in (loaded, copied):
            if into == "shared":
                wrong += differences(x, state)
            else:
                wrong += differences(shared, x)
            wrong += [x.synced_at] if x.synced_at != int(x.clock) and world > 1 else []
    return wrong


@pytest.mark.parametrize(("world", "n"), [(2, 0), (7, 9), (3, 60)])
def test_a_state_of_either_kind_loads_into_the_other(world, n, tmp_path):
    """Also of uneven and empty parts."""
    assert on_ranks(world, crossing, str(tmp_path), n) == [[]] * world


def resharded(rank, world, folder, n):
    state = made("shared", n)
    checkpoint.load({"state": state}, checkpoint_id=f"{folder}/sharedShardedState")
    return state.updates.tolist(), state.epoch


@pytest.mark.parametrize(("before", "after"), [(2, 7), (4, 3)])
def test_parts_of_other_sizes(before, after, tmp_path):
    on_ranks(before, crossing, str(tmp_path), 9)
    loaded = on_ranks(after, resharded, str(tmp_path), 9)
    want = [int(i % (2 * before) < before) for i in range(9)]
    assert [count for updates, _ in loaded for count in updates] == want
    assert all(epoch == 5 for _, epoch in loaded)


def samplers(rank, world):
    """A sampler's dictionary can be moved between both kinds of states, in mid-epoch."""
    wrong = []
    for options in ({}, {"sampling": "gumbel"}, {"shuffle": False}, {"sampling": LAST}):
        for epochs in (0, 2):
            shared, state = made("shared"), made("whole")
            pairs = [emp.EMPSampler(x, 0.4, seed=2, **options) for x in (shared, state)]
            for each in pairs:
                trained(each.state, each, epochs, 16)
            for source in pairs:
                iterator = iter(source)
                begun = [next(iterator) for _ in range(3)]
                saved = source.state_dict()
                rest = list(iterator)
                for into in pairs:
                    other = emp.EMPSampler(into.state, 0.4, seed=9, **options)
                    other.load_state_dict(saved)
                    again = copy.copy(other)
                    if not (list(other) == rest == list(again)) or len(begun) != 3:
                        wrong.append((options, epochs, rest))
    return wrong


@pytest.mark.parametrize("world", [1, 3])
def test_a_running_order_goes_from_either_kind_to_the_other(world):
    assert on_ranks(world, samplers) == [[]] * world


def refused(rank, world):
    """Invalid checkpoints are refused, and change nothing."""
    state = made("shared")
    state.update(torch.arange(9), values_of(torch.arange(9), 0))
    emp.distributed.sync(state)
    saved, own = state.state_dict(), made("whole").state_dict()
    before = [getattr(state, name).clone() for name in SHARED]
    nan = torch.full((SIZE,), torch.nan)
    for error, pattern, entries in [
        (ValueError, "num_samples must be this state's 60, got 7", saved | {"num_samples": 7}),
        (ValueError, "beta must be this state's 0.5, got 1", saved | {"beta": 1.0}),
        (ValueError, r"score must have shape \(60,\), got \(20,\)", own | {"score": nan[:20]}),
        (ValueError, "score must be above -inf, got nan", own | {"score": nan}),
        (TypeError, "score must be a torch.float32 tensor", own | {"score": nan.double()}),
        (ValueError, "state_dict must hold", {}),
        (TypeError, "state_dict must be", 3),
    ]:
        with pytest.raises(error, match=rf"ShardedState.load_state_dict: {pattern}"):
            state.load_state_dict(entries)
    changed = [x for x, y in zip(SHARED, before, strict=True) if not same(getattr(state, x), y)]
    sampler = emp.EMPSampler(state, 0.4)
    list(sampler), next(iter(sampler))
    saved = sampler.state_dict()
    for error, pattern, entries in [
        (TypeError, "shared must be", {"shared": 3}),
        (TypeError, "length must be an int", {"shared": ("a", 1, False)}),
        (TypeError, "whole must be a bool", {"shared": (24, 1, 0)}),
        (TypeError, "kept must be a bool tensor", {"kept": nan}),
        (ValueError, "kept must have shape", {"kept": nan[1:] > 0}),
        (ValueError, "start must be at most the order's length 24", {"start": 25}),
    ]:
        with pytest.raises(error, match=rf"EMPSampler.load_state_dict: {pattern}"):
            sampler.load_state_dict(saved | entries)
    return changed


def test_what_is_no_checkpoint_is_refused():
    assert on_ranks(3, refused, timeout=30) == [[]] * 3
