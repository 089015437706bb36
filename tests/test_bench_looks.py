"""Ways of choosing among candidates, on cases that are computed by hand."""

import itertools
import math

import pytest
import torch

import emp_kernels as emp
from bench.methods.fair.looks import (
    Learnability,
    Quotas,
    Remembered,
    RePB,
    SeTa,
    Uncertainty,
    in_window,
    places_in_class,
)


class Scripted:
    """A run of two classes whose i-th look finds the label of sample s with `looks[i][s]`."""

    def __init__(self, looks, *, batch_size, labels=None, steps=100):
        self.looks = iter(torch.tensor(looks))
        n = len(looks[0])
        self.state, self.batch_size, self.seed = emp.EMPState(n), batch_size, 0
        self.steps = steps
        self.labels = torch.zeros(n, dtype=torch.int64) if labels is None else torch.tensor(labels)

    def look(self, ids):
        p, labels = next(self.looks)[ids], self.labels[ids]
        logits = torch.stack([p.log(), (1 - p).log()], 1)
        return torch.where(labels[:, None] == 0, logits, logits.flip(1)), labels


def chosen(method, run, count):
    """The ids of the first batches, sorted."""
    return [sorted(ids.tolist()) for ids, _ in itertools.islice(method.batches(run), count)]


def losses(*values):
    return [math.exp(-value) for value in values]


def test_learnability_follows_the_fall_of_the_loss():
    looks = [
        losses(3.0, 3.0, 2.0, 1.0),
        losses(1.0, 2.5, 1.9, 0.1),  # falls of 2, .5, .1, .9
        losses(1.5, 1.0, 1.8, 0.09),  # of -.5, 1.5, .1, .01: means .75, 1, .1, .455
    ]
    found = chosen(Learnability(2), Scripted(looks, batch_size=2), 3)
    assert found[1:] == [[0, 3], [0, 1]]


def test_learnability_goes_by_what_a_training_left():
    run = Scripted([losses(3.0, 3.0), losses(2.0, 2.0)], batch_size=1)
    batches = Learnability(2).batches(run)
    (first,) = next(batches)[0].tolist()
    trained = emp.Scores(*(torch.tensor([x]) for x in (1.0, 1.0, 0.0, 0.0)))
    run.state.update(torch.tensor([first]), trained)  # since when it rose to 2 again
    assert next(batches)[0].tolist() == [1 - first]


def test_uncertainty_is_difficulty_times_deviation():
    looks = [[0.9, 0.5, 0.3, 0.05], [0.1, 0.55, 0.31, 0.05]]
    keys = [(1 - p) * math.sqrt(p * (1 - p)) for p in looks[0]]  # .03, .25, .32, .207
    assert sorted(range(4), key=keys.__getitem__)[2:] == [1, 2]
    means = [a + 0.3 * (b - a) for a, b in zip(*looks, strict=True)]
    spread = [0.7 * (a * (1 - a) + 0.3 * (b - a) ** 2) for a, b in zip(*looks, strict=True)]
    keys = [(1 - m) * math.sqrt(v) for m, v in zip(means, spread, strict=True)]
    second = sorted(sorted(range(4), key=keys.__getitem__)[2:])
    found = chosen(Uncertainty(2), Scripted(looks, batch_size=2), 2)
    assert found == [[1, 2], second]


def test_uncertainty_prefers_what_swings():
    looks = [[0.4, 0.4], [0.4, 0.9], [0.4, 0.1], [0.4, 0.9], [0.4, 0.1]]
    assert chosen(Uncertainty(2), Scripted(looks, batch_size=1), 5)[-1] == [1]


def test_remembered_scores_are_not_looked_at_again():
    first, third = losses(4.0, 3.0, 2.0, 1.0), losses(1.0, 1.0, 3.0, 1.0)
    run, asked = Scripted([first, third], batch_size=2), []
    run.look = lambda ids, look=run.look: (asked.append(sorted(ids.tolist())), look(ids))[1]
    batches = Remembered(2, beta=0.0).batches(run)
    assert sorted(next(batches)[0].tolist()) == [0, 1]
    trained = emp.Scores(*(torch.tensor([0.5, 2.5]) for _ in range(4)))
    run.state.update(torch.tensor([0, 1]), trained)
    assert sorted(next(batches)[0].tolist()) == [1, 2]  # by 0.5, 2.5, 2, 1: nobody is looked at
    assert asked == [[0, 1, 2, 3]]
    assert sorted(next(batches)[0].tolist()) == [1, 2]  # 3 and 0 are two passes old
    assert asked[1:] == [[0, 3]]


