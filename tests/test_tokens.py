"""score_and_select of (B, T, C): tokens of all, tokens of each sequence, whole sequences; against a
naive selection in plain Python from the scores that emp.score gives."""

import math
import os

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import emp_kernels as emp
from emp_kernels import backends
from emp_kernels.tokens import highest, highest_of_each

INF = float("inf")
PER = ["all", "row", "sequence"]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EXAMPLES = 12 if INTERPRETED else 80
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),  # NaN in the interpreter
    pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning"),
]


def tokens(sequences, length, classes=5, seed=0, kinds=4):
    """Logits (B, T, C) of few distinct tokens, so that scores and means tie, and labels (B, T)."""
    generator = torch.Generator().manual_seed(seed)
    book = torch.randn(kinds, classes, generator=generator)
    which = torch.randint(kinds, (sequences, length), generator=generator)
    return book[which], which % classes


def best(values, keep, all_count):
    """Positions of the K highest of `values`, None where one does not count; K of all, or of those
    that count."""
    places = [i for i, value in enumerate(values) if value is not None]
    count = oracle.kept(keep, len(values) if all_count else len(places))
    ranked = sorted(places, key=lambda i: (-values[i], i))
    return sorted(ranked[: min(count, len(places))])


def naive(score, keep, per, all_count):
    """(positions, values at them) of token scores (B, T), -inf ignored and NaN invalid."""
    rows = [[x if x > -INF else None for x in row] for row in score.tolist()]  # NaN > -inf is False
    length = score.shape[1]
    if per == "all":
        flat = [x for row in rows for x in row]
        chosen = best(flat, keep, all_count)
        return chosen, [flat[i] for i in chosen]
    if per == "row":
        pairs = [(b, i) for b, row in enumerate(rows) for i in best(row, keep, all_count)]
        return [b * length + i for b, i in pairs], [rows[b][i] for b, i in pairs]
    means = []
    for row in rows:
        counted = [x for x in row if x is not None]
        means.append(np.float32(math.fsum(counted) / len(counted)).item() if counted else None)
    chosen = best(means, keep, all_count)
    return chosen, [means[i] for i in chosen]


def check(logits, labels, keep, per, backend, state=None, model=None, **options):
    """One call against the naive selection, and the state's model; returns the Selection."""
    ignore_index, ids = options.get("ignore_index"), options.get("indices")
    given_tensors = [x for x in (logits, labels, ids) if x is not None]
    before = oracle.fingerprint(*given_tensors)
    got = emp.score_and_select(logits, labels, state, keep, per=per, backend=backend, **options)
    assert oracle.fingerprint(*given_tensors) == before
    beta = 1.0 if state is None else state.beta
    scores = emp.score(logits, labels, beta=beta, ignore_index=ignore_index, backend=backend)
    for ours, field in zip(got.scores, scores, strict=True):
        assert ours.dtype == field.dtype
        assert ours.shape == labels.shape
        np.testing.assert_array_equal(ours.numpy(), field.numpy())
    positions, values = naive(scores.score, keep, per, ignore_index is None)
    assert got.indices.dtype == torch.int64
    assert got.indices.tolist() == positions
    assert got.threshold.shape == ()
    assert got.threshold.item() == min(values, default=INF)
    assert got.num_invalid.dtype == torch.int32
    assert got.num_invalid.item() == int(scores.score.isnan().sum())
    if model is not None:
        remember(model, scores, per, labels.shape, ids, positions)
        model.assert_equal(state)
    return got


def remember(model, scores, per, shape, ids, positions):
    """The state's model after the call: of tokens their scores, of sequences their means."""
    if per == "sequence":
        counted = (scores.score > -INF).numpy()
        number = np.maximum(counted.sum(1), 1)
        fields = [np.where(counted, x.double().numpy(), 0).sum(1) / number for x in scores]
        scores = emp.Scores(*(torch.from_numpy(x.astype(np.float32)) for x in fields))
        valid, n = counted.any(1), shape[0]
    else:
        valid, n = (scores.score > -INF).reshape(-1).numpy(), shape[0] * shape[1]
        scores = emp.Scores(*(x.reshape(-1) for x in scores))
    ids = list(range(n)) if ids is None else [int(i) for i in oracle.to_ints(ids)]
    model.update(ids, scores, valid)
    model.draw([ids[i] for i in positions])


