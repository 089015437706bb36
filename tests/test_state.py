"""EMPState: what an update writes, what survives saving, and what loading refuses."""

import copy
import io
import math
import pickle

import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import emp_kernels as emp

INF = float("inf")
FIELDS = ("score", "loss", "entropy", "updates", "selections")
INTEGER_DTYPES = [torch.int64, torch.int32, torch.int16, torch.int8]
INTEGER_DTYPES += [torch.uint8, torch.uint16, torch.uint32, torch.uint64]


def tensors_of(state):
    """Every tensor of the state, those that the contract does not name included."""
    found = {name: x for name, x in vars(state).items() if isinstance(x, torch.Tensor)}
    assert set(FIELDS) <= set(found)
    return found


def scores_of(n, seed=0, invalid=(), ignored=()):
    """Scores of n rows as `score` returns them."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 7, generator=generator)
    logits[list(invalid), 3] = math.nan
    labels = torch.randint(7, (n,), generator=generator)
    labels[list(ignored)] = -1
    return emp.score(logits, labels, ignore_index=-1)


def valid_rows(scores):
    finite = scores.loss.isfinite() & scores.entropy.isfinite()
    return (finite & (scores.score != -INF) & ~scores.score.isnan()).numpy()


def used_state(n=20, seed=0):
    """A state with something in every field."""
    state = emp.EMPState(n, beta=0.75)
    generator = torch.Generator().manual_seed(seed)
    for step in range(3):
        ids = torch.randperm(n, generator=generator)[: n // 2]
        logits = torch.randn(n // 2, 5, generator=generator) * 10**step
        labels = torch.randint(5, (n // 2,), generator=generator)
        emp.score_and_select(logits, labels, state, 0.5, indices=ids)
    state.epoch = 7
    return state


def test_a_new_state():
    state = emp.EMPState(5)
    assert state.num_samples == 5 == len(state)
    assert state.beta == 1.0
    assert state.epoch == 0
    assert state.score.tolist() == [INF] * 5
    for name in ("loss", "entropy", "updates", "selections"):
        assert getattr(state, name).tolist() == [0] * 5
    for name in ("score", "loss", "entropy"):
        assert getattr(state, name).dtype == torch.float32
    for name in ("updates", "selections"):
        assert getattr(state, name).dtype == torch.int32
    assert state.device == torch.device("cpu")
    assert emp.EMPState(3, beta=-2, device="cpu").beta == -2.0
    assert emp.EMPState(0).score.shape == (0,)


def test_a_new_state_is_on_torchs_default_device():
    torch.set_default_device("meta")
    torch.set_default_dtype(torch.float64)
    try:
        state = emp.EMPState(5)
        explicit = emp.EMPState(5, device="cpu")
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert {x.device.type for x in tensors_of(state).values()} == {"meta"}
    assert {x.device.type for x in tensors_of(explicit).values()} == {"cpu"}
    assert state.score.dtype == torch.float32


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_update(size, as_default):
    state, model = emp.EMPState(size), oracle.StateModel(size)
    generator = torch.Generator().manual_seed(size)
    for n in (0, 1, 5, 300):
        ids = torch.randint(size, (n,), generator=generator)
        scores = scores_of(n, seed=n, invalid=range(0, n, 3), ignored=range(1, n, 7))
        before = oracle.fingerprint(ids, *scores)
        assert state.update(ids, scores) is None
        assert oracle.fingerprint(ids, *scores) == before
        model.update(ids.tolist(), scores, valid_rows(scores))
        model.assert_equal(state)
    assert state.selections.sum() == 0
    assert state.epoch == 0


def test_update_counts_one_call_once(as_default):
    state = emp.EMPState(4)
    scores = scores_of(5, invalid=[4])
    state.update(torch.tensor([2, 2, 0, 2, 2]), scores)
    assert state.updates.tolist() == [1, 0, 1, 0]
    assert state.score.tolist() == [scores.score[2].item(), INF, scores.score[3].item(), INF]
    state.update(torch.tensor([2, 2, 0, 2, 2]), scores)
    assert state.updates.tolist() == [2, 0, 2, 0]


@pytest.mark.parametrize("dtype", INTEGER_DTYPES, ids=str)
def test_update_takes_ids_of_any_integer_dtype(dtype, as_default):
    ids = torch.tensor([100, 3, 3, 0])
    for given_ids in (ids.to(dtype), ids.to(dtype).repeat_interleave(3)[::3]):
        state, model = emp.EMPState(101), oracle.StateModel(101)
        scores = scores_of(4)
        state.update(given_ids, scores)
        model.update(ids.tolist(), scores, valid_rows(scores))
        model.assert_equal(state)


def test_ids_that_float32_cannot_hold(as_default):
    """257 is none of bfloat16's numbers, 2^24 + 1 none of float32's."""
    size = 2**24 + 9
    state, ids = emp.EMPState(size), torch.tensor([257, 2**24 + 1, size - 1])
    scores = scores_of(3)
    state.update(ids, scores)
    assert state.updates.nonzero()[:, 0].tolist() == ids.tolist()
    assert torch.equal(state.score[ids], scores.score)


def test_update_takes_strided_and_float64_scores(as_default):
    scores = scores_of(6)
    for given_scores in (
        emp.Scores(*(x.repeat_interleave(2)[::2] for x in scores)),
        emp.Scores(*(x.double() for x in scores)),
        emp.Scores(*(x.clone().requires_grad_() for x in scores)),
    ):
        state, model = emp.EMPState(9), oracle.StateModel(9)
        ids = torch.tensor([8, 1, 1, 2, 3, 8])
        state.update(ids, given_scores)
        model.update(ids.tolist(), scores, valid_rows(scores))
        model.assert_equal(state)
        assert not state.score.requires_grad


@pytest.mark.parametrize("bad", [-1, 6, 2**40, -(2**63)])
def test_an_id_out_of_range_writes_nothing(bad, as_default):
    state = used_state(6)
    before = oracle.state_fingerprint(state)
    for place, ignored in ((0, ()), (3, ()), (3, (3,))):  # of a row that does not count, too
        ids = torch.tensor([1, 2, 3, 4])
        ids[place] = bad
        with pytest.raises(ValueError, match=rf"EMPState.update: indices must be in .*got {bad}"):
            state.update(ids, scores_of(4, ignored=ignored))
        assert oracle.state_fingerprint(state) == before


def test_update_refuses_what_is_no_scores():
    state = used_state(6)
    before = oracle.state_fingerprint(state)
    scores, ids = scores_of(4), torch.arange(4)
    wrong = [
        (TypeError, ids, scores.score),
        (TypeError, ids, tuple(scores)),
        (TypeError, ids, None),
        (TypeError, ids.tolist(), scores),
        (TypeError, ids.float(), scores),
        (TypeError, ids.bool(), scores),
        (TypeError, ids, scores._replace(loss=scores.loss.long())),
        (TypeError, ids, scores._replace(score=scores.score.tolist())),
        (TypeError, ids, scores._replace(lse=None)),
        (ValueError, ids[:3], scores),
        (ValueError, ids[:, None], scores),
        (ValueError, ids, scores._replace(entropy=scores.entropy[:3])),
        (ValueError, ids, scores._replace(score=scores.score.to("meta"))),
    ]
    for error, given_ids, given_scores in wrong:
        with pytest.raises(error, match=r"EMPState.update: .* must "):
            state.update(given_ids, given_scores)
        assert oracle.state_fingerprint(state) == before


def test_select_takes_never_seen_samples_first_and_writes_nothing(as_default):
    state = emp.EMPState(6)
    assert state.select(2).tolist() == [0, 1]
    scores = scores_of(4)
    state.update(torch.tensor([0, 1, 3, 5]), scores)
    before = oracle.state_fingerprint(state)
    assert state.select(1).tolist() == [2]
    assert state.select(2).tolist() == [2, 4]
    best = [0, 1, 3, 5][int(scores.score.argmax())]
    assert state.select(3).tolist() == sorted([2, 4, best])
    assert state.select(0.5).tolist() == sorted([2, 4, best])
    assert state.select(1.0).tolist() == list(range(6))
    assert oracle.state_fingerprint(state) == before
    assert emp.EMPState(0).select(0.3).shape == (0,)


@pytest.mark.parametrize("keep", [0, 7, -1, 0.0, 1.5, math.nan, -0.1])
def test_select_refuses_a_wrong_keep(keep):
    with pytest.raises(ValueError, match=r"select: keep must be "):
        emp.EMPState(6).select(keep)


@pytest.mark.parametrize("keep", [True, None, "0.3", [0.3]])
def test_select_refuses_a_keep_of_another_type(keep):
    with pytest.raises(TypeError, match=r"select: keep must be "):
        emp.EMPState(6).select(keep)


# ---- saving and loading


def contents(state):
    """Bytes of every field, and the numbers."""
    tensors = {name: oracle.fingerprint(x)[0][1] for name, x in tensors_of(state).items()}
    return tensors, state.num_samples, state.beta, state.epoch


def saved_and_loaded(state_dict):
    buffer = io.BytesIO()
    torch.save(state_dict, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_a_state_survives_saving_bit_for_bit():
    state = used_state()
    for place, tensor in enumerate(tensors_of(state).values()):  # something in every element
        values = torch.arange(tensor.numel()).view(tensor.shape) * (place + 2) + 1
        tensor.copy_(values % 2 if tensor.dtype == torch.bool else values)
    state.loss[0], state.loss[1], state.score[2] = -0.0, 1e-45, -INF
    state.updates[3] = 2**31 - 1
    loaded = emp.EMPState(20, beta=0.75)
    loaded.load_state_dict(saved_and_loaded(state.state_dict()))
    assert contents(loaded) == contents(state)
    for keep in (1, 0.3, 1.0):
        assert torch.equal(loaded.select(keep), state.select(keep))
    loaded.update(torch.arange(20), scores_of(20))  # it still can be written
    assert contents(loaded) != contents(state)


def test_a_snapshot_does_not_change_with_the_state():
    state = used_state()
    snapshot, before = state.state_dict(), contents(state)
    state.update(torch.arange(20), scores_of(20))
    state.epoch = 9
    other = emp.EMPState(20, beta=0.75)
    other.load_state_dict(snapshot)
    assert contents(other) == before
    other.update(torch.arange(20), scores_of(20, seed=5))
    again = emp.EMPState(20, beta=0.75)
    again.load_state_dict(snapshot)
    assert contents(again) == before


def test_loading_writes_into_the_same_tensors():
    """Views that others hold, as a sampler does, stay those of the state."""
    state = emp.EMPState(20, beta=0.75)
    held = tensors_of(state)
    state.load_state_dict(used_state().state_dict())
    assert all(getattr(state, name) is tensor for name, tensor in held.items())


def test_loading_another_size_names_both():
    state = emp.EMPState(10)
    before = oracle.state_fingerprint(state)
    with pytest.raises(ValueError, match=r"EMPState.load_state_dict: .*10.*got 20"):
        state.load_state_dict(emp.EMPState(20).state_dict())
    assert oracle.state_fingerprint(state) == before


def test_loading_another_beta_names_both():
    state = emp.EMPState(10, beta=0.5)
    before = oracle.state_fingerprint(state)
    with pytest.raises(ValueError, match=r"EMPState.load_state_dict: beta .*0\.5.*got 2\.25"):
        state.load_state_dict(emp.EMPState(10, beta=2.25).state_dict())
    assert oracle.state_fingerprint(state) == before


def test_loading_what_is_no_state_writes_nothing():
    state = used_state()
    before = oracle.state_fingerprint(state)
    good = used_state(seed=5).state_dict()
    wrong = [(TypeError, x) for x in (None, [1], "state", good["score"])]
    wrong += [(ValueError, {k: v for k, v in good.items() if k != name}) for name in good]
    wrong += [(ValueError, {})]
    for name in FIELDS:
        wrong += [
            (ValueError, good | {name: good[name][:-1]}),
            (ValueError, good | {name: good[name][None]}),
            (TypeError, good | {name: good[name].double()}),
            (TypeError, good | {name: good[name].tolist()}),
        ]
    wrong += [(ValueError, good | {"epoch": -1}), (TypeError, good | {"epoch": 1.5})]
    for error, state_dict in wrong:
        with pytest.raises(error, match=r"EMPState.load_state_dict: .* must "):
            state.load_state_dict(state_dict)
        assert oracle.state_fingerprint(state) == before


def test_copies_are_independent():
    state = used_state()
    before = contents(state)
    for clone in (copy.deepcopy(state), pickle.loads(pickle.dumps(state))):
        assert contents(clone) == before
        clone.update(torch.arange(20), scores_of(20))
        clone.selections += 1
        assert contents(state) == before


def test_to_moves_in_place_and_returns_the_state():
    state = used_state()
    before = contents(state)
    assert state.to("cpu") is state
    assert contents(state) == before
    assert state.to(torch.device("meta")) is state
    assert {x.device.type for x in tensors_of(state).values()} == {"meta"}
    assert state.device.type == "meta"
    assert state.epoch == 7


@pytest.mark.parametrize(
    ("error", "arguments", "options"),
    [
        (TypeError, ("5",), {}),
        (TypeError, (5.0,), {}),
        (TypeError, (True,), {}),
        (TypeError, (None,), {}),
        (ValueError, (-1,), {}),
        (TypeError, (5,), {"beta": "1"}),
        (TypeError, (5,), {"beta": True}),
        (TypeError, (5,), {"beta": None}),
        (ValueError, (5,), {"beta": math.nan}),
        (ValueError, (5,), {"beta": INF}),
    ],
)
def test_wrong_constructor_arguments(error, arguments, options):
    with pytest.raises(error, match=r"EMPState: (num_samples|beta) must be .*, got "):
        emp.EMPState(*arguments, **options)


@given(st.data())
def test_any_sequence_of_updates(as_default, data):
    size = data.draw(st.integers(1, 12))
    state, model = emp.EMPState(size), oracle.StateModel(size)
    for step in range(data.draw(st.integers(1, 4))):
        ids = data.draw(st.lists(st.integers(0, size - 1), max_size=30))
        flags = st.sets(st.integers(0, max(len(ids) - 1, 0)), max_size=len(ids))
        scores = scores_of(len(ids), step, data.draw(flags), data.draw(flags))
        state.update(torch.tensor(ids, dtype=torch.int64), scores)
        model.update(ids, scores, valid_rows(scores))
        model.assert_equal(state)
    restored = emp.EMPState(size)
    restored.load_state_dict(saved_and_loaded(state.state_dict()))
    assert contents(restored) == contents(state)
