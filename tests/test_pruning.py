"""score_and_select: exactly score, then EMPState.update, then select over the rows that count."""

import math
import pickle

import hard_rows
import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._pytree import tree_map

import emp_kernels as emp

INF = float("inf")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
INTEGER_DTYPES = [torch.int64, torch.int32, torch.int16, torch.int8]
INTEGER_DTYPES += [torch.uint8, torch.uint16, torch.uint32, torch.uint64]


def rows(n, classes, dtype=torch.float32, seed=0):
    """Logits (n, C) and labels (n,); few distinct rows in bfloat16, so that scores tie."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes, generator=generator)
    if dtype == torch.bfloat16:
        logits = logits[torch.randint(max(n // 10, 1), (n,), generator=generator)]
    return logits.to(dtype), torch.randint(max(classes, 1), (n,), generator=generator)


def spoil(logits, labels, ignore_index=None, share=0.2, seed=0):
    """Copies with invalid and, where ignore_index is set, ignored rows."""
    generator = torch.Generator().manual_seed(seed + 99)
    logits, labels = logits.clone(), labels.clone()
    n, classes = logits.shape
    kinds = torch.rand(n, generator=generator)
    for i in range(n):
        column = int(torch.randint(classes, (1,), generator=generator))
        if kinds[i] < share / 3:
            logits[i, column] = math.nan
        elif kinds[i] < 2 * share / 3:
            logits[i, column] = INF
        elif kinds[i] < share:
            logits[i, labels[i]] = -INF
    if ignore_index is not None:
        labels[torch.rand(n, generator=generator) < share] = ignore_index
    return logits, labels


def same(a, b):
    """Bit for bit, any NaN equal to any other."""
    return a.dtype == b.dtype and np.array_equal(a.numpy(), b.numpy(), equal_nan=True)


def check(logits, labels, state, keep, backend, model=None, **options):
    """One call against its composition from score, the state's model and the selection oracle."""
    given_ids, ignore_index = options.get("indices"), options.get("ignore_index")
    arguments = [x for x in (logits, labels, given_ids) if x is not None]
    before = oracle.fingerprint(*arguments)
    got = emp.score_and_select(logits, labels, state, keep, backend=backend, **options)
    assert oracle.fingerprint(*arguments) == before
    assert isinstance(got, emp.Selection)
    assert isinstance(got.scores, emp.Scores)

    n = len(labels)
    beta = 1.0 if state is None else state.beta
    scores = emp.score(logits, labels, beta=beta, ignore_index=ignore_index, backend=backend)
    for name in scores._fields:
        assert same(getattr(got.scores, name), getattr(scores, name)), name

    ignored = np.array([y == ignore_index for y in oracle.to_ints(labels)], dtype=bool)
    valid = (scores.loss.isfinite() & scores.entropy.isfinite()).numpy() & ~ignored
    num_valid = int(valid.sum())
    count = min(oracle.kept(keep, n if ignore_index is None else num_valid), num_valid)
    places = np.flatnonzero(valid)
    values = oracle.to_float64(scores.score)[valid]
    want = np.sort(places[oracle.order(values)[:count]])
    assert got.indices.dtype == torch.int64
    assert got.indices.tolist() == want.tolist()
    assert got.threshold.shape == ()
    assert got.threshold.dtype == scores.score.dtype
    lowest = scores.score[torch.from_numpy(want)].min().item() if count else INF
    assert got.threshold.item() == lowest
    assert got.num_invalid.shape == ()
    assert got.num_invalid.dtype == torch.int32
    assert got.num_invalid.item() == int((~valid & ~ignored).sum())

    if model is not None:
        ids = range(n) if given_ids is None else [int(i) for i in oracle.to_ints(given_ids)]
        model.update(list(ids), scores, valid)
        model.draw([ids[i] for i in want])
        model.assert_equal(state)
    return got


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [0, 1, 2, 3, 10, 100, 257, 1000])
def test_composition(n, dtype, backend):
    for classes in (1, 2, 10, 33):
        logits, labels = rows(n, classes, dtype)
        state, model = emp.EMPState(n, beta=0.5), oracle.StateModel(n)
        for keep in (0.3, 1.0, 1e-6, 0.5, 1, max(n, 1)):
            check(logits, labels, state, keep, backend, model)
        bad = spoil(logits, labels)
        for keep in (0.3, 1.0, 1, max(n, 1)):
            check(*bad, state, keep, backend, model)
            check(*bad, None, keep, backend)
        bad = spoil(logits, labels, ignore_index=-7)
        for keep in (0.3, 1.0, 1, max(n, 1)):
            check(*bad, state, keep, backend, model, ignore_index=-7)
        assert state.epoch == 0


def test_keep_is_0_3_by_default(backend):
    logits, labels = rows(50, 6)
    got = emp.score_and_select(logits, labels, None, backend=backend)
    assert len(got.indices) == 15