@settings(max_examples=EXAMPLES)
@given(st.data())
def test_any_tokens(backend, data):
    """Ragged counted tokens, whole sequences ignored, NaN tokens, ties; with and without ids."""
    sequences, length = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 7))
    per = data.draw(st.sampled_from(PER))
    logits, labels = tokens(sequences, length, seed=data.draw(st.integers(0, 9)))
    marks = data.draw(
        st.lists(
            st.sampled_from(["", "", "ignored", "nan", "hidden label"]),
            min_size=sequences * length,
            max_size=sequences * length,
        )
    )
    ignore_index = data.draw(st.sampled_from([None, -100]))
    for i, mark in enumerate(marks):
        b, t = divmod(i, length)
        if mark == "nan":
            logits[b, t, 1] = math.nan
        elif mark == "hidden label":
            logits[b, t, labels[b, t]] = -INF
        elif mark == "ignored" and ignore_index is not None:
            labels[b, t] = ignore_index
    if ignore_index is not None and sequences and data.draw(st.booleans()):
        labels[0] = ignore_index
    n = {"all": sequences * length, "row": length, "sequence": sequences}[per]
    keep = data.draw(st.one_of(st.floats(0, 1, exclude_min=True), st.integers(1, max(1, n))))
    samples = sequences if per == "sequence" else sequences * length
    if data.draw(st.booleans()):
        check(logits, labels, keep, per, backend, ignore_index=ignore_index)
        return
    size = samples + data.draw(st.sampled_from([0, 3]))
    state = emp.EMPState(size, beta=data.draw(st.sampled_from([1.0, 0.0, -0.5])))
    model = oracle.StateModel(size)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        ids = None
        if size != samples or data.draw(st.booleans()):
            ids = torch.randperm(size, generator=generator)[:samples]
            if samples > 1:
                ids[0] = ids[-1]
        check(
            logits, labels, keep, per, backend, state, model, indices=ids, ignore_index=ignore_index
        )


def test_all_is_the_call_on_the_flattened_rows(backend):
    logits, labels = tokens(4, 9, seed=2)
    logits[1, 3] = math.nan
    labels[2, 5:] = -1
    for options in ({}, {"indices": torch.randperm(36)}):
        ours, flat = emp.EMPState(36), emp.EMPState(36)
        got = emp.score_and_select(
            logits, labels, ours, 0.4, ignore_index=-1, per="all", backend=backend, **options
        )
        want = emp.score_and_select(
            logits.view(36, -1), labels.view(-1), flat, 0.4, ignore_index=-1, backend=backend,
            **options,
        )  # fmt: skip
        assert torch.equal(got.indices, want.indices)
        assert torch.equal(got.threshold, want.threshold)
        assert torch.equal(got.num_invalid, want.num_invalid)
        for name in ("score", "loss", "entropy", "updates", "selections"):
            assert torch.equal(getattr(ours, name), getattr(flat, name)), name


def test_a_row_is_the_call_on_its_sequence(backend):
    logits, labels = tokens(5, 8, seed=3)
    logits[1, 3] = math.nan
    labels[2, 5:], labels[4] = -1, -1
    for ignore_index, keep in ((-1, 0.5), (-1, 3), (None, 0.3), (None, 8)):
        y = labels if ignore_index is not None else labels.clamp(min=0)
        got = check(logits, y, keep, "row", backend, ignore_index=ignore_index)
        parts = [
            emp.score_and_select(z, t, None, keep, ignore_index=ignore_index, backend=backend)
            for z, t in zip(logits, y, strict=True)
        ]
        want = [i + 8 * b for b, part in enumerate(parts) for i in part.indices.tolist()]
        assert got.indices.tolist() == want


def test_without_waiting_for_the_host_the_rest_is_minus_one():
    """The behaviour on CUDA, where no size is read back."""
    chosen = backends.load("triton" if INTERPRETED else "reference")
    score = torch.tensor([[1.0, math.nan, 3.0, -INF], [math.nan] * 4, [2.0, 3.0, -1.0, 4.0]])
    got = highest_of_each(chosen, score, 0.75, of_all=True, waits=False)
    assert got.tolist() == [0, 2, 8, 9, 11, -1, -1, -1, -1]
    got = highest(chosen, score.view(-1), 0.75, of_all=True, waits=False)
    assert got.tolist() == [0, 2, 8, 9, 10, 11, -1, -1, -1]
    got = highest(chosen, score.view(-1), 5, of_all=True, waits=False)
    assert got.tolist() == [0, 2, 8, 9, 11]


@pytest.mark.skipif(INTERPRETED, reason="many tokens")
@pytest.mark.parametrize("per", PER)
def test_many_tokens_with_ties_on_any_number_of_threads(per, backend, threads):
    for shape in ((300, 40), (3, 9000)):
        logits, labels = tokens(*shape, kinds=7)
        generator = torch.Generator().manual_seed(5)
        lengths = torch.randint(shape[1] + 1, (shape[0],), generator=generator)
        labels[torch.arange(shape[1]) >= lengths[:, None]] = -100
        logits[torch.rand(shape, generator=generator) < 0.1] = math.nan
        for count in threads:
            torch.set_num_threads(count)
            check(logits, labels, 0.3, per, backend, ignore_index=-100)
            check(logits, labels.clamp(min=0), 0.3, per, backend)


