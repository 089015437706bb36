"""Diagnostics of a state: ages, successive selections, and the single warning of a collapse."""

import math
import warnings

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import emp_kernels as emp


def losses(n, seed=0, loss=None):
    generator = torch.Generator().manual_seed(seed)
    loss = torch.rand(n, generator=generator) if loss is None else loss
    return emp.Scores(loss, loss, torch.zeros(n), loss)


def quietly(state):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return state.diagnostics()


def test_a_new_state_has_nothing_to_say():
    got = quietly(emp.EMPState(10))
    assert got.never_seen == 1
    assert got.training_counts.tolist() == [10]
    assert got.windows.shape == (0, 4)
    assert got.warning is None
    for name in ("median_age", "share", "overlap", "expected_overlap"):
        assert math.isnan(getattr(got, name))
    assert quietly(emp.EMPState(0)).never_seen == 0


def test_ages_count_the_calls_since_a_sample_was_written(as_default):
    state = emp.EMPState(6)
    assert state.age().tolist() == [-1] * 6
    logits, labels = torch.randn(6, 4), torch.zeros(6, dtype=torch.int64)
    state.update(torch.arange(4), emp.Scores(*(x[:4] for x in emp.score(logits, labels))))
    emp.score_and_select(logits[:2], labels[:2], state, 1, indices=torch.tensor([1, 4]))
    emp.cross_entropy(logits[:1], labels[:1], state, indices=torch.tensor([2]))
    assert state.seen_at.tolist() == [1, 2, 3, 1, 2, 0]
    assert state.age().tolist() == [2, 1, 0, 2, 1, -1]
    broken = logits * math.nan
    emp.cross_entropy(broken[:2], labels[:2], state, indices=torch.tensor([0, 5]))
    assert int(state.clock) == 3  # a call that writes nothing does not count
    broken[1] = logits[1]
    emp.score_and_select(broken, labels, state, 1)
    assert state.seen_at.tolist() == [1, 4, 3, 1, 2, 0]
    assert quietly(state).median_age == 2
    assert quietly(state).never_seen == pytest.approx(1 / 6)


def test_windows_and_counts():
    state = emp.EMPState(10)
    sampler = emp.EMPSampler(state, 4)
    list(sampler)  # the warm-up
    state.update(torch.arange(10), losses(10, loss=torch.arange(10.0)))
    assert sorted(sampler) == [6, 7, 8, 9]
    state.update(torch.tensor([8, 9]), losses(2, loss=torch.zeros(2)))
    assert sorted(sampler) == [4, 5, 6, 7]
    got = quietly(state)
    assert got.windows[:, 0].tolist() == [1.0, 0.4, 0.4]
    assert got.windows[:, 1].tolist() == [0.0, 1.0, 0.5]
    assert got.windows[:, 2].tolist() == pytest.approx([4.5, 2.8, 2.8])
    assert (got.share, got.overlap, got.expected_overlap) == (0.4, 0.5, 0.4)
    assert got.training_counts.tolist() == [0, 4, 4, 2]
    again = quietly(state)  # nothing was drawn meanwhile
    assert torch.equal(again.windows, got.windows)
    resumed = emp.EMPState(10)
    resumed.load_state_dict(state.state_dict())
    for _ in range(2):
        assert sorted(sampler) == [4, 5, 6, 7]
        assert sorted(emp.EMPSampler(resumed, 4, warmup_epochs=0)) == [4, 5, 6, 7]
        assert torch.equal(quietly(resumed).windows, quietly(state).windows)


def test_many_windows_are_forgotten_from_the_front():
    state = emp.EMPState(4)
    for i in range(300):
        state.selections[i % 4] += 1
        state.close_window()
    got = state.diagnostics()
    assert got.windows.shape == (256, 4)
    assert (got.windows[:, 0] == 0.25).all()


def selects_by_batch(state, scores, keep):
    """An epoch in which score_and_select, and no sampler, selects."""
    n = state.num_samples
    logits = torch.stack([torch.zeros(n), scores], 1)
    return emp.score_and_select(logits, torch.zeros(n, dtype=torch.int64), state, keep).indices