def test_hard_rows(backend):
    for classes in (1, 2, 16, 65, 1000):
        logits, labels, _ = hard_rows.batch(classes, torch.float32)
        n = len(labels)
        for keep in (0.3, 1.0, n // 2):
            state, model = emp.EMPState(n), oracle.StateModel(n)
            check(logits, labels, state, keep, backend, model)


def test_many_ties_among_many_rows(backend):
    logits, labels = rows(60_000, 8, torch.bfloat16)
    logits, labels = logits.round(), labels % 2
    state, model = emp.EMPState(60_000), oracle.StateModel(60_000)
    check(logits, labels, state, 0.3, backend, model)
    logits[7::1000] = math.nan
    check(logits, labels, state, 0.3, backend, model)
    labels[3::5] = -100
    check(logits, labels, state, 0.3, backend, model, ignore_index=-100)


@pytest.mark.parametrize("dtype", INTEGER_DTYPES, ids=str)
def test_ids_and_labels_of_any_integer_dtype(dtype, backend):
    generator = torch.Generator().manual_seed(3)
    logits, labels = rows(60, 9)
    state, model = emp.EMPState(127), oracle.StateModel(127)
    for _ in range(3):
        ids = torch.randperm(127, generator=generator)[:60]
        check(logits, labels.to(dtype), state, 0.3, backend, model, indices=ids.to(dtype))
        strided = ids.to(dtype).repeat_interleave(2)[::2]
        check(logits, labels, state, 0.3, backend, model, indices=strided)


def test_a_duplicate_id_keeps_its_last_valid_row(backend):
    logits, labels = rows(6, 4)
    logits[4] = math.nan
    ids = torch.tensor([2, 0, 2, 0, 2, 1])
    state = emp.EMPState(3)
    got = check(logits, labels, state, 1.0, backend, oracle.StateModel(3), indices=ids)
    assert state.score.tolist() == got.scores.score[[3, 5, 2]].tolist()
    assert state.updates.tolist() == [1, 1, 1]
    assert state.selections.tolist() == [2, 1, 2]
    assert got.indices.tolist() == [0, 1, 2, 3, 5]


def test_many_duplicates(backend, threads):
    """Whatever the number of threads, the last row wins."""
    generator = torch.Generator().manual_seed(0)
    logits, labels = rows(20_000, 4)
    logits[torch.rand(20_000, generator=generator) < 0.3, 0] = math.nan
    for size in (1, 10, 5000):
        ids = torch.randint(size, (20_000,), generator=generator)
        for count in threads:
            torch.set_num_threads(count)
            state, model = emp.EMPState(size), oracle.StateModel(size)
            check(logits, labels, state, 0.3, backend, model, indices=ids)


def test_invalid_rows_leave_the_state_as_it_was(backend):
    logits, labels = rows(8, 5)
    state, model = emp.EMPState(8), oracle.StateModel(8)
    check(logits, labels, state, 2, backend, model)
    broken = torch.full_like(logits, math.nan)
    before = oracle.state_fingerprint(state)[0]
    got = check(broken, labels, state, 0.5, backend, model)
    assert got.indices.shape == (0,)
    assert got.threshold.item() == INF
    assert got.num_invalid.item() == 8
    everything_ignored = torch.full_like(labels, -1)
    got = check(logits, everything_ignored, state, 3, backend, model, ignore_index=-1)
    assert got.indices.shape == (0,)
    assert got.threshold.item() == INF
    assert got.num_invalid.item() == 0
    after = oracle.state_fingerprint(state)[0]
    assert [data for _, data in after] == [data for _, data in before]


def test_fewer_valid_rows_than_asked_for(backend):
    logits, labels = rows(10, 5)
    logits[:7, 2] = math.nan
    got = check(logits, labels, None, 0.5, backend)
    assert got.indices.tolist() == [7, 8, 9]  # K counts over all rows
    got = check(logits, labels, None, 1.0, backend, ignore_index=-100)
    assert got.indices.tolist() == [7, 8, 9]
    got = check(logits, labels, None, 0.5, backend, ignore_index=-100)
    assert len(got.indices) == 2  # half of the rows that count
    got = check(logits, labels, None, 5, backend, ignore_index=-100)
    assert got.indices.tolist() == [7, 8, 9]


def test_without_a_state_nothing_is_needed(backend):
    logits, labels = rows(20, 5)
    check(logits, labels, None, 0.3, backend)
    check(logits, labels, None, 0.3, backend, indices=torch.arange(20) + 10**12)


def test_the_beta_is_the_states(backend):
    logits, labels = rows(30, 5)
    for beta in (0.0, -2.0, 3.0):
        got = check(logits, labels, emp.EMPState(30, beta=beta), 0.3, backend)
        want = got.scores.loss.double() + beta * got.scores.entropy.double()
        np.testing.assert_allclose(got.scores.score, want, rtol=1e-5, atol=1e-6)


def test_strided_logits(backend):
    wide, labels = rows(40, 50)
    for logits in (wide[:, :33], wide[:, ::3][:, :10], wide.t()[:40, :40], wide[:1].expand(40, 50)):
        y = labels % logits.shape[1]
        check(logits, y, emp.EMPState(40), 0.3, backend, oracle.StateModel(40))
    check(wide[::2], labels[::2], emp.EMPState(20), 0.3, backend, oracle.StateModel(20))


def test_logits_that_require_grad(backend):
    logits, labels = rows(20, 5)
    leaf = logits.clone().requires_grad_() * 1.0
    state = emp.EMPState(20)
    got = check(leaf, labels, state, 0.3, backend, oracle.StateModel(20))
    tensors = [got.indices, got.threshold, got.num_invalid, *got.scores, state.score, state.loss]
    assert not any(x.requires_grad for x in tensors)


def test_the_state_does_not_share_memory_with_the_result(backend):
    logits, labels = rows(20, 5)
    state = emp.EMPState(20)
    got = emp.score_and_select(logits, labels, state, 1.0, backend=backend)
    before = oracle.state_fingerprint(state)
    for field in got.scores:
        field.zero_()
    assert oracle.state_fingerprint(state) == before


def test_torch_defaults_do_not_reach_the_result(backend):
    logits, labels = rows(20, 5)
    state = emp.EMPState(20)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        got = emp.score_and_select(logits, labels, state, 0.3, backend=backend)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    assert got.indices.tolist() == oracle.select(got.scores.score, 0.3).tolist()
    assert got.threshold.dtype == torch.float32
    assert got.num_invalid.item() == 0


def test_in_inference_mode(backend):
    logits, labels = rows(20, 5)
    state, model = emp.EMPState(20), oracle.StateModel(20)
    with torch.inference_mode():
        check(logits, labels, state, 0.3, backend, model)
    check(logits, labels, state, 0.3, backend, model)


def test_float64_logits_are_scored_in_float64_and_remembered_in_float32():
    logits, labels = rows(20, 5, torch.float64)
    state = emp.EMPState(20)
    got = check(logits, labels, state, 0.3, "reference")
    assert got.scores.score.dtype == torch.float64
    assert torch.equal(state.score, got.scores.score.float())
    got = emp.score_and_select(logits, labels, state, 0.3)
    assert got.scores.score.dtype == torch.float64


@given(st.data())
def test_any_sequence_of_calls(backend, data):
    """Random batches, ids, labels, bad rows and keeps on one state."""
    samples = data.draw(st.integers(1, 30))
    classes = data.draw(st.integers(1, 20))
    state = emp.EMPState(samples, beta=data.draw(st.sampled_from([0.0, 1.0, -1.0, 0.3])))
    model = oracle.StateModel(samples)
    for step in range(data.draw(st.integers(1, 3))):
        n = data.draw(st.integers(0, 40))
        logits, labels = rows(n, classes, data.draw(st.sampled_from(DTYPES)), seed=step)
        ignore = data.draw(st.sampled_from([None, -100, 0]))
        if n:
            logits, labels = spoil(logits, labels, ignore, data.draw(st.floats(0, 1)), step)
        ids = data.draw(st.lists(st.integers(0, samples - 1), min_size=n, max_size=n))
        keep = data.draw(st.one_of(st.floats(0, 1, exclude_min=True), st.integers(1, max(n, 1))))
        check(
            logits,
            labels,
            state,
            keep,
            backend,
            model,
            indices=torch.tensor(ids, dtype=torch.int64),
            ignore_index=ignore,
        )


def test_a_selection_is_shown_without_its_elements():
    logits, labels = rows(700, 3)
    flat = emp.score_and_select(logits, labels, None, 0.3)
    assert repr(flat) == (
        "Selection(indices=<210 of 700, int64, cpu>, scores=<(700,), float32, cpu>, "
        f"threshold={flat.threshold!r}, num_invalid=tensor(0, dtype=torch.int32))"
    )
    for copy in (pickle.loads(pickle.dumps(flat)), tree_map(torch.clone, flat)):
        assert type(copy) is emp.Selection
        assert type(copy.scores) is emp.Scores
        assert repr(copy) == repr(flat)
    tokens = emp.score_and_select(logits.view(7, 100, 3), labels.view(7, 100), None, 2, per="row")
    assert repr(tokens).startswith("Selection(indices=<14 of (7, 100), int64, cpu>, scores=<(7, 1")
    assert repr(emp.Selection(0, None, "x", 2.5)) == (
        "Selection(indices=0, scores=None, threshold='x', num_invalid=2.5)"
    )
