"""distributed.sync and training on several gloo processes, compared with one process."""

import oracle
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from ranks import on_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import emp_kernels as emp

INF = float("inf")


def scores_of(values):
    values = torch.tensor(values, dtype=torch.float32)
    return emp.Scores(values * 2, values, values / 3, values)


def contents(state):
    return {
        name: value.tolist() if isinstance(value, torch.Tensor) else value
        for name, value in state.state_dict().items()
    }


def merge(rank, world, calls, rounds=1):
    """Each rank makes its calls of update, in step or not; all sync."""
    state = emp.EMPState(9)
    for _ in range(rounds):
        for ids, values in calls[rank]:
            state.update(torch.tensor(ids), scores_of(values))
        emp.distributed.sync(state, None)
    return contents(state)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_most_recent_entry_of_each_sample_is_kept(world):
    calls = [
        # rank 0 writes 0 and 1 early, 2 late; 8 is written by nobody
        [([0, 1], [0.1, 0.2]), ([3], [0.3]), ([2], [0.4])],
        # rank 1 writes 1 later than rank 0, and 2 earlier; 5 in the same step as rank 2
        [([2], [1.1]), ([1], [1.2]), ([5], [1.3])],
        [([6], [2.1]), ([6], [2.2]), ([5, 7], [2.3, 2.4])],
        [([3], [3.1]), ([4], [3.2])],
    ][:world]
    merged = on_ranks(world, merge, calls)
    assert all(state == merged[0] for state in merged)
    want = {0: 0.1, 1: 0.2, 2: 0.4, 3: 0.3}
    if world > 1:
        want |= {1: 1.2, 5: 1.3}
    if world > 2:
        want |= {6: 2.2, 5: 2.3, 7: 2.4, 4: 3.2}
    scores = scores_of([want.get(i, 0.0) for i in range(9)])
    for name in ("loss", "entropy", "score"):
        unseen = INF if name == "score" else 0.0
        values = getattr(scores, name).tolist()
        assert merged[0][name] == [values[i] if i in want else unseen for i in range(9)]
    assert merged[0]["clock"] == 3
    assert merged[0]["updates"] == [2 if i == 6 and world > 2 else int(i in want) for i in range(9)]


def test_a_second_round_overwrites_the_first():
    calls = [[([0], [1.0]), ([1], [2.0])], [([1], [3.0])]]
    merged = on_ranks(2, merge, calls, 2)
    assert merged[0] == merged[1]
    assert merged[0]["loss"][:2] == [1.0, 2.0]
    assert merged[0]["seen_at"][:2] == [3, 4]
    assert merged[0]["clock"] == merged[0]["synced_at"] == 4
    assert merged[0]["updates"][:2] == [2, 2]


def large(rank, world):
    """Ids above 2**24 and scores of every bit pattern arrive as they are."""
    size = 2**24 + 40
    state = emp.EMPState(size)
    ids = torch.arange(size - 32 + rank, size, 2)
    values = torch.arange(1.0, 1 + len(ids)) * (1 + 2**-20) + rank * 2**-10
    state.update(ids, emp.Scores(values, values, values, values))
    state.selections[ids] += 1
    emp.distributed.sync(state, dist.group.WORLD)
    tail = slice(size - 40, None)
    seen = state.updates.nonzero()[:, 0]
    return seen.tolist(), [getattr(state, x)[tail].tolist() for x in ("score", "selections")]


def test_ids_above_2_to_the_24_are_exact():
    size = 2**24 + 40
    got = on_ranks(2, large)
    assert got[0] == got[1]
    assert got[0][0] == list(range(size - 32, size))
    values = torch.arange(1.0, 17.0) * (1 + 2**-20)
    want = torch.stack([values, values + 2**-10], 1).flatten()
    assert got[0][1] == [[INF] * 8 + want.tolist(), [0] * 8 + [1] * 32]


def disagree(rank, world, what):
    state = emp.EMPState(10 + rank) if what == "num_samples" else emp.EMPState(10, beta=1.0 + rank)
    state.update(torch.tensor([rank]), scores_of([1.0]))
    before = oracle.state_fingerprint(state)
    with pytest.raises(ValueError, match=rf"distributed.sync: state must have one {what} on all"):
        emp.distributed.sync(state)
    return oracle.state_fingerprint(state) == before


@pytest.mark.parametrize("what", ["num_samples", "beta"])
def test_states_of_different_sizes_or_betas_are_refused_on_all_ranks(what):
    assert on_ranks(2, disagree, what) == [True, True]


def test_without_a_process_group():
    with pytest.raises(RuntimeError, match=r"distributed.sync: a process group must be initial"):
        emp.distributed.sync(emp.EMPState(3))
    with pytest.raises(TypeError, match=r"distributed.sync: state must be an EMPState, got int"):
        emp.distributed.sync(3)


