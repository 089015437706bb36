"""Invalid input: the right error with the contract's wording, before anything is written.

Hypothesis draws a good call, spoils one argument, and compares every argument and the whole
state with what they were.
"""

import decimal
import fractions
import math

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import emp_kernels as emp
from emp_kernels import cautions
from emp_kernels.options import check_targets

INF = float("inf")
BIG = 2**63
WORDING = r"must .+, got .+"
NOT_INTEGERS = [torch.float32, torch.bool, torch.complex64, torch.float64, torch.bfloat16]
NOT_FLOATS = [torch.int64, torch.int32, torch.uint8, torch.bool, torch.complex64]
NO_ARRAYS = [None, 3, 2.5, "text", [[0.0, 1.0]], (1, 2), object(), np.ma.zeros((3, 4))]
NO_TENSORS = [*NO_ARRAYS, np.zeros((3, 4), np.float32)]
TAKES_ARRAYS = {"score", "sample_statistics", "select"}
SCORING = ["score", "sample_statistics", "score_and_select"]


class Elsewhere(torch.Tensor):
    """A tensor whose data is not in its memory, like a DTensor's."""

    @staticmethod
    def __new__(cls, like):
        return cls._make_wrapper_subclass(cls, like.shape, dtype=like.dtype, device=like.device)

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} was called")


def good_call(function, rows=5, classes=4, seed=0):
    """Arguments of a call that succeeds."""
    generator = torch.Generator().manual_seed(seed)
    arguments = {
        "logits": torch.randn(rows, classes, generator=generator),
        "labels": torch.randint(classes, (rows,), generator=generator),
    }
    if function == "score":
        arguments |= {"beta": 1.0}
    if function == "score_and_select":
        state = emp.EMPState(9, beta=0.5)
        ids = torch.arange(9)
        state.update(ids, emp.score(torch.randn(9, 3, generator=generator), ids % 3))
        arguments |= {"state": state, "keep": 0.5, "indices": torch.arange(rows) % 9}
    return arguments | {"ignore_index": None}


def marks(arguments):
    """What must not change: every tensor's bytes, and the state's."""
    tensors = [x for x in arguments.values() if isinstance(x, torch.Tensor)]
    tensors = [x for x in tensors if x.device.type == "cpu" and x.layout == torch.strided]
    tensors = [x for x in tensors if not isinstance(x, Elsewhere)]
    found = [oracle.fingerprint(*tensors)]
    if isinstance(arguments.get("state"), emp.EMPState) and arguments["state"].device.type == "cpu":
        found.append(oracle.state_fingerprint(arguments["state"]))
    return found


def refuses(error, function, arguments, match=WORDING, **options):
    """The call raises `error`, worded `function: ... must ..., got ...`, and writes nothing."""
    before = marks(arguments)
    with pytest.raises(error, match=rf"(?s)^{function}: .*{match}") as caught:
        getattr(emp, function)(**arguments, **options)
    assert type(caught.value) is error
    assert marks(arguments) == before


def spoilt(function, backend, error, match=WORDING, **changes):
    refuses(error, function, good_call(function) | changes, match, backend=backend)


# ---- types, dtypes, shapes, devices


@pytest.mark.parametrize("function", SCORING)
def test_good_calls_succeed(function, backend):
    getattr(emp, function)(**good_call(function), backend=backend)


@pytest.mark.parametrize("function", SCORING)
def test_arguments_of_another_type(function, backend):
    for wrong in NO_ARRAYS if function in TAKES_ARRAYS else NO_TENSORS:
        spoilt(function, backend, TypeError, f"logits {WORDING}", logits=wrong)
        spoilt(function, backend, TypeError, f"labels {WORDING}", labels=wrong)
    for wrong in (1.5, "1", True, [1], torch.tensor(1)):
        spoilt(function, backend, TypeError, f"ignore_index {WORDING}", ignore_index=wrong)
    for wrong in (BIG, -BIG - 1, 10**30):
        spoilt(function, backend, ValueError, f"ignore_index {WORDING}", ignore_index=wrong)