def test_places_in_class_are_ranks_with_ties_by_place():
    scores = torch.tensor([1.0, 5.0, 1.0, 3.0, 9.0, 3.0])
    labels = torch.tensor([0, 0, 0, 2, 2, 2])
    assert places_in_class(scores, labels).tolist() == [1, 0, 2, 1, 0, 2]


@pytest.mark.parametrize(
    ("power", "count", "want"),
    [(1.0, 4, [0, 1, 2, 6]), (0.0, 4, [0, 1, 6, 7]), (0.5, 8, list(range(8)))],
)
def test_quotas_are_filled_with_each_class_its_hardest(power, count, want):
    # Six of class 0, the hardest first, and two of class 1, which are easier than any of them.
    looks = [losses(6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.5, 0.4)]
    run = Scripted(looks, batch_size=count, labels=[0] * 6 + [1] * 2)
    assert chosen(Quotas(8 // count, beta=0.0, power=power), run, 1) == [want]


def test_repb_trains_what_is_above_the_mean_and_waits_for_whole_batches():
    low, high = 0.5, 4.0
    looks = [losses(low, low, low, high, high, high), losses(low, high, low, high, high, low)] * 2
    run = Scripted(looks, batch_size=3)
    found = list(itertools.islice(RePB(others=0.0).batches(run), 2))
    assert [sorted(ids.tolist()) for ids, _ in found] == [[3, 4, 5], [1, 3, 4]]
    assert found[0][1].tolist() == [1.0] * 3
    weights = dict(zip(*(part.tolist() for part in found[1]), strict=True))
    assert weights == {1: 2.0, 3: 1.0, 4: 1.0}  # 1 was a candidate twice and is trained once


def test_repb_clips_weights_and_takes_others_by_chance():
    looks = [losses(*([0.5] * 50 + [4.0] * 50))] * 200
    run = Scripted(looks, batch_size=50)
    counts, weights = torch.zeros(100), []
    for ids, factors in itertools.islice(RePB(others=0.25, clip=3.0).batches(run), 200):
        counts += torch.bincount(ids, minlength=100)
        weights.append(factors)
    assert abs(float(counts[:50].sum() / counts[50:].sum()) - 0.25) < 0.03
    assert float(torch.cat(weights).max()) == 3.0
    assert float(torch.cat(weights).min()) == 1.0


def test_a_window_is_groups_of_the_ranks():
    values = torch.tensor([5.0, 1.0, 7.0, 3.0, 2.0, 6.0, 0.0, 4.0])
    assert in_window(values, 0, 2, 4).tolist() == [1, 3, 4, 6]
    assert in_window(values, 1, 2, 4).tolist() == [0, 3, 4, 7]
    assert in_window(values, 2, 2, 4).tolist() == [0, 2, 5, 7]
    assert sum(len(in_window(torch.rand(10), i, 1, 3)) for i in range(3)) == 10


def test_seta_slides_from_easy_to_hard_and_ends_with_everything():
    run = Scripted([[0.5] * 8], batch_size=4, steps=13)
    values = torch.arange(8.0)
    run.state.update(torch.arange(8), emp.Scores(values, values, torch.zeros(8), torch.zeros(8)))
    epochs = SeTa(pool=1.0, groups=4, width=2, anneal=8 / 52).epochs(run)
    found = [sorted(ids.tolist()) for ids in itertools.islice(epochs, 12)]
    # 8 of everything, then 4 an epoch up to 44 of 52 samples
    starts = [0, 2, 4] * 3
    assert found[0] == list(range(8))
    assert found[1:10] == [[start + i for i in range(4)] for start in starts]
    assert found[10:] == [list(range(8))] * 2


def test_seta_asks_for_an_epoch_when_the_last_is_trained():
    run = Scripted([[0.5] * 8], batch_size=4)
    batches = SeTa(pool=1.0).batches(run)
    first = [next(batches)[0] for _ in range(2)]
    assert sorted(torch.cat(first).tolist()) == list(range(8))
    values = torch.arange(8.0).flip(0)
    run.state.update(torch.arange(8), emp.Scores(values, values, torch.zeros(8), torch.zeros(8)))
    assert sorted(next(batches)[0].tolist()) == [4, 5, 6, 7]