def epochs_of(rank, world, size=60, batch=12, epochs=6):
    """Train with the sampler: every rank's ids of each step, and the final state.

    Scores depend on the id and the epoch alone, so that they are the same however many ranks."""
    state = emp.EMPState(size)
    sampler = emp.EMPSampler(state, 0.4, seed=5)
    assert (sampler.num_replicas, sampler.rank) == (world, rank)
    data = emp.IndexedDataset(torch.arange(size))
    drawn = []
    for epoch in range(epochs):
        for ids, _ in DataLoader(data, batch_size=batch // world, sampler=sampler):
            drawn.append((epoch, ids.tolist()))
            values = ((ids * 37 + epoch * 11) % 101).float() / 7
            state.update(ids, emp.Scores(values, values, values * 0, values))
    emp.distributed.sync(state)
    return drawn, contents(state)


def test_ranks_select_what_one_process_selects():
    """The same seed gives the same epochs, step by step, with 1, 2 and 4 processes."""
    ((alone, state),) = on_ranks(1, epochs_of)
    assert len(alone) == 5 + 5 * 2
    selections = [sorted(i for e, ids in alone if e == epoch for i in ids) for epoch in range(6)]
    assert selections[1] != selections[2]
    for world in (2, 4):
        ranks = on_ranks(world, epochs_of)
        for step, (epoch, ids) in enumerate(alone):
            parts = [drawn[step] for drawn, _ in ranks]
            assert {part[0] for part in parts} == {epoch}
            assert [i for row in zip(*(x for _, x in parts), strict=True) for i in row] == ids
        for _, merged in ranks:
            assert {**merged, "synced_at": 0} == {**state, "synced_at": 0}


def lengths(rank, world, drop_last):
    state = emp.EMPState(50 + 3)
    sampler = emp.EMPSampler(state, 0.3, drop_last=drop_last, epochs=3)
    return [len(sampler), len(list(sampler)), len(sampler), len(list(sampler))], (
        sampler.total_steps(4)
    )


@pytest.mark.parametrize("drop_last", [False, True])
def test_lengths_are_equal_on_all_ranks(drop_last):
    want = [13, 13, 4, 4] if drop_last else [14, 14, 4, 4]
    assert on_ranks(4, lengths, drop_last) == [(want, 4 + 1 + 1)] * 4


def ddp(rank, world, steps):
    """A model trained with DistributedDataParallel; checkpointed, and resumed from it."""
    torch.manual_seed(0)
    data = emp.IndexedDataset([(x, int(x.sum() > 0)) for x in torch.randn(40, 8)])
    model = DistributedDataParallel(nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    state = emp.EMPState(40)
    sampler = emp.EMPSampler(state, 0.5, seed=1)
    losses = []
    for _ in range(steps):
        for ids, (inputs, labels) in DataLoader(data, batch_size=5, sampler=sampler):
            loss = emp.cross_entropy(model(inputs), labels, state, indices=ids)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    emp.distributed.sync(state)
    weights = [p.tolist() for p in model.module.parameters()]
    return losses, weights, contents(state), state.select(0.5).tolist()


def test_ddp_trains_all_ranks_alike():
    ranks = on_ranks(2, ddp, 3)
    assert ranks[0][1:] == ranks[1][1:]
    assert ranks[0][0] != ranks[1][0]
    assert len(ranks[0][0]) == 4 + 2 + 2
    assert ranks[0][2]["updates"] == ranks[0][2]["selections"]


def steps_of(rank, world, folder, first, last):
    """Train steps [first, last) of 12 ids, after a checkpoint where `first` is not 0; checkpoint.

    State and sampler are given to torch.distributed.checkpoint as they are."""
    state = emp.EMPState(60, beta=0.5)
    sampler = emp.EMPSampler(state, 0.4, seed=5)
    data, drawn, step = emp.IndexedDataset(torch.arange(60)), [], first
    kept = {"state": state, "sampler": sampler}
    if first:
        checkpoint.load(kept, checkpoint_id=folder)
    while step < last:
        for ids, _ in DataLoader(data, batch_size=12 // world, sampler=sampler):
            drawn.append(ids.tolist())
            values = ((ids * 37 + step * 11) % 101).float() / 7
            state.update(ids, emp.Scores(values * 1.5, values, values, values))
            step += 1
            if step == last:
                break
    emp.distributed.sync(state)
    before = contents(state)
    checkpoint.save(kept, checkpoint_id=folder)
    assert contents(state) == before
    return drawn, before


def together(ranks):
    """The ids of each step, in the order that one process would draw them in."""
    return [
        [i for row in zip(*parts, strict=True) for i in row]
        for parts in zip(*(drawn for drawn, _ in ranks), strict=True)
    ]


@pytest.mark.parametrize(
    ("before", "after", "stop"), [(1, 1, 3), (1, 2, 6), (2, 2, 5), (2, 4, 3), (4, 1, 6)]
)
def test_torch_distributed_checkpoint(before, after, stop, tmp_path):
    """State and sampler, in the warm-up, at its end and after it; also with another number of
    ranks."""
    ((alone, want),) = on_ranks(1, steps_of, str(tmp_path / "whole"), 0, 9)
    saved = on_ranks(before, steps_of, str(tmp_path / "part"), 0, stop)
    rest = on_ranks(after, steps_of, str(tmp_path / "part"), stop, 9)
    assert together(saved) + together(rest) == alone
    for _, state in rest:
        assert {**state, "synced_at": 0} == {**want, "synced_at": 0}


def other_checkpoints(rank, world, folder):
    """A checkpoint of another size or beta changes nothing."""
    checkpoint.save({"state": emp.EMPState(20, beta=0.5)}, checkpoint_id=folder)
    state = emp.EMPState(20, beta=0.25)
    before = oracle.state_fingerprint(state)
    with pytest.raises(ValueError, match=r"beta must be this state's 0.25, got 0.5"):
        checkpoint.load({"state": state}, checkpoint_id=folder)
    return oracle.state_fingerprint(state) == before


def test_a_distributed_checkpoint_of_another_beta(tmp_path):
    assert on_ranks(1, other_checkpoints, str(tmp_path)) == [True]