@pytest.mark.parametrize("per", PER)
def test_nothing_to_select(per, backend):
    logits, labels = tokens(3, 4)
    state = emp.EMPState(3 if per == "sequence" else 12)
    model = oracle.StateModel(state.num_samples)
    got = check(logits, labels * 0 - 1, 0.5, per, backend, state, model, ignore_index=-1)
    assert got.indices.shape == (0,)
    assert got.threshold.item() == INF
    got = check(logits * math.nan, labels, 0.5, per, backend, state, model)
    assert got.indices.shape == (0,)
    assert got.num_invalid.item() == 12
    for shape in ((0, 4), (3, 0), (0, 0)):
        got = check(torch.zeros(*shape, 2), torch.zeros(shape).long(), 0.5, per, backend)
        assert got.indices.shape == (0,)


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_shifted_views_and_grad(per, dtype, backend):
    """The usual shift by one token, and logits that require grad: nothing is copied or kept."""
    logits, labels = tokens(4, 7, classes=6)
    shifted, targets = logits.to(dtype).requires_grad_()[:, :-1], labels[:, 1:]
    with torch.no_grad():
        got = check(shifted, targets, 0.4, per, backend)
    state = emp.EMPState(4 if per == "sequence" else 24)
    again = emp.score_and_select(shifted, targets, state, 0.4, per=per, backend=backend)
    assert torch.equal(again.indices, got.indices)
    kept = [again.threshold, *again.scores, state.score]
    assert not any(x.requires_grad for x in kept)


def test_selected_tokens_train(backend):
    """As in Rho-1: the training loss reuses the selection's losses."""
    logits, labels = tokens(3, 6, kinds=9)
    labels[1, 4:] = -100
    for per in ("all", "row"):
        leaf = logits.clone().requires_grad_()
        kept = emp.score_and_select(
            leaf, labels, None, 0.5, per=per, ignore_index=-100, backend=backend
        )
        loss = emp.cross_entropy(leaf, labels, rows=kept, ignore_index=-100, backend=backend)
        loss.backward()
        flat = logits.view(-1, 5)[kept.indices].requires_grad_()
        want = torch.nn.functional.cross_entropy(flat, labels.view(-1)[kept.indices])
        torch.testing.assert_close(loss, want)
        rows = leaf.grad.view(-1, 5).abs().sum(1).nonzero()[:, 0]
        assert torch.equal(rows, kept.indices)


@pytest.mark.skipif(INTERPRETED, reason="float64 is the reference's")
def test_float64():
    logits, labels = tokens(3, 4)
    for per in PER:
        state = emp.EMPState(3 if per == "sequence" else 12)
        got = emp.score_and_select(logits.double(), labels, state, 0.5, per=per)
        assert got.threshold.dtype == got.scores.score.dtype == torch.float64


@pytest.mark.skipif(INTERPRETED, reason="the compiler is not the interpreter's")
def test_under_torch_compile(backend):
    logits, labels = tokens(3, 4)

    def step(logits, labels):
        return emp.score_and_select(logits * 2, labels, None, 0.5, per="row", backend=backend)

    got = torch.compile(step, backend="eager")(logits, labels)
    assert torch.equal(got.indices, step(logits, labels).indices)


def refused(error, match, backend, state=None, **changes):
    """The call raises `error` and leaves the state as it was."""
    logits, labels = tokens(3, 4)
    arguments = {"logits": logits, "labels": labels, "keep": 0.5, "per": "row"} | changes
    before = oracle.state_fingerprint(state) if isinstance(state, emp.EMPState) else None
    with pytest.raises(error, match=rf"^score_and_select: {match}"):
        emp.score_and_select(state=state, backend=backend, **arguments)
    assert before is None or oracle.state_fingerprint(state) == before


def test_bad_input(backend):
    logits, labels = tokens(3, 4)
    for wrong in (1, None, True, ("all",)):
        refused(TypeError, "per must be a str, got", backend, per=wrong)
    refused(ValueError, "per must be one of all, row, sequence, got 'token'", backend, per="token")
    flat = {"logits": logits.view(12, 5), "labels": labels.view(12)}
    for per in ("row", "sequence"):
        refused(ValueError, rf"logits must have shape .B, T, C. where per is '{per}', got", backend,
                per=per, **flat)  # fmt: skip
    deep = {"logits": logits[None], "labels": labels[None]}
    refused(ValueError, "logits must have shape .N, C. or .B, T, C., got", backend, per="all",
            **deep)  # fmt: skip
    refused(ValueError, "labels must have", backend, labels=labels.view(12))
    refused(ValueError, "labels must be in", backend, labels=labels + 3, state=emp.EMPState(12))
    for per, most in (("row", 4), ("sequence", 3), ("all", 12)):
        refused(ValueError, f"keep must be between 1 and the number of rows {most}, got", backend,
                per=per, keep=most + 1)  # fmt: skip
    refused(TypeError, "state must be an EMPState", backend, state={})
    state = emp.EMPState(12)
    refused(ValueError, "pass indices= .the ids of the tok", backend, state=emp.EMPState(3))
    refused(ValueError, "pass indices= .the ids of the seq", backend, state=state, per="sequence")
    for ids in (torch.arange(3), torch.arange(12).view(4, 3)):
        refused(ValueError, "indices must have shape", backend, state=state, indices=ids)
    ids = torch.arange(12)
    refused(
        ValueError, "indices must have shape", backend, state=state, indices=ids, per="sequence"
    )
    ids[5] = 12
    refused(ValueError, r"indices must be in \[0, 12\), got 12", backend, state=state, indices=ids)