@pytest.mark.parametrize("function", SCORING)
def test_dtypes(function, backend):
    good = good_call(function)
    for dtype in NOT_FLOATS:
        logits = good["logits"].to(dtype)
        spoilt(function, backend, TypeError, f"logits {WORDING}", logits=logits)
    for dtype in NOT_INTEGERS:
        labels = good["labels"].to(dtype)
        spoilt(function, backend, TypeError, f"labels {WORDING}", labels=labels)


@pytest.mark.parametrize("function", SCORING)
def test_layouts_without_strides(function, backend):
    good = good_call(function)
    sparse = good["logits"].to_sparse()
    spoilt(function, backend, TypeError, f"logits {WORDING}", logits=sparse)
    sparse = good["labels"].to_sparse()
    spoilt(function, backend, TypeError, f"labels {WORDING}", labels=sparse)


@pytest.mark.parametrize("function", SCORING)
def test_numbers_that_are_not_in_memory(function, backend):
    good = good_call(function)
    for name in ("logits", "labels", "indices"):
        if name in good:
            message = rf"{name} must lie in memory .*to_local\(\).*, got Elsewhere"
            spoilt(function, backend, TypeError, message, **{name: Elsewhere(good[name])})


def test_scores_and_positions_that_are_not_in_memory(backend):
    scores, three = Elsewhere(torch.zeros(3)), torch.arange(3)
    with pytest.raises(TypeError, match="select: scores must lie in memory"):
        emp.select(scores, 2, backend=backend)
    state = emp.EMPState(3)
    before = oracle.state_fingerprint(state)
    with pytest.raises(TypeError, match=r"EMPState.update: scores\.score must lie in memory"):
        state.update(three, emp.Scores(scores, scores, scores, scores))
    with pytest.raises(TypeError, match=r"EMPState.update: indices must lie in memory"):
        state.update(Elsewhere(three), emp.Scores(*[torch.zeros(3)] * 4))
    assert oracle.state_fingerprint(state) == before
    with pytest.raises(TypeError, match="gather: indices must lie in memory"):
        emp.gather(torch.zeros(3), Elsewhere(three))
    with pytest.raises(AssertionError, match="index_select"):  # it must implement gathering itself
        emp.gather(Elsewhere(torch.zeros(60_000, 9)), torch.arange(60_000))


