"""score_and_select and state updates of the Triton backend in its interpreter."""

import os

import numpy as np
import oracle
import pytest
import torch

import emp_kernels as emp
from emp_kernels import backends

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("TRITON_INTERPRET") != "1", reason="run by test_triton_interpreter.py"
    ),
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),  # NaN in the interpreter
    pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning"),
]
FIELDS = ("score", "loss", "entropy", "updates", "selections", "seen_at", "clock")


@pytest.fixture(params=["fused", "few", "many"])
def rows(request, monkeypatch):
    """70 rows, finished by the last scoring program or, like larger batches, by later launches."""
    if request.param != "fused":
        from emp_kernels.kernels import launch, plan

        monkeypatch.setattr(launch, "FUSED", 60)
        monkeypatch.setattr(launch, "FEW", 60 if request.param == "many" else 100)
        monkeypatch.setattr(launch, "tile_of", lambda n: plan.Tile(128, 32, 4))
    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(70, 9, generator=generator)
    logits[3], logits[4, 2], logits[5] = torch.nan, torch.inf, -torch.inf
    logits[7] = logits[8]
    return logits, torch.randint(9, (70,), generator=generator), generator


def assert_same_state(got, want):
    for name in FIELDS:
        left, right = (oracle.to_float64(getattr(state, name)) for state in (got, want))
        np.testing.assert_allclose(left, right, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("ignore_index", [None, 4])
@pytest.mark.parametrize("ids", ["none", "distinct", "duplicate"])
def test_as_the_reference(rows, ids, ignore_index):
    logits, labels, generator = rows
    size = 70 if ids == "none" else 100
    indices = {
        "none": None,
        "distinct": torch.randperm(100, generator=generator)[:70],
        "duplicate": torch.randint(20, (70,), generator=generator, dtype=torch.int32),
    }[ids]
    states = [emp.EMPState(size, beta=0.5) for _ in range(2)]
    for keep in (0.3, 1.0, 1):
        got, want = (
            emp.score_and_select(
                logits,
                labels,
                state,
                keep,
                indices=indices,
                ignore_index=ignore_index,
                backend=name,
            )
            for state, name in zip(states, ("triton", "reference"), strict=True)
        )
        assert torch.equal(got.indices, want.indices)
        assert got.num_invalid == want.num_invalid
        assert got.num_invalid.dtype == torch.int32
        torch.testing.assert_close(got.threshold, want.threshold)
        torch.testing.assert_close(got.scores, want.scores, equal_nan=True)
    assert_same_state(*states)


def test_without_state(rows):
    logits, labels, _ = rows
    got, want = (
        emp.score_and_select(logits, labels, None, 5, backend=name)
        for name in ("triton", "reference")
    )
    assert torch.equal(got.indices, want.indices)
    torch.testing.assert_close(got.threshold, want.threshold)


def test_padding_and_ids_out_of_range(rows, monkeypatch):
    """As on CUDA, where there is no error: ids out of range make their rows invalid."""
    from emp_kernels.kernels import launch

    logits, labels, generator = rows
    ids = torch.randint(50, (70,), generator=generator)
    ids[10], ids[20], ids[69] = 50, -1, 1 << 40
    state = emp.EMPState(50)
    if launch.fused(70):
        found = launch.score_and_select(logits, labels, 1.0, 70, state, ids)
        values, (indices, threshold, counted) = torch.stack(found.scores), found[1:4]
    else:
        rows = launch.rows_of(logits)
        scored = launch.score(rows, labels, 1.0, None, count=True, state=state, ids=ids)
        values, counted = scored.values, scored.work[0]
        if launch.FEW < 70:
            launch.remember(state, ids, values)
            indices, threshold = launch.select_many(values[0], 70, scored.work, ids, state)
        else:
            indices, threshold = launch.finish_few(values, 70, ids, state)
    invalid = [3, 4, 5, 10, 20, 69]
    assert values[0].isnan().nonzero()[:, 0].tolist() == invalid
    assert counted == len(invalid)
    valid = [row for row in range(70) if row not in invalid]
    assert indices.tolist() == valid + [-1] * len(invalid)
    assert threshold == values[0, valid].min()
    model = oracle.StateModel(50)
    chosen = np.isin(np.arange(70), valid)
    model.update(ids.tolist(), emp.Scores(*values), chosen)
    model.draw(ids[valid].tolist())
    model.assert_equal(state)


def test_counts_are_zero_between_calls(monkeypatch):
    """Calls on one stream share them; a wrong count left behind would spoil all later calls."""
    from emp_kernels.kernels import launch, memory
    from emp_kernels.kernels.plan import Plan

    monkeypatch.setattr(memory, "_lasting_stream", lambda device: 7)
    monkeypatch.setattr(memory, "_counts", {})
    generator = torch.Generator().manual_seed(2)
    for turn in range(2):
        if turn == 1:  # a program for each piece
            monkeypatch.setattr(launch, "plan_of", lambda *row: Plan(True, 1, 2, 16, 2, True, 1))
        for n in (5, 3):
            logits = torch.randn(n, 40, generator=generator)
            logits[1] = torch.nan
            labels = torch.randint(40, (n,), generator=generator)
            want = emp.score_and_select(logits, labels, None, 2, backend="reference")
            got = emp.score_and_select(logits, labels, None, 2, backend="triton")
            assert torch.equal(got.indices, want.indices)
            assert got.num_invalid == 1
            emp.score(logits, labels, backend="triton")
            (counts,) = memory._counts.values()
            assert not counts.any()


def test_update(monkeypatch):
    """EMPState.update through the kernels: the last valid row of an id wins, once a call."""
    monkeypatch.setattr(backends, "default", lambda device_type, dtype: "triton")
    backends._resolve.cache_clear()
    try:
        state, model = emp.EMPState(40), oracle.StateModel(40)
        state.loss.fill_(-3.0)  # whatever stands there
        model.loss = [-3.0] * 40
        generator = torch.Generator().manual_seed(1)
        for n in (1, 1500, 0):
            ids = torch.randint(30, (n,), generator=generator)
            fields = torch.rand(4, n, generator=generator)
            fields[0, 1::7], fields[1, 2::9], fields[2, 3::9] = -torch.inf, torch.inf, torch.nan
            valid = fields[:3].isfinite().all(0).numpy()
            state.update(ids, emp.Scores(*fields))
            model.update(ids.tolist(), emp.Scores(*fields), valid)
            model.assert_equal(state)
        assert state.clock == 2  # a call that writes nothing does not count
        own = emp.Scores(state.score, state.loss, state.entropy, state.loss)
        before = state.loss.clone()
        state.update(torch.arange(40).flip(0), own)
        seen = state.score.flip(0).isfinite()
        assert torch.equal(state.loss[seen], before.flip(0)[seen])
    finally:
        backends._resolve.cache_clear()


def test_nothing_between_old_and_new(monkeypatch):
    """Concurrent copies from another stream: after each launch every entry of the state is that
    from before or after the call."""
    from emp_kernels.kernels import launch

    generator = torch.Generator().manual_seed(2)
    state = emp.EMPState(30)
    first, second = (torch.rand(3, 70, generator=generator) for _ in range(2))
    ids = torch.randint(30, (70,), generator=generator)
    launch.remember(state, ids, first)
    snapshots = [state.state_dict()]
    kernel = launch.remember_rows

    class Spy:
        def __getitem__(self, grid):
            def run(*arguments, **constants):
                kernel[grid](*arguments, **constants)
                snapshots.append(state.state_dict())

            return run

    monkeypatch.setattr(launch, "remember_rows", Spy())
    launch.remember(state, ids, second)
    assert len(snapshots) == 4
    before, after = snapshots[0], snapshots[-1]
    for snapshot in snapshots[1:]:
        for name in FIELDS:
            entries = snapshot[name]
            assert ((entries == before[name]) | (entries == after[name])).all(), name
    assert not torch.equal(before["loss"], after["loss"])


@pytest.mark.parametrize("indices", [None, torch.arange(70).flip(0)])
def test_the_clock_counts_calls_that_write(rows, indices):
    logits, labels, _ = rows
    state = emp.EMPState(70)
    for nothing in (torch.full_like(logits, torch.nan), logits[:0]):
        ids = None if indices is None else indices[: len(nothing)]
        if len(nothing) or ids is not None:
            emp.score_and_select(
                nothing, labels[: len(nothing)], state, 0.5, indices=ids, backend="triton"
            )
    assert state.clock == 0
    emp.score_and_select(logits, labels, state, 0.5, indices=indices, backend="triton")
    assert state.clock == 1
    assert set(state.seen_at.tolist()) == {0, 1}
