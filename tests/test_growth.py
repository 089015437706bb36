"""EMPState.grow: existing entries are kept, new ones were never seen."""

import copy
import io
import pickle

import pytest
import torch

import emp_kernels as emp
from emp_kernels import growth
from emp_kernels.state import _FIELDS


def scored(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return emp.Scores(*torch.rand(4, n, generator=generator))


def used(n):
    """A state that has been trained on, selected from and diagnosed."""
    state = emp.EMPState(n, beta=0.5)
    state.update(torch.arange(0, n, 2), scored((n + 1) // 2))
    state.selections += torch.arange(n, dtype=torch.int32)
    state.close_window()
    state.update(torch.arange(0, n, 3), scored(-(-n // 3), 1))
    state.epoch = 3
    return state


def same(a, b):
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in _FIELDS.values())


@pytest.mark.parametrize("n", [0, 1, 7, 1000])
def test_what_was_there_stays_and_the_rest_is_new(n):
    state, before, fresh = used(n), used(n).state_dict(), emp.EMPState(5000)
    for size in (n, n + 1, n + 5, 4000, 4000, 4001, 5000):
        assert state.grow(size) is state
        assert len(state) == state.num_samples == size
        for name in growth.NEVER_SEEN:
            field = getattr(state, name)
            assert field.shape == (size,)
            assert field.dtype == before[name.lstrip("_")].dtype
            assert field.is_contiguous()
            assert torch.equal(field[:n], before[name.lstrip("_")]), name
            assert torch.equal(field[n:], getattr(fresh, name)[: size - n]), name
        for name in ("clock", "_windows"):
            assert torch.equal(getattr(state, name), before[name.lstrip("_")])
    assert (state.epoch, state.beta) == (3, 0.5)
    assert {*growth.NEVER_SEEN, "clock", "_windows"} == set(_FIELDS.values())


def test_histories_that_grow_equal_those_that_were_large_from_the_start():
    """Sizes within the capacity of a buffer, at its end and beyond."""
    grown, large = emp.EMPState(0), emp.EMPState(20_000)
    generator = torch.Generator().manual_seed(0)
    for step in range(300):
        size = min(20_000, len(grown) + int(torch.randint(0, 200, (), generator=generator)))
        grown.grow(size)
        ids = torch.randint(max(1, size), (64,), generator=generator)
        if size:
            logits = torch.randn(64, 5, generator=generator)
            labels = torch.randint(5, (64,), generator=generator)
            for state in (grown, large):
                emp.score_and_select(logits, labels, state, 0.3, indices=ids)
        if step % 50 == 0:
            grown, large = pickle.loads(pickle.dumps((grown, large)))
    grown.grow(20_000)
    assert same(grown, large)
    assert torch.equal(grown.select(0.3), large.select(0.3))


def test_new_samples_are_selected_first():
    state = emp.EMPState(10)
    state.update(torch.arange(10), scored(10))
    best = state.select(3)
    state.grow(14)
    assert state.select(4).tolist() == [10, 11, 12, 13]
    assert state.select(7).tolist() == [*best.tolist(), 10, 11, 12, 13]
    sampler = emp.EMPSampler(state, 0.5, warmup_epochs=0)
    assert {10, 11, 12, 13} < set(sampler)
    assert len(sampler) == 7


@pytest.mark.parametrize("size", [11, 5000])
@pytest.mark.parametrize("sampling", ["top", "importance"])
def test_growth_in_mid_epoch(sampling, size):
    """The running epoch keeps its order, length, counts and weights; the next one has all samples.
    A checkpoint of it draws its rest, also into a state that grows once more."""
    state = emp.EMPState(10)
    state.update(torch.arange(10), scored(10))
    state.grow(10)  # fields fill their tensors
    sampler = emp.EMPSampler(state, 0.5, sampling=sampling, warmup_epochs=0, seed=3)
    iterator = iter(sampler)
    drawn, weights = [next(iterator), next(iterator)], sampler.weights.tolist()
    state.grow(size)
    assert len(sampler) == sampler.epoch_length(0) == 5
    assert sampler.epoch_length(1) == round(size / 2)
    assert sampler.weights.tolist() == weights + [1.0] * (size - 10)

    file = io.BytesIO()
    torch.save([state.state_dict(), sampler.state_dict(position=2)], file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other = emp.EMPState(size)
    other.load_state_dict(saved[0])
    resumed = emp.EMPSampler(other, 0.5, sampling=sampling, warmup_epochs=0, seed=3)
    resumed.load_state_dict(saved[1])
    other.grow(size + 3)
    assert len(resumed) == 5
    assert resumed.weights.tolist() == weights + [1.0] * (size - 7)

    rest = list(iterator)
    assert list(resumed) == rest
    assert len({*drawn, *rest}) == 5
    for counted in (state, other):
        assert counted.selections[[*drawn, *rest]].tolist() == [1] * 5
        assert int(counted.selections.sum()) == 5
    del iterator
    assert len(sampler) == round(size / 2)
    assert len(resumed) == round((size + 3) / 2)
    state.update(torch.tensor(rest), scored(3))
    assert len(set(sampler)) == round(size / 2)


def test_growing_by_one_copies_seldom():
    state, addresses = emp.EMPState(0), set()
    for size in range(1, 30_001, 3):
        state.grow(size)
        addresses.add(state.score.data_ptr())
    assert len(addresses) < 20


def test_copies_and_moves_share_no_room():
    state = emp.EMPState(10).grow(11)
    state.update(torch.arange(11), scored(11))
    others = [copy.copy(state), copy.deepcopy(state), pickle.loads(pickle.dumps(state))]
    for other in others:
        other.grow(12)
        other.update(torch.tensor([11]), scored(1))
    state.grow(12)
    assert state.score[11] == torch.inf
    for other in others:
        assert torch.isfinite(other.score[11])
        assert torch.equal(other.score[:11], state.score[:11])
    moved = emp.EMPState(3).grow(4)
    assert moved.to("meta").grow(6).score.device.type == "meta"
    assert len(moved.score) == 6


def test_a_field_that_was_replaced_is_what_grows():
    state = emp.EMPState(3).grow(5)
    state.score = torch.arange(5.0)
    assert state.grow(6).score.tolist() == [0, 1, 2, 3, 4, torch.inf]


def test_checkpoints_of_grown_states():
    state = used(20).grow(33)
    assert {len(t) for t in state.state_dict().values() if getattr(t, "ndim", 0) == 1} == {33}
    file = io.BytesIO()
    torch.save({"state": state.state_dict(), "whole": state}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = emp.EMPState(20, beta=0.5)
    with pytest.raises(ValueError, match="num_samples must be this state's 20, got 33"):
        again.load_state_dict(saved["state"])
    again.grow(saved["state"]["num_samples"]).load_state_dict(saved["state"])
    assert same(again, state)
    assert same(saved["whole"], state)
    saved["whole"].grow(40)
    assert saved["whole"]._buffers.keys() == growth.NEVER_SEEN.keys()


def test_grown_in_inference_mode_and_written_outside():
    state = emp.EMPState(4)
    with torch.inference_mode():
        state.grow(2000)
    state.update(torch.arange(2000), scored(2000))
    assert int(state.updates.sum()) == 2000


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (9, ValueError, "num_samples must be at least this state's 10, got 9"),
        (-1, ValueError, "num_samples must be at least 0, got -1"),
        (True, TypeError, "num_samples must be an int, got bool"),
        (12.0, TypeError, "num_samples must be an int, got float"),
    ],
)
def test_sizes_that_are_none(size, error, message):
    state = used(10)
    before = used(10)
    with pytest.raises(error, match=f"^EMPState.grow: {message}"):
        state.grow(size)
    assert same(state, before)
    assert len(state) == 10