@pytest.mark.parametrize("kind", ["subclass", "parameter"])
def test_subclasses_that_lie_in_memory_are_tensors(kind, backend):
    class Named(torch.Tensor):
        pass

    good = good_call("score")
    logits = good["logits"].as_subclass(Named)
    if kind == "parameter":
        logits = torch.nn.Parameter(good["logits"])
    want = emp.score(good["logits"], good["labels"], backend=backend)
    for ours, theirs in zip(emp.score(logits, good["labels"], backend=backend), want, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("function", SCORING)
def test_shapes(function, backend):
    good = good_call(function)
    for logits in (torch.zeros(()), torch.zeros(5)):
        spoilt(function, backend, ValueError, f"logits {WORDING}", logits=logits)
    wrong = [(4,), (6,), (0,), (), (5, 1), (1, 5), (5, 4), (1,)]
    for shape in wrong:
        labels = torch.zeros(shape, dtype=torch.int64)
        spoilt(function, backend, ValueError, rf"labels {WORDING}", labels=labels)
    cube = torch.zeros(2, 5, 4)
    stateless = {"state": None, "indices": None} if function == "score_and_select" else {}
    spoilt(function, backend, ValueError, logits=cube)
    if function != "score_and_select":
        for shape in ((5, 2), (10,), (2, 5, 4), (2, 4), (2, 1)):
            labels = torch.zeros(shape, dtype=torch.int64)
            spoilt(function, backend, ValueError, logits=cube, labels=labels)
    spoilt(function, backend, ValueError, logits=good["logits"][:, :0])  # no class for a label
    labels = torch.zeros(2, 5, dtype=torch.int64)
    message = r"labels must be in \[0, 0\), got 0 in row 0"
    spoilt(function, backend, ValueError, message, logits=cube[..., :0], labels=labels, **stateless)


@pytest.mark.parametrize("function", SCORING)
def test_devices(function, backend):
    labels = good_call(function)["labels"].to("meta")
    spoilt(function, backend, ValueError, rf"labels {WORDING}", labels=labels)


def test_beta(backend):
    for wrong in (None, "1", True, [1.0], 1j):
        spoilt("score", backend, TypeError, f"beta {WORDING}", beta=wrong)
    for wrong in (math.nan, INF, -INF, 1e39, -3e38, 1.01e29):
        spoilt("score", backend, ValueError, f"beta {WORDING}", beta=wrong)


@pytest.mark.parametrize("beta", [1e29, -1e29])
def test_no_beta_makes_a_valid_score_infinite(beta, backend):
    largest = torch.finfo(torch.float32).max
    logits = torch.zeros(3, 300)
    logits[1:, 0] = largest
    logits[2, 1:150] = largest  # of many classes, and a loss at the end of all numbers
    scores = emp.score(logits, torch.tensor([0, 0, 299]), beta=beta, backend=backend)
    assert scores.loss[2] == largest
    assert scores.entropy[2] > 5
    assert scores.score.isfinite().all()
    with pytest.raises(ValueError, match="EMPState: beta must be finite"):
        emp.EMPState(3, beta=beta * 1.1)


# ---- keep


WRONG_KEEP_TYPES = [True, False, None, "0.3", [0.3], np.True_, 1j, decimal.Decimal("0.3")]
WRONG_KEEPS = [0.0, -0.1, 1.0000001, 2.0, math.nan, INF, -INF, 0, -1, 10**30, fractions.Fraction(3)]


@pytest.mark.parametrize("per", ["all", "row", "sequence"])
def test_any_number_is_kept_of_no_rows(per, backend):
    shape = (0,) if per == "all" else (0, 4)
    logits, labels = torch.empty(*shape, 3), torch.empty(shape, dtype=torch.int64)
    for keep in (1, 2**63, 10**30):
        keep = min(keep, 4) if per == "row" else keep
        found = emp.score_and_select(logits, labels, None, keep, per=per, backend=backend)
        assert found.indices.tolist() == emp.select(logits.new_empty(0), keep).tolist() == []


def test_keep(backend):
    scores = torch.arange(5.0)
    for keep in [*WRONG_KEEP_TYPES, torch.tensor(0.5)]:
        spoilt("score_and_select", backend, TypeError, f"keep {WORDING}", keep=keep)
        refuses(
            TypeError,
            "select",
            {"scores": scores, "keep": keep},
            f"keep {WORDING}",
            backend=backend,
        )
    for keep in [*WRONG_KEEPS, 6]:
        spoilt("score_and_select", backend, ValueError, f"keep {WORDING}", keep=keep)
        refuses(
            ValueError,
            "select",
            {"scores": scores, "keep": keep},
            f"keep {WORDING}",
            backend=backend,
        )


@given(keep=st.one_of(st.floats(), st.integers()))
def test_any_keep(backend, keep):
    """Every number is either a good keep or a ValueError."""
    scores = torch.arange(7.0)
    good = 0 < keep <= 1 if isinstance(keep, float) else 1 <= keep <= 7
    if good:
        want = oracle.select(scores, keep)
        assert torch.equal(emp.select(scores, keep, backend=backend), want)
        chosen = emp.score_and_select(
            torch.zeros(7, 2), torch.zeros(7, dtype=torch.int64), None, keep, backend=backend
        )
        assert len(chosen.indices) == len(want)
    else:
        arguments = {"scores": scores, "keep": keep}
        refuses(ValueError, "select", arguments, f"keep {WORDING}", backend=backend)
        spoilt("score_and_select", backend, ValueError, f"keep {WORDING}", keep=keep)


def test_scores_of_select(backend):
    for wrong in NO_ARRAYS:
        arguments = {"scores": wrong, "keep": 1}
        refuses(TypeError, "select", arguments, f"scores {WORDING}", backend=backend)
    for dtype in NOT_FLOATS:
        arguments = {"scores": torch.zeros(4).to(dtype), "keep": 1}
        refuses(TypeError, "select", arguments, f"scores {WORDING}", backend=backend)
    sparse = {"scores": torch.ones(4).to_sparse(), "keep": 1}
    refuses(TypeError, "select", sparse, f"scores {WORDING}", backend=backend)
    for shape in ((), (1, 4), (4, 1), (2, 2), (0, 4)):
        arguments = {"scores": torch.zeros(shape), "keep": 1}
        refuses(ValueError, "select", arguments, f"scores {WORDING}", backend=backend)


# ---- labels and ids


@pytest.mark.parametrize("function", SCORING)
@given(
    place=st.integers(0, 19),
    bad=st.one_of(
        st.sampled_from([-1, -100, 4, 5, 127, -128, 2**31 - 1, -(2**31), BIG - 1, -BIG]),
        st.integers(-BIG, BIG - 1).filter(lambda x: not 0 <= x < 4),
    ),
    ignored=st.booleans(),
)
def test_a_label_out_of_range(function, backend, place, bad, ignored):
    """The first one is named, with its row; ignored rows do not hide others."""
    arguments = good_call(function, rows=20)
    arguments["labels"][place] = bad
    if ignored:
        arguments["ignore_index"] = -7 if bad != -7 else -8
        if place:
            arguments["labels"][0] = arguments["ignore_index"]
    if place < 19:
        arguments["labels"][19] = 77
    refuses(
        ValueError,
        function,
        arguments,
        rf"labels must be in \[0, 4\), got {bad} in row {place}",
        backend=backend,
    )


@pytest.mark.parametrize("function", SCORING)
@pytest.mark.parametrize(
    ("dtype", "bad"),
    [(torch.int8, -1), (torch.int8, 127), (torch.uint8, 255), (torch.int16, -300),
     (torch.uint16, 65535), (torch.int32, -(2**31)), (torch.uint32, 2**32 - 1),
     (torch.uint64, 2**63), (torch.uint64, 2**64 - 1)],
)  # fmt: skip
def test_a_label_out_of_range_in_every_dtype(function, dtype, bad, backend):
    labels = torch.tensor([0, 1, bad, 3, bad], dtype=dtype)
    named = bad if bad < 2**63 else r"\d+"  # larger ones are read as the largest int64
    spoilt(function, backend, ValueError, rf"labels must be in \[0, 4\), got {named} in row 2",
           labels=labels)  # fmt: skip


@pytest.mark.parametrize("function", SCORING)
def test_a_label_out_of_range_in_a_large_batch(function, backend, threads):
    """Nothing is written, whichever thread finds it."""
    rows = 70_000
    arguments = good_call(function, rows)
    if function == "score_and_select":
        arguments |= {"state": emp.EMPState(rows), "indices": None}
    for place in (0, rows // 2, rows - 1):
        arguments["labels"] = torch.zeros(rows, dtype=torch.int64)
        arguments["labels"][place] = 4
        for count in threads[:2]:
            torch.set_num_threads(count)
            refuses(ValueError, function, arguments, f"in row {place}", backend=backend)


def test_a_label_out_of_range_in_three_dimensions(backend):
    logits, labels = torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64)
    labels[1, 0] = 4
    for function in SCORING[:2]:
        refuses(
            ValueError,
            function,
            {"logits": logits, "labels": labels},
            r"labels must be in \[0, 4\), got 4 in row 3",
            backend=backend,
        )


@given(
    place=st.integers(0, 19),
    bad=st.one_of(
        st.sampled_from([-1, 9, 10, 2**31, -(2**31) - 1, 2**32, 2**32 + 3, BIG - 1, -BIG]),
        st.integers(-BIG, BIG - 1).filter(lambda x: not 0 <= x < 9),
    ),
    row=st.sampled_from(["plain", "invalid", "ignored"]),
)
def test_an_id_out_of_range(backend, place, bad, row):
    """Also for a row that would not be written."""
    arguments = good_call("score_and_select", rows=20)
    arguments["indices"][place] = bad
    if row == "invalid":
        arguments["logits"][place] = math.nan
    if row == "ignored":
        arguments |= {"ignore_index": -1}
        arguments["labels"][place] = -1
    refuses(
        ValueError,
        "score_and_select",
        arguments,
        rf"indices must be in \[0, 9\), got {bad} at position {place}",
        backend=backend,
    )


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [(torch.int8, -1), (torch.uint8, 9), (torch.int16, -300), (torch.uint16, 65535),
     (torch.int32, -(2**31)), (torch.uint32, 2**32 - 1), (torch.uint64, 2**64 - 1)],
)  # fmt: skip
def test_an_id_out_of_range_in_every_dtype(dtype, bad, backend):
    indices = torch.tensor([0, 1, bad, 3, bad], dtype=dtype)
    spoilt("score_and_select", backend, ValueError, r"indices must be in \[0, 9\), got ",
           indices=indices)  # fmt: skip