def test_score_and_select_makes_windows_too():
    state = emp.EMPState(10)
    for start in (0, 3, 6):
        scores = torch.zeros(10)
        scores[start : start + 4] = 2.0 - start / 6  # the loss falls: no collapse
        assert selects_by_batch(state, scores, 4).tolist() == [*range(start, start + 4)]
        got = quietly(state)
    assert got.windows[:, 0].tolist() == [0.4] * 3
    assert got.windows[:, 1].tolist() == [0.0, 0.25, 0.25]


def test_a_selection_that_never_changes_is_a_collapse_and_said_once():
    state = emp.EMPState(20)
    sampler = emp.EMPSampler(state, 0.3)
    for epoch in range(4):
        state.update(
            torch.tensor(list(sampler)),
            losses(
                20 if epoch == 0 else 6,
                seed=3,
                loss=torch.arange(20.0) if epoch == 0 else torch.arange(14.0, 20.0),
            ),
        )
        assert quietly(state).warning is None
    list(sampler)
    with pytest.warns(UserWarning, match="collapsing: it draws the same samples again and again"):
        got = state.diagnostics()
    assert "100% of a selection was in the one before" in got.warning
    list(sampler)
    assert "collapsing" in quietly(state).warning  # once a state
    resumed = emp.EMPState(20)
    resumed.load_state_dict(state.state_dict())
    quietly(resumed)


def test_scores_that_do_not_reach_the_state_are_noticed():
    state = emp.EMPState(20)
    sampler = emp.EMPSampler(state, 0.3, warmup_epochs=0)
    for _ in range(4):
        list(sampler)
    with pytest.warns(emp.EMPWarning, match="samples stay without a score.*pass the state and ind"):
        state.diagnostics()


def test_samples_that_never_get_a_score_are_no_collapse():
    """Few that are broken are drawn in each epoch; the others are trained."""
    state = emp.EMPState(20)
    sampler = emp.EMPSampler(state, 0.3, warmup_epochs=0)
    for epoch in range(9):
        ids = torch.tensor([i for i in sampler if i > 1])
        state.update(ids, losses(len(ids), loss=torch.full((len(ids),), 9.0 - epoch)))
        assert quietly(state).warning is None


def train(protocol, keep, wrong_labels, epochs=20):
    """Warnings of a small training on digits: on scores refreshed when a sample is trained
    ("stale"), or all at each epoch's start ("refresh")."""
    images, labels = load_digits(return_X_y=True)
    images, labels = (
        torch.tensor(images / 16, dtype=torch.float32)[:900],
        torch.tensor(labels)[:900],
    )
    generator = torch.Generator().manual_seed(0)
    images += 0.3 * torch.randn(images.shape, generator=generator)
    wrong = torch.rand(900, generator=generator) < wrong_labels
    labels[wrong] = torch.randint(10, (int(wrong.sum()),), generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), 0.2, 0.9)
    state = emp.EMPState(900)
    sampler = emp.EMPSampler(state, keep)
    warned = []
    for epoch in range(epochs):
        if protocol == "refresh" and epoch:
            with torch.no_grad():
                state.update(torch.arange(900), emp.score(model(images), labels))
        for ids in torch.tensor(list(sampler)).split(32):
            loss = emp.cross_entropy(model(images[ids]), labels[ids], state, indices=ids)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            state.diagnostics()
        warned += [str(warning.message) for warning in caught]
    return warned


@pytest.mark.parametrize("keep", [0.1, 0.3])
@pytest.mark.parametrize("wrong_labels", [0.0, 0.2])
def test_training_on_stale_scores_does_not_warn(keep, wrong_labels):
    assert train("stale", keep, wrong_labels) == []


@pytest.mark.parametrize("wrong_labels", [0.0, 0.2])
def test_training_the_hardest_after_each_refresh_warns(wrong_labels):
    warned = train("refresh", 0.1, wrong_labels)
    assert len(warned) == 1
    assert "hard selection is collapsing" in warned[0]
