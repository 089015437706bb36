"""distributed.ShardedState on several gloo processes, bit for bit equal to unsharded states."""

import copy
import random

import pytest
import torch
import torch.distributed as dist
import torch.utils.checkpoint
from ranks import on_ranks
from torch.utils.data import DataLoader

import emp_kernels as emp
from emp_kernels.choosing import SAMPLINGS
from emp_kernels.distributed import orders as shared_orders
from emp_kernels.distributed import sharing, states, write_log

WORLDS = [1, 2, 3, 4, 7]
SIZES = [0, 1, 2, 5, 6, 8, 9, 23, 60, 101]
SHARED = ["score", "loss", "entropy", "updates", "selections", "seen_at", "_counted", "_drawn"]


def differences(shared, state):
    """The fields in which this rank's part differs from the unsharded state."""
    own = slice(shared.owned.start, shared.owned.stop)
    found = [x for x in SHARED if not same(getattr(shared, x), getattr(state, x)[own])]
    counters = ("clock", "epoch", "beta", "num_samples", "warned")
    return found + [x for x in counters if getattr(shared, x) != getattr(state, x)]


def same(got, want):
    return got.dtype == want.dtype and torch.equal(got, want)


def same_bits(got, want):
    return torch.equal(torch.nan_to_num(got), torch.nan_to_num(want))


def own_of(shared, ids):
    return ids[(ids >= shared.owned.start) & (ids < shared.owned.stop)]


def random_scores(draw, n):
    """Scores of n rows, of which some are invalid and some ignored."""
    loss = torch.tensor([draw.choice([0.0, 0.5, draw.uniform(0, 9)]) for _ in range(n)])
    entropy = torch.tensor([draw.uniform(0, 3) for _ in range(n)])
    score = loss + entropy
    for row in range(n):
        kind = draw.random()
        if kind < 0.1:
            score[row] = loss[row] = float("nan")
        elif kind < 0.2:
            score[row], loss[row], entropy[row] = -float("inf"), 0.0, 0.0
    return emp.Scores(score, loss, entropy, loss)


def random_calls(draw, n, world):
    """For each rank its calls of update between two syncs, not always in step with the others."""
    return [
        [
            (torch.tensor(ids, dtype=torch.int64), random_scores(draw, len(ids)))
            for ids in (
                [draw.randrange(n) for _ in range(draw.choice([0, 1, 3, 8]))] if n else []
                for _ in range(draw.randrange(4))
            )
        ]
        for _ in range(world)
    ]


def travel_in_pieces():
    """Blocks, rounds and requests of a few samples, as if there were millions."""
    write_log._FEWEST = write_log._MOST = 4
    write_log._WORDS = 70
    sharing._DRAWN = states._ROWS = 3
    shared_orders._PIECE = 5