def test_an_id_out_of_range_in_a_large_batch(backend, threads):
    rows = 70_000
    arguments = good_call("score_and_select", rows) | {"state": emp.EMPState(rows)}
    for place in (0, rows // 2, rows - 1):
        arguments["indices"] = torch.arange(rows)
        arguments["indices"][place] = rows
        for count in threads[:2]:
            torch.set_num_threads(count)
            refuses(
                ValueError, "score_and_select", arguments, f"at position {place}", backend=backend
            )


def test_a_bad_label_and_a_bad_id(backend):
    arguments = good_call("score_and_select")
    arguments["labels"][4] = 4
    arguments["indices"][0] = 9
    refuses(ValueError, "score_and_select", arguments, r"\[0, [49]\), got [49]", backend=backend)


def test_indices_of_score_and_select(backend):
    for wrong in (3, "ids", [0, 1, 2, 3, 4], np.arange(5), (0,)):
        spoilt("score_and_select", backend, TypeError, f"indices {WORDING}", indices=wrong)
    for dtype in NOT_INTEGERS:
        indices = torch.arange(5).to(dtype)
        spoilt("score_and_select", backend, TypeError, f"indices {WORDING}", indices=indices)
    for shape in ((4,), (6,), (0,), (), (5, 1), (1, 5)):
        indices = torch.zeros(shape, dtype=torch.int64)
        spoilt("score_and_select", backend, ValueError, f"indices {WORDING}", indices=indices)
        spoilt("score_and_select", backend, ValueError, f"indices {WORDING}", indices=indices,
               state=None)  # fmt: skip


def test_a_state_of_another_size_asks_for_indices(backend):
    for size in (0, 4, 6, 50):
        arguments = good_call("score_and_select") | {"indices": None, "state": emp.EMPState(size)}
        refuses(ValueError, "score_and_select", arguments, "pass indices=.* got ", backend=backend)


def test_the_state(backend):
    for wrong in (3, "state", torch.zeros(5), {}, emp.EMPState, [emp.EMPState(5)]):
        spoilt("score_and_select", backend, TypeError, f"state {WORDING}", state=wrong)
    spoilt("score_and_select", backend, ValueError, f"state {WORDING}",
           state=emp.EMPState(9, device="meta"))  # fmt: skip


def test_no_rows_and_a_state_of_another_size(backend):
    """Without rows there is no id to miss, but the state still is not theirs."""
    logits, labels = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="pass indices="):
        emp.score_and_select(logits, labels, emp.EMPState(3), backend=backend)
    empty = emp.score_and_select(logits, labels, emp.EMPState(3), indices=labels, backend=backend)
    assert empty.indices.shape == (0,)


