"""EMPState: updates, saving and loading, and errors of loading."""

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
    """Every tensor of the state, including those that the contract does not name."""
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
    """257 is not representable in bfloat16, and 2^24 + 1 not in float32."""
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
    state.loss[0], state.loss[1], state.score[2] = -0.0, 1e-45, -3e38
    state.updates[3] = 2**31 - 1
    state.clock.fill_(2**31 - 1)
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
    """Views held elsewhere, as by a sampler, remain views of the state."""
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


def filled(like, value):
    return torch.full_like(like, value)


UNFIT = {
    "a NaN score": (ValueError, "score", lambda x: filled(x, math.nan)),
    "a score that is never selected": (ValueError, "score", lambda x: filled(x, -INF)),
    "a NaN loss": (ValueError, "loss", lambda x: torch.where(x == x.max(), math.nan, x)),
    "an infinite entropy": (ValueError, "entropy", lambda x: filled(x, INF)),
    "negative updates": (ValueError, "updates", lambda x: x - 9),
    "negative selections": (ValueError, "selections", lambda x: filled(x, -1)),
    "negative counted": (ValueError, "counted", lambda x: filled(x, -1)),
    "a negative clock": (ValueError, "clock", lambda x: filled(x, -1)),
    "seen after the clock": (ValueError, "seen_at", lambda x: x + 9),
    "never seen by less than never": (ValueError, "seen_at", lambda x: filled(x, -1)),
    "a NaN window": (ValueError, "windows", lambda x: filled(x, math.nan)),
    "sparse": (TypeError, "entropy", lambda x: x.to_sparse()),
    "nested": (TypeError, "score", lambda x: torch.nested.nested_tensor([x])),
    "on meta": (TypeError, "windows", lambda x: x.to("meta")),
    "no tensor": (TypeError, "drawn", lambda x: x.tolist()),
    "int64": (TypeError, "updates", lambda x: x.long()),
    "one value for all": (ValueError, "selections", lambda x: x.sum(dtype=torch.int32)),
    "warned twice": (TypeError, "warned", lambda x: torch.tensor([True, False])),
    "warned in words": (TypeError, "warned", lambda x: "no"),
    "a huge epoch": (ValueError, "epoch", lambda x: 10**30),
    "half an epoch": (TypeError, "epoch", lambda x: 0.5),
    "a true epoch": (TypeError, "epoch", lambda x: True),
    "synced after the clock": (ValueError, "synced_at", lambda x: 10**12),
    "a size in a tensor": (TypeError, "num_samples", lambda x: torch.tensor([20, 20])),
    "a beta in a tensor": (TypeError, "beta", lambda x: torch.tensor([0.75, 0.75])),
    "no version": (TypeError, "version", lambda x: None),
    "two versions": (TypeError, "version", lambda x: torch.tensor([2, 2])),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("case", UNFIT)
def test_loading_what_no_state_can_hold_writes_nothing(case):
    error, name, spoil = UNFIT[case]
    state = used_state()
    before = oracle.state_fingerprint(state)
    good = used_state(seed=5).state_dict()
    with pytest.raises(error, match=rf"^EMPState.load_state_dict: {name} must .*, got "):
        state.load_state_dict(good | {name: spoil(good[name])})
    assert oracle.state_fingerprint(state) == before


def test_loading_keeps_no_autograd_and_reads_any_dense_memory():
    saved = used_state()
    snapshot = saved.state_dict()
    snapshot["score"] = snapshot["score"].requires_grad_() * 1
    snapshot["loss"] = torch._neg_view(-snapshot["loss"])
    snapshot["entropy"] = torch.nn.Parameter(snapshot["entropy"].repeat_interleave(2))[::2]
    state = emp.EMPState(20, beta=0.75)
    state.load_state_dict(snapshot)
    assert contents(state) == contents(saved)
    assert not any(tensor.requires_grad for tensor in tensors_of(state).values())


def test_a_state_without_memory_takes_over_what_has_none():
    state = emp.EMPState(20, beta=0.75, device="meta")
    state.load_state_dict(used_state().state_dict() | {"epoch": 5})
    state.load_state_dict(emp.EMPState(20, beta=0.75, device="meta").state_dict() | {"epoch": 6})
    assert state.epoch == 6
    assert state.score.is_meta


def test_loading_from_the_states_own_tensors():
    state = used_state()
    loss, entropy = state.loss.clone(), state.entropy.clone()
    state.load_state_dict(state.state_dict() | {"loss": state.entropy, "entropy": state.loss})
    assert torch.equal(state.loss, entropy)
    assert torch.equal(state.entropy, loss)


def loaded_by_default(value):
    """With torch.load's default, which does not trust files."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_files_are_loaded_without_trust():
    state = used_state()
    logits, labels = torch.randn(20, 5), torch.arange(20) % 5
    selection = emp.score_and_select(logits, labels, state, 0.5)
    loaded = loaded_by_default(state)
    assert contents(loaded) == contents(state)
    loaded.update(torch.arange(20), scores_of(20))
    loaded = loaded_by_default({"selection": selection, "state": state.state_dict()})
    assert type(loaded["selection"]) is emp.Selection
    assert type(loaded["selection"].scores) is emp.Scores
    assert torch.equal(loaded["selection"].indices, selection.indices)
    assert torch.equal(loaded["selection"].scores.lse, selection.scores.lse)
    again = emp.EMPState(20, beta=0.75)
    again.load_state_dict(loaded["state"])
    assert contents(again) == contents(state)
    statistics = emp.sample_statistics(logits, labels)
    loaded = loaded_by_default(statistics)
    assert type(loaded) is emp.SampleStatistics
    assert all(map(torch.equal, loaded, statistics))


@pytest.mark.parametrize(
    ("name", "value"),
    [("loss", torch.zeros(3)), ("updates", torch.zeros(20)), ("warned", "no"), ("beta", None)],
)
def test_a_file_of_another_state_is_no_state(name, value):
    state = used_state()
    setattr(state, name, value)
    with pytest.raises((TypeError, ValueError), match=rf"{name} must "):
        pickle.loads(pickle.dumps(state))
    del state._windows
    with pytest.raises(ValueError, match="entries must hold _windows"):
        pickle.loads(pickle.dumps(state))


def test_a_state_of_inference_mode_is_updated_outside(as_default):
    with torch.inference_mode():
        state = emp.EMPState(20, beta=0.75)
        state.load_state_dict(used_state().state_dict())
        clone = copy.deepcopy(state).to("cpu")
    for written in (state, clone):
        emp.score_and_select(torch.randn(20, 5), torch.arange(20) % 5, written, 0.5)
        written.update(torch.arange(20), scores_of(20))
        written.close_window()
        written.load_state_dict(used_state().state_dict())
        assert contents(written) == contents(used_state())


def test_the_clock_counts_calls_that_wrote(as_default):
    """Nothing is valid: nothing is written, and the clock does not advance."""
    state, ids = emp.EMPState(8), torch.arange(8)
    invalid, labels = torch.full((8, 5), math.nan), ids % 5
    before = contents(state)
    state.update(ids, scores_of(8, invalid=range(4), ignored=range(4, 8)))
    state.update(ids[:0], scores_of(0))
    emp.score_and_select(invalid, labels, state, 0.5)
    emp.score_and_select(torch.randn(8, 5), labels * 0 - 1, state, 0.5, ignore_index=-1)
    emp.score_and_select(invalid[:0], labels[:0], state, 0.5, indices=ids[:0])
    emp.score_and_select(invalid.view(2, 4, 5), labels.view(2, 4), state, 0.5)
    emp.cross_entropy(invalid, labels, state)
    assert contents(state) == before
    emp.score_and_select(torch.randn(8, 5), labels, state, 0.5)
    assert state.clock == 1
    assert state.age().tolist() == [0] * 8


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


@pytest.mark.parametrize("device", [torch.float16, torch.zeros(2), None, True, 1.0, object()])
def test_to_takes_a_device_alone(device):
    state = used_state()
    before = contents(state)
    with pytest.raises(TypeError, match=r"EMPState.to: device must be .*, got "):
        state.to(device)
    with pytest.raises(TypeError):
        state.to(dtype=torch.float16)
    assert contents(state) == before


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
