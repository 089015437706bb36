"""distributed.ShardedState on several gloo processes: bit for bit what states held whole have."""

import random

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks

import emp_kernels as emp
from emp_kernels.choosing import SAMPLINGS

WORLDS = [1, 2, 3, 4, 7]
SIZES = [0, 1, 2, 5, 6, 8, 9, 23, 60, 101]
SHARED = ["score", "loss", "entropy", "updates", "selections", "seen_at", "counted", "drawn"]


def differences(shared, state):
    """What of this rank's part is not that of the state held whole, bit for bit."""
    own = slice(shared.owned.start, shared.owned.stop)
    found = [x for x in SHARED if not same(getattr(shared, x), getattr(state, x)[own])]
    counters = ("clock", "epoch", "beta", "num_samples", "warned")
    return found + [x for x in counters if getattr(shared, x) != getattr(state, x)]


def same(got, want):
    return got.dtype == want.dtype and torch.equal(got, want)


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


def histories(rank, world, seeds):
    """What differs, in words, over random histories of both kinds of states."""
    wrong = []
    for seed in seeds:
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
    """Scores that are alike whoever trains a sample."""
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
    for chosen in options:
        shared, state = emp.distributed.ShardedState(n, None), emp.EMPState(n)
        samplers = [emp.EMPSampler(x, keep, seed=3, **chosen) for x in (shared, state)]
        got, want = (trained(x.state, x, epochs, 16) for x in samplers)
        wrong += [(chosen, i) for i in range(epochs) if not torch.equal(got[i], want[i])]
        emp.distributed.sync(shared)
        emp.distributed.sync(state)
        wrong += [(chosen, name) for name in differences(shared, state)]
        if not torch.allclose(shared.windows, state.windows, rtol=1e-12, atol=0):
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
    """Of each way of choosing: in the warm-up, among samples never seen, and by score."""
    assert on_ranks(world, orders, n, 0.4, 4, WAYS) == [[]] * world


def test_a_long_order():
    """More ids than a shuffle that needs all of them takes."""
    options = [{"sampling": "top"}, {"sampling": "gumbel", "warmup_epochs": 0}]
    assert on_ranks(3, orders, 100_003, 0.7, 2, options) == [[]] * 3