# ---- backends


@pytest.mark.parametrize("function", [*SCORING, "select"])
def test_unknown_backends(function):
    arguments = {"scores": torch.zeros(3), "keep": 1} if function == "select" else None
    arguments = arguments or good_call(function)
    for name in ("gpu", "", "CPU", "reference ", "emp_kernels"):
        refuses(ValueError, function, arguments, f"backend {WORDING}", backend=name)
    for name in (3, True, ["cpu"], torch.device("cpu"), {"cpu": 1}):
        refuses(TypeError, function, arguments, f"backend {WORDING}", backend=name)


# ---- mistakes with an obvious fix, which the error names


HINTS = {
    "one column": ({"logits": torch.zeros(5, 1), "labels": torch.tensor([0, 0, 1, 0, 1])},
                   ValueError, r"labels must be in \[0, 1\) \(binary .* two columns.*got 1 in row"),
    "one column, floating labels": (
        {"logits": torch.zeros(5, 1), "labels": torch.ones(5)},
        TypeError, r"labels must have an integer dtype \(binary .*two columns.*got torch.float32"),
    "no column": ({"logits": torch.zeros(5)},
                  ValueError, r"logits must have shape .*binary .*two columns.*torch\.stack"),
    "labels (N, 1)": ({"labels": torch.zeros(5, 1, dtype=torch.int64)},
                      ValueError, r"labels must .* \(pass labels\.squeeze\(-1\)\), got \(5, 1\)"),
    "classes in the middle": (
        {"logits": torch.zeros(2, 4, 3), "labels": torch.zeros(2, 3, dtype=torch.int64),
         "indices": None, "state": None},
        ValueError, r"labels must .*\(classes come last: pass logits\.movedim\(1, -1\)\), got"),
    "images": (
        {"logits": torch.zeros(2, 4, 3, 6), "labels": torch.zeros(2, 3, 6, dtype=torch.int64),
         "indices": None, "state": None},
        ValueError, r"(labels|logits) must .*\(classes .*last.*logits\.movedim\(1, -1\).*, got"),
}  # fmt: skip