def histories(rank, world, seeds):
    """Differences between both kinds of states over random histories; the second half is sent in
    pieces."""
    wrong = []
    for seed in seeds:
        if seed == seeds[len(seeds) // 2]:
            travel_in_pieces()
        draw = random.Random(seed)
        n, beta = draw.choice(SIZES), draw.choice([0.5, 1.0])
        shared = emp.distributed.ShardedState(n, dist.group.WORLD, beta=beta)
        state = emp.EMPState(n, beta=beta)
        for turn in range(draw.randrange(1, 4)):
            for ids, scores in random_calls(draw, n, world)[rank]:
                shared.update(ids, scores)
                state.update(ids, scores)
            emp.distributed.sync(shared)
            emp.distributed.sync(state)
            wrong += [(seed, turn, name) for name in differences(shared, state)]
            if n:
                keep = draw.choice([0.3, 0.7, 1.0, draw.randrange(1, n + 1)])
                if not same(shared.select(keep), own_of(shared, state.select(keep))):
                    wrong.append((seed, turn, keep))
    return wrong


@pytest.mark.parametrize("world", WORLDS)
def test_random_histories(world):
    """200 in all, of sizes that give uneven and empty parts: state and selection."""
    assert on_ranks(world, histories, range(40 * world, 40 * world + 40)) == [[]] * world


def values_of(ids, epoch):
    """Scores that do not depend on the rank that trains a sample."""
    values = ((ids * 37 + epoch * 11) % 101).float() / 7
    return emp.Scores(values * 1.25, values, values / 4, values)


def trained(state, sampler, epochs, batch):
    """The ids of each epoch on this rank, whose scores are written."""
    drawn = []
    for _ in range(epochs):
        number, ids = sampler.epoch, torch.tensor(list(sampler), dtype=torch.int64)
        assert len(ids) == sampler.epoch_length(number)
        for part in ids.split(batch):
            state.update(part, values_of(part, number))
        drawn.append(ids)
    return drawn


def orders(rank, world, n, keep, epochs, options):
    """Both kinds of states trained by samplers with each of `options`; what differs."""
    wrong = []
    if n == 101:
        travel_in_pieces()
    for chosen in options:
        shared, state = emp.distributed.ShardedState(n, None), emp.EMPState(n)
        samplers = [emp.EMPSampler(x, keep, seed=3, **chosen) for x in (shared, state)]
        got, want = (trained(x.state, x, epochs, 16) for x in samplers)
        wrong += [(chosen, i) for i in range(epochs) if not torch.equal(got[i], want[i])]
        emp.distributed.sync(shared)
        emp.distributed.sync(state)
        wrong += [(chosen, name) for name in differences(shared, state)]
        if not torch.allclose(shared._windows, state._windows, rtol=1e-12, atol=0):
            wrong.append((chosen, "windows"))
        if (shared.selections.sum() > 0) != (len(shared.owned) > 0):
            wrong.append((chosen, "nothing was counted"))
    return wrong


WAYS = [{"sampling": name, "warmup_epochs": warmup} for name in SAMPLINGS for warmup in (0, 1)] + [
    {"shuffle": False},
    {"drop_last": True},
]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("n", [9, 101])
def test_the_order_is_that_of_a_state_held_whole(world, n):
    """For each sampling method: in the warm-up, among never-seen samples, and by score."""
    assert on_ranks(world, orders, n, 0.4, 4, WAYS) == [[]] * world


def test_a_long_order():
    """More ids than a shuffle that needs all of them takes."""
    options = [{"sampling": "top"}, {"sampling": "gumbel", "warmup_epochs": 0}]
    assert on_ranks(3, orders, 100_003, 0.7, 2, options) == [[]] * 3


def writing_calls(x, ids, logits, labels):
    """The results of every call that writes into state `x`."""
    tokens, of_tokens = logits.reshape(3, 4, 7), labels.reshape(3, 4)
    options = {"indices": ids, "ignore_index": -100}
    select = emp.score_and_select
    return [
        emp.cross_entropy(logits, labels, x, **options),
        emp.cross_entropy(logits, labels, x, label_smoothing=0.1, **options),
        emp.cross_entropy(logits, labels, x, rows=torch.tensor([0, 5]), **options),
        emp.cross_entropy(tokens, of_tokens, x, **options | {"indices": ids.int()}),
        select(logits, labels, x, 0.4, **options).indices,
        select(logits, labels, x, 3, backend="reference", **options).indices,
        select(tokens, of_tokens, x, 0.5, per="row", **options).indices,
        select(tokens, of_tokens, x, 2, per="sequence", **options | {"indices": ids[:3]}).indices,
    ]


def calls_of_training(rank, world):
    """Differences after calls on rows of which some are ignored and some are duplicates."""
    draw = torch.Generator().manual_seed(rank)
    shared, state = emp.distributed.ShardedState(50, None, beta=0.5), emp.EMPState(50, beta=0.5)
    wrong = []
    for turn in range(3):
        ids = torch.randint(50, (12,), generator=draw)
        logits = torch.randn(12, 7, generator=draw)
        labels = torch.randint(7, (12,), generator=draw)
        labels[turn] = -100
        logits[turn + 1, 0] = torch.inf
        got, want = (writing_calls(x, ids, logits, labels) for x in (shared, state))
        wrong += [(turn, i) for i, value in enumerate(got) if not same_bits(value, want[i])]
        assert shared.pending > 0
        emp.distributed.sync(shared, dist.group.WORLD)
        emp.distributed.sync(state)
        assert shared.pending == 0
        wrong += [(turn, name) for name in differences(shared, state)]
    assert state.selections.sum() > 0
    return wrong


@pytest.mark.parametrize("world", [1, 3])
def test_every_call_that_writes(world):
    assert on_ranks(world, calls_of_training, timeout=30) == [[]] * world


def all_samples(rank, world):
    """Without indices a call is of all samples; a backward pass that runs forward again is not."""
    shared, state = emp.distributed.ShardedState(6, None), emp.EMPState(6)
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.arange(6) % 3
    for x in (shared, state):
        loss = torch.utils.checkpoint.checkpoint(
            lambda z, x=x: emp.cross_entropy(z, labels, x), logits, use_reentrant=False
        )
        loss.backward()
        emp.distributed.sync(x)
    assert int(shared.clock) == 1
    with pytest.raises(ValueError, match="pass indices="):
        emp.cross_entropy(logits[:5], labels[:5], shared)
    return differences(shared, state)


def test_without_indices_and_under_checkpointing():
    assert on_ranks(2, all_samples) == [[], []]


def loaders(rank, world):
    """A look at one batch and a loop that is left count what they drew."""
    kinds = []
    for x in (emp.distributed.ShardedState(60, None), emp.EMPState(60)):
        sampler = emp.EMPSampler(x, 0.5, seed=1)
        loader = DataLoader(emp.IndexedDataset(torch.arange(60)), batch_size=4, sampler=sampler)
        seen = [next(iter(loader))[0].tolist()]
        for epoch in range(3):
            for step, (ids, _) in enumerate(loader):
                x.update(ids, values_of(ids, epoch))
                seen.append(ids.tolist())
                if epoch == 1 and step == 2:
                    break
        emp.distributed.sync(x)
        kinds.append((x, seen, sampler.epoch))
    (shared, *got), (state, *want) = kinds
    return [] if got == want and not differences(shared, state) else [got, want]


def test_loops_that_look_and_leave():
    assert on_ranks(2, loaders) == [[], []]


def bounds(rank, world):
    """Errors are raised before anything is logged, and local calls send nothing."""
    make = emp.distributed.ShardedState
    for error, pattern, arguments in [
        (TypeError, "ShardedState: num_samples must be an int, got str", ("3",)),
        (ValueError, "ShardedState: num_samples must .*, got -1", (-1,)),
        (
            ValueError,
            rf"give each of {world} ranks fewer than 2147483648, got {world * 2**31}",
            (world * 2**31,),
        ),
        (TypeError, "ShardedState: group must be a torch.distributed.ProcessGroup", (3, "gloo")),
    ]:
        with pytest.raises(error, match=pattern):
            make(*arguments)
    state = make(10, None)
    if rank == 0:  # alone: a collective would wait for the others
        for ids in ([3, 10], [-1, 2]):
            with pytest.raises(ValueError, match=r"ShardedState.update: indices must be in \[0"):
                state.update(torch.tensor(ids), values_of(torch.tensor(ids), 0))
            with pytest.raises(ValueError, match=r"cross_entropy: indices must be in \[0, 10\)"):
                emp.cross_entropy(
                    torch.zeros(2, 3), torch.tensor([0, 1]), state, indices=torch.tensor(ids)
                )
        with pytest.raises(ValueError, match="labels must be in"):
            emp.cross_entropy(
                torch.zeros(2, 3), torch.tensor([0, 7]), state, indices=torch.tensor([1, 2])
            )
        with pytest.raises(ValueError, match=r"scores\.score must have the shape"):
            state.update(torch.tensor([1]), values_of(torch.tensor([1, 2]), 0))
        assert int(state.clock) == 0
        state.update(torch.tensor([9]), values_of(torch.tensor([9]), 0))
        assert state.pending > 0
        assert (state.score == float("inf")).all()
        with pytest.raises(RuntimeError, match=r"ShardedState\.to: the log must be empty"):
            state.to("cpu")
        with pytest.raises(TypeError, match="ShardedState: a state must stay in its process"):
            copy.deepcopy(state)
        with pytest.raises(ValueError, match="keep must be between 1 and the number of rows 10"):
            state.select(11)
    before = [getattr(state, name).clone() for name in SHARED]
    with pytest.raises(ValueError, match="state must have one num_samples on all ranks"):
        emp.distributed.sync(state if rank == 0 else make(9, None))
    assert all(same(getattr(state, x), y) for x, y in zip(SHARED, before, strict=True))
    emp.distributed.sync(state)
    assert state.to("cpu") is state
    return int(state.updates.sum()), repr(state)


def test_what_is_wrong_is_said_in_words():
    first, second = on_ranks(2, bounds, timeout=20)
    assert (first[0], second[0]) == (0, 1)
    assert second[1] == (
        "ShardedState(num_samples=10, owned=range(5, 10), beta=1.0, epoch=0, device='cpu')"
    )
