"""Ranks that die or do not call a collective: nothing is left half done, and the missing rank is
named."""

import itertools
import os
import time
import warnings

import oracle
import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from test_distributed_sharded import SHARED, values_of

import emp_kernels as emp

WAIT = 4.0  # seconds: the groups' timeout
COLLECTIVES = ["all_gather", "all_reduce", "all_to_all_single"]


def end_at(number, absent):
    """This process exits instead of its `number`-th collective, or sleeps first."""
    calls = itertools.count()

    def ending(collective):
        def instead(*arguments, **options):
            if next(calls) == number:
                time.sleep(3 * WAIT if absent else 0)
                os._exit(0)
            return collective(*arguments, **options)

        return instead

    for name in COLLECTIVES:
        setattr(dist, name, ending(getattr(dist, name)))


def contents(state):
    """Everything that a sync may change, bit for bit, including a sharded state's log."""
    found = [oracle.state_fingerprint(state)] if type(state) is emp.EMPState else []
    found += [getattr(state, name).tolist() for name in SHARED]
    found += [int(state.clock), state.epoch, state.synced_at]
    if type(state) is not emp.EMPState:
        found += [state.pending, [ids.tolist() for ids in state.drawn_ids(100)]]
        found += [part.tolist() for entries in state.logged() for part in entries]
    return found


def synced(rank, world, kind, who, number, absent=False):
    """For a sync in which rank `who` exits: this rank's error, and whether its state is unchanged;
    for a successful one: the number of collectives."""
    state = emp.EMPState(40) if kind == "whole" else emp.distributed.ShardedState(40)
    ids = torch.randint(40, (12,), generator=torch.Generator().manual_seed(rank))
    state.update(ids, values_of(ids, rank))
    logits, labels = torch.randn(5, 3), torch.arange(5) % 3
    emp.score_and_select(logits, labels, state, 2, indices=ids[:5])
    state.epoch = 3 + rank
    before = contents(state)
    dist.barrier()
    if rank == who:
        end_at(number, absent)
    began = time.monotonic()
    try:
        emp.distributed.sync(state)
    except RuntimeError as error:
        return str(error), contents(state) == before, time.monotonic() - began
    return "", contents(state) != before, 0.0


# The collectives of a sync: facts, how many entries, entries, selections; or facts, how many words,
# words, and that everything has arrived.
@pytest.mark.parametrize("kind", ["whole", "shared"])
@pytest.mark.parametrize(("who", "number"), [(2, 0), (1, 2), (2, 3), (0, 3)])
def test_a_sync_is_all_or_nothing(kind, who, number):
    heard = on_ranks(3, synced, kind, who, number, timeout=WAIT)
    assert heard.pop(who) is None
    for message, unchanged, seconds in heard:
        assert unchanged
        assert message.startswith("distributed.sync: all 3 ranks of the group must make this call")
        assert f"got nothing from rank {who} (it died" in message
        assert seconds < 3 * WAIT


@pytest.mark.parametrize("kind", ["whole", "shared"])
def test_a_sync_takes_four_collectives(kind):
    """So that the ends above are in its first and its last one."""
    assert on_ranks(3, synced, kind, 0, 4, timeout=WAIT) == [("", True, 0.0)] * 3


def epoch_start(rank, world, kind):
    """One rank does not begin the epoch that the others begin."""
    state = emp.EMPState(40) if kind == "whole" else emp.distributed.ShardedState(40)
    sampler = emp.EMPSampler(state, 0.5)
    if rank == 1:
        time.sleep(2 * WAIT)
        os._exit(0)
    with pytest.raises(RuntimeError, match="alike, got nothing from rank 1") as caught:
        iter(sampler)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["whole", "shared"])
def test_a_rank_that_stays_away_at_an_epochs_start_is_named(kind):
    first, away, last = on_ranks(3, epoch_start, kind, timeout=WAIT)
    assert away is None
    assert len(first) > 0
    assert len(last) > 0


def saving(rank, world):
    """The warnings when a state is saved after, or before, a sync."""
    told = []
    state = emp.EMPState(10)
    for _ in range(2):
        state.update(torch.tensor([rank]), values_of(torch.tensor([rank]), 0))
        for _ in range(2):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                state.state_dict()
            told.append([str(x.message) for x in caught if x.category is emp.EMPWarning])
            emp.distributed.sync(state)
    return told


def test_a_snapshot_without_a_sync_is_warned_of_once():
    for told in on_ranks(2, saving):
        assert [len(x) for x in told] == [1, 0, 0, 0]
        assert "call emp.distributed.sync(state) on all ranks before it is saved" in told[0][0]
    assert on_ranks(1, saving) == [[[]] * 4]