@pytest.mark.parametrize("case", HINTS)
@pytest.mark.parametrize("function", SCORING)
def test_what_is_plainly_meant_is_said(function, case, backend):
    changes, error, message = HINTS[case]
    changes = {name: x for name, x in changes.items() if name in good_call(function)}
    spoilt(function, backend, error, message, **changes)


@pytest.mark.parametrize("case", HINTS)
def test_the_loss_says_what_is_plainly_meant(case):
    changes, error, message = HINTS[case]
    arguments = good_call("score") | {x: changes[x] for x in ("logits", "labels") if x in changes}
    if case == "one column, floating labels":
        message = r"labels must .*probabilities .*\(binary .*two columns.*got torch.float32"
    refuses(error, "cross_entropy", {x: arguments[x] for x in ("logits", "labels")}, message)


def test_the_mends_serve():
    """The arguments that the errors suggest are accepted and give the intended results."""
    z, y = torch.tensor([0.3, -2.0, 1.0]), torch.tensor([0, 1, 1])
    loss = emp.cross_entropy(torch.stack([torch.zeros_like(z), z], -1), y)
    want = torch.nn.functional.binary_cross_entropy_with_logits(z, y.float())
    torch.testing.assert_close(loss, want)
    images, masks = torch.randn(2, 4, 3, 6), torch.randint(4, (2, 3, 6))
    loss = emp.cross_entropy(images.movedim(1, -1), masks)
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(images, masks))


def test_probabilities_of_one_column_train_nothing():
    cautions._told.pop(check_targets, None)
    logits = torch.zeros(5, 1, requires_grad=True)
    with pytest.warns(
        emp.EMPWarning, match="of one column .* binary classification needs two"
    ) as got:
        emp.cross_entropy(logits, torch.ones(5, 1)).backward()
    assert [warning.filename for warning in got] == [__file__]
    assert not logits.grad.any()


def test_ids_in_the_place_of_keep(backend):
    arguments = good_call("score_and_select")
    ids = arguments["indices"]
    message = r"keep must .*\(sample ids are passed by name, indices=ids\), got "
    for wrong in (ids, ids.tolist(), ids.numpy()):
        spoilt("score_and_select", backend, TypeError, message, keep=wrong, indices=None)
    message = r"pass indices= \(the ids of the rows, as a keyword after keep\)"
    spoilt("score_and_select", backend, ValueError, message, indices=None)
    with pytest.raises(TypeError) as caught:
        emp.select(torch.zeros(5), ids)
    assert "indices" not in str(caught.value)


def test_a_backend_that_does_not_score_names_those_that_do():
    for function in SCORING:
        message = f"backend 'cuda' does not offer {function}; pass 'reference', 'cpu', 'triton' or"
        with pytest.raises(RuntimeError, match=f"^{function}: {message} backend=None$"):
            getattr(emp, function)(**good_call(function), backend="cuda")
