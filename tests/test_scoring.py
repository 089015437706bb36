"""score: accuracy on rows that break softmax code, layouts and dtypes, rows that do not count."""

import functools
import math

import hard_rows
import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import emp_kernels as emp

INF = float("inf")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
WIDTHS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257]
WIDTHS += [1000, 2047, 2048, 2049, 4095, 4096, 4097]
VOCABULARIES = [50257, 128256]
LABEL_DTYPES = [torch.int64, torch.int32, torch.int16, torch.int8]
LABEL_DTYPES += [torch.uint8, torch.uint16, torch.uint32, torch.uint64]


@functools.lru_cache(maxsize=2)
def hard_batch(classes, dtype, seed=0):
    logits, labels, names = hard_rows.batch(classes, dtype, seed=seed)
    return logits, labels, names, oracle.statistics(logits, labels)


def assert_rows(ok, names, got, want, what):
    """Every entry of the bool array `ok` holds, else the first offenders by name."""
    bad = np.flatnonzero(~ok)
    lines = [f"{names[i]}: got {got[i]!r}, want {want[i]!r}" for i in bad[:8]]
    assert not len(bad), f"{what}: {len(bad)} rows wrong\n" + "\n".join(lines)


def assert_scores(got, truth, beta=1.0, names=None, rtol=1e-5):
    """`got` is the contract's answer for rows whose truth is `truth`."""
    names = [f"row {i}" for i in range(len(truth.loss))] if names is None else names
    valid, ignored = truth.valid, truth.ignored
    arrays = {name: oracle.to_float64(getattr(got, name).reshape(-1)) for name in got._fields}
    for name in ("loss", "entropy"):
        want = np.where(valid | ignored, getattr(truth, name), 0.0)
        error = oracle.relative_errors(getattr(got, name).reshape(-1), want)
        assert_rows((error <= rtol) | ~(valid | ignored), names, arrays[name], want, name)
        assert_rows((arrays[name] >= 0) | ~valid, names, arrays[name], want, f"{name} >= 0")
    with np.errstate(invalid="ignore"):
        lse_error = np.abs(arrays["lse"] - truth.lse) / (1e-6 + 2e-5 * np.abs(truth.lse))
        assert_rows(~(valid | ignored) | (lse_error <= 1), names, arrays["lse"], truth.lse, "lse")
        want = truth.loss + beta * truth.entropy
        scale = np.abs(truth.loss) + abs(beta) * truth.entropy
        tolerance = rtol * scale + 4 * oracle.FLOAT32_STEP
        close = np.abs(arrays["score"] - want) <= tolerance
    assert_rows(close | ~valid, names, arrays["score"], want, "score")
    assert_rows((arrays["score"] == -INF) | ~ignored, names, arrays["score"], want, "ignored")
    invalid = ~valid & ~ignored
    assert_rows(np.isnan(arrays["score"]) | ~invalid, names, arrays["score"], want, "NaN score")
    finite = np.isfinite(arrays["loss"]) & np.isfinite(arrays["entropy"])
    assert_rows(~finite | ~invalid, names, arrays["loss"], truth.loss, "invalid: not finite")
    for field in got:
        assert not field.requires_grad
        assert field.grad_fn is None


# ---- accuracy


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", WIDTHS)
def test_accuracy_on_hard_rows(classes, dtype, backend, record_ulps):
    for seed in range(3):  # the label is in turn the largest logit, any, the smallest
        logits, labels, names, truth = hard_batch(classes, dtype, seed)
        got = emp.score(logits, labels, backend=backend)
        assert all(field.dtype == torch.float32 for field in got)
        assert_scores(got, truth, names=names)
        note_ulps(record_ulps, backend, dtype, names, got, truth)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", VOCABULARIES)
def test_accuracy_on_hard_rows_of_a_vocabulary(classes, dtype, backend, record_ulps):
    logits, labels, names, truth = hard_batch(classes, dtype)
    got = emp.score(logits, labels, backend=backend)
    assert_scores(got, truth, names=names)
    note_ulps(record_ulps, backend, dtype, names, got, truth)


def note_ulps(record_ulps, backend, dtype, names, got, truth):
    """Reports the worst ulp of each family, for values in float32's normal range."""
    for field in ("loss", "entropy"):
        want = getattr(truth, field)
        rows = truth.valid & (want >= oracle.FLOAT32_TINY)
        errors = oracle.ulps(getattr(got, field), np.where(rows, want, 0.0))
        for i in np.flatnonzero(rows):
            record_ulps(backend, dtype, field, names[i].split(" #")[0], errors[i])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [2, 10, 17, 100, 1000, 4097, 32000])
def test_within_8_ulp_at_scale_1(classes, dtype, backend, record_ulps):
    rows = max(4, min(2000, 400_000 // classes))
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(rows, classes, generator=generator).to(dtype)
    labels = torch.randint(classes, (rows,), generator=generator)
    labels[::3] = logits[::3].float().argmax(1)
    truth = oracle.statistics(logits, labels)
    got = emp.score(logits, labels, backend=backend)
    for field in ("loss", "entropy"):
        errors = oracle.ulps(getattr(got, field), getattr(truth, field))
        record_ulps(backend, dtype, field, "scale 1", errors.max())
        worst = int(errors.argmax())
        assert errors.max() <= 8, f"{field} of row {worst} is {errors.max():.1f} ulp off"


@pytest.mark.parametrize("margin", [10, 20, 30, 50, 70, 87, 88, 90, 95, 100])
@pytest.mark.parametrize("classes", [2, 16, 1000])
def test_small_losses_and_entropies_keep_their_relative_accuracy(classes, margin, backend):
    generator = torch.Generator().manual_seed(margin)
    logits = torch.randn(64, classes, generator=generator)
    labels = torch.randint(classes, (64,), generator=generator)
    rows = torch.arange(64)
    logits[rows, labels] = logits.amax(1) + margin
    truth = oracle.statistics(logits, labels)
    got = emp.score(logits, labels, backend=backend)
    assert (truth.loss < 0.1).all()
    assert (truth.entropy < 1).all()
    assert_scores(got, truth)


@pytest.mark.parametrize("classes", [2, 16, 17, 1000, 128256])
def test_terms_that_vanish(classes, backend):
    """exp(z - m) near and below float32's smallest number: each term is accurate to one step."""
    distances = torch.tensor([102.0, 103.0, 103.5, 103.9, 104.5, 110.0, 200.0, 1e4, 1e30])
    logits = -distances[:, None].repeat(1, classes)
    logits[:, classes // 2] = 0.0
    labels = torch.full((len(distances),), classes // 2)
    truth = oracle.statistics(logits, labels)
    got = emp.score(logits, labels, backend=backend)
    for name in ("loss", "entropy"):
        want, allowed = getattr(truth, name), classes * oracle.FLOAT32_STEP
        allowed *= 1 if name == "loss" else 105  # the entropy's terms are exp(d) |d|
        assert (np.abs(oracle.to_float64(getattr(got, name)) - want) <= allowed).all()


def test_entropy_stays_within_its_bounds(backend):
    for classes in (2, 3, 10, 1000, 4097):
        flat = torch.zeros(2, classes)
        flat[1] += 1e-4 * torch.rand(classes, generator=torch.Generator().manual_seed(1))
        got = emp.score(flat, torch.zeros(2, dtype=torch.int64), backend=backend)
        bound = math.log(classes)
        assert (got.entropy.double() <= bound * (1 + 8 * 2**-24)).all()
        assert (got.entropy >= 0).all()


@pytest.mark.parametrize("classes", [1, 5, 16, 33, 64, 130])
def test_every_column_counts(classes, backend):
    """The maximum, a NaN, +inf and the only finite logit in each column in turn."""
    labels = torch.arange(classes)
    base = torch.randn(classes, classes, generator=torch.Generator().manual_seed(3))
    diagonal = torch.eye(classes, dtype=torch.bool)
    for dtype in DTYPES:
        peaked = base.masked_fill(diagonal, 12.0).to(dtype)
        truth = oracle.statistics(peaked, labels)
        assert_scores(emp.score(peaked, labels, backend=backend), truth)
        sunk = base.masked_fill(diagonal, -12.0).to(dtype)
        truth = oracle.statistics(sunk, labels)
        assert_scores(emp.score(sunk, labels, backend=backend), truth)
        alone = base.masked_fill(~diagonal, -INF).to(dtype)
        got = emp.score(alone, labels, backend=backend)
        assert (got.loss == 0).all()
        assert (got.entropy == 0).all()
        assert (got.score == 0).all()
        assert torch.equal(got.lse, base.diagonal().to(dtype).float())
        for value in (math.nan, INF):
            bad = base.masked_fill(diagonal, value).to(dtype)
            for shifted in (labels, (labels + 1) % classes):
                got = emp.score(bad, shifted, backend=backend)
                assert got.score.isnan().all()
                assert not (got.loss.isfinite() & got.entropy.isfinite()).any()


def nan_bits(dtype):
    """NaNs of both signs, quiet and signalling, with full and minimal payloads."""
    if dtype == torch.float32:
        bits = [0x7FC00000, 0xFFC00000, 0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF]
        return torch.from_numpy(np.array(bits, dtype=np.uint32).view(np.float32))
    quiet = 0x7E00 if dtype == torch.float16 else 0x7FC0
    top = 0x7C01 if dtype == torch.float16 else 0x7F81
    bits = [quiet, quiet | 0x8000, top, top | 0x8000, 0x7FFF, 0xFFFF]
    return torch.from_numpy(np.array(bits, dtype=np.uint16).view(np.int16)).view(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 7, 16, 40, 129, 3000])
def test_nan_of_every_kind_makes_its_row_invalid_and_no_other(classes, dtype, backend):
    nans = nan_bits(dtype)
    assert nans.isnan().all()
    places = sorted({0, classes // 2, classes - 1})
    n = 2 * len(nans) * len(places)
    logits = torch.randn(n, classes, generator=torch.Generator().manual_seed(0)).to(dtype)
    spoiled = torch.zeros(n, dtype=torch.bool)
    for i, nan in enumerate(nans):
        for j, place in enumerate(places):
            row = 2 * (i * len(places) + j)
            logits.view(torch.int32 if dtype == torch.float32 else torch.int16)[row, place] = (
                nan.view(torch.int32 if dtype == torch.float32 else torch.int16)
            )
            spoiled[row] = True
    for others in (None, -INF, 3.0):  # NaN beside what could hide it
        z = logits if others is None else logits.masked_fill(~logits.isnan() & spoiled[:, None], 0)
        if others is not None:
            z = torch.where(spoiled[:, None] & ~z.isnan(), torch.tensor(others, dtype=dtype), z)
        labels = torch.zeros(n, dtype=torch.int64)
        got = emp.score(z, labels, backend=backend)
        assert torch.equal(got.score.isnan(), spoiled)
        assert torch.equal(~(got.loss.isfinite() & got.entropy.isfinite()), spoiled)


# ---- layouts, dtypes and sizes


def check(logits, labels, backend, beta=1.0, ignore_index=None):
    """score on any layout against the oracle on a contiguous copy."""
    before = oracle.fingerprint(logits, labels)
    got = emp.score(logits, labels, beta=beta, ignore_index=ignore_index, backend=backend)
    assert oracle.fingerprint(logits, labels) == before
    flat = logits.reshape(labels.numel(), logits.shape[-1])
    truth = oracle.statistics(flat, labels.reshape(-1), ignore_index)
    assert_scores(got, truth, beta)
    for field in got:
        assert field.shape == labels.shape
        assert field.device == logits.device
    return got


def random(shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(shape, generator=generator)).to(dtype)
    return logits, torch.randint(max(shape[-1], 1), shape[:-1], generator=generator)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(dtype, backend):
    logits, labels = random((37, 70), dtype)
    check(logits[:, :65], labels % 65, backend)  # rows padded
    check(logits[:, 3:20], labels % 17, backend)  # rows start off every alignment
    check(logits[1:30:3], labels[1:30:3], backend)  # every third row
    check(logits.t(), torch.arange(70) % 37, backend)  # columns outermost
    check(logits[:, ::2], labels % 35, backend)  # inner stride 2
    check(logits[:, 5::7], labels % 10, backend)
    check(logits[:1].expand(9, 70), labels[:9], backend)  # one row, stride 0
    check(logits[:, :1].expand(37, 6), labels % 6, backend)  # inner stride 0
    check(logits[0, 0].expand(5, 6), labels[:5] % 6, backend)
    check(logits, labels.repeat_interleave(3)[::3], backend)  # strided labels
    check(logits, labels[:1].expand(37), backend)  # one label, stride 0
    flat = logits.reshape(-1)
    for offset in range(1, 17):
        check(flat[offset : offset + 4 * 33].view(4, 33), labels[:4] % 33, backend)
    check(flat.as_strided((30, 20), (7, 1)), labels[:30] % 20, backend)  # overlapping rows


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_leading_dimensions_keep_their_shape(dtype, backend):
    logits, labels = random((4, 9, 33), dtype)
    check(logits, labels, backend)
    check(logits[:, :-1], labels[:, 1:], backend)  # the shift of a language model
    check(logits[1:3, 2:7, :31], labels[1:3, 2:7] % 31, backend)
    check(logits.transpose(0, 1), labels.t(), backend)
    check(logits.transpose(0, 1).contiguous().transpose(0, 1), labels, backend)
    check(logits[:, ::2], labels[:, ::2], backend)
    check(logits.permute(2, 0, 1), torch.arange(33)[:, None].expand(33, 4) % 9, backend)
    check(logits[:, :1].expand(4, 5, 33), labels[:, :5], backend)
    logits, labels = random((2, 3, 4, 17), dtype)
    check(logits, labels, backend)
    check(logits[:, :-1, 1:], labels[:, :-1, 1:], backend)
    check(logits.permute(2, 0, 1, 3), labels.permute(2, 0, 1), backend)
    check(logits[:1, :, :1].expand(2, 3, 4, 17), labels, backend)
    logits, labels = random((1, 1, 5), dtype)
    check(logits, labels, backend)


@pytest.mark.parametrize("dtype", LABEL_DTYPES, ids=str)
def test_label_dtypes(dtype, backend):
    logits, labels = random((50, 100))
    labels[:2] = torch.tensor([0, 99])
    check(logits, labels.to(dtype), backend)
    check(logits, labels.repeat_interleave(2).to(dtype)[::2], backend)
    logits, labels = random((20, 300))
    if torch.iinfo(dtype).max >= 299:
        labels[0] = 299
        check(logits, labels.to(dtype), backend)
    else:
        check(logits, (labels % 100).to(dtype), backend)


def test_uint8_labels_above_127(backend):
    logits, labels = random((20, 256))
    labels[:3] = torch.tensor([255, 128, 200])
    check(logits, labels.to(torch.uint8), backend)
    check(logits, labels.to(torch.uint16), backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 5), (1, 5), (1, 1), (0, 1), (3, 1), (0, 0), (2, 0, 7)])
def test_few_rows_and_columns(shape, dtype, backend):
    check(*random(shape, dtype), backend)


def test_one_class_costs_nothing(backend):
    got = emp.score(
        torch.tensor([[5.0], [-7.5]]), torch.zeros(2, dtype=torch.int64), backend=backend
    )
    assert got.score.tolist() == [0, 0] == got.loss.tolist() == got.entropy.tolist()
    assert got.lse.tolist() == [5.0, -7.5]


def test_scores_are_float32_whatever_the_logits(backend):
    """bfloat16 scores would tie by the thousand."""
    logits, labels = random((3000, 50), torch.bfloat16)
    got = check(logits, labels, backend)
    assert len(got.score.unique()) > 2900


@pytest.mark.parametrize("beta", [0.0, 1.0, -1.0, 0.5, 10.0, 2, np.float32(0.25)])
def test_beta_weighs_the_entropy(beta, backend):
    logits, labels = random((40, 12))
    got = check(logits, labels, backend, beta=beta)
    if beta == 0:
        assert torch.equal(got.score, got.loss)


def test_the_sign_of_beta(backend):
    """The memory term is added: for equal losses, the less certain row scores higher."""
    logits = torch.tensor([[0.0, 0.0, -INF, -INF], [0.0, math.log(0.5), math.log(0.5), -INF]])
    got = emp.score(logits, torch.zeros(2, dtype=torch.int64), backend=backend)
    torch.testing.assert_close(got.loss, torch.full((2,), math.log(2)))
    torch.testing.assert_close(got.entropy, torch.tensor([math.log(2), 1.5 * math.log(2)]))
    torch.testing.assert_close(got.score, torch.tensor([2.0, 2.5]) * math.log(2))


def test_float64_is_served_by_the_reference_and_answered_in_float64():
    logits, labels = random((30, 11), torch.float64)
    truth = oracle.statistics(logits, labels)
    for backend in (None, "reference"):
        got = emp.score(logits, labels, backend=backend)
        assert all(field.dtype == torch.float64 for field in got)
        np.testing.assert_allclose(got.loss, truth.loss, rtol=1e-13)
        np.testing.assert_allclose(got.entropy, truth.entropy, rtol=1e-13)
        np.testing.assert_allclose(got.score, truth.loss + truth.entropy, rtol=1e-13)


def test_offsets_beyond_32_bits(backend):
    """Rows that start at 0, 2^31 - 1 and beyond 2^31 elements; only their pages are touched."""
    classes, stride = 257, 2**30 + 5
    storage = torch.empty(2 * stride + classes, dtype=torch.bfloat16)
    logits = storage.as_strided((3, classes), (stride, 1))
    values, labels = random((3, classes), torch.bfloat16)
    logits.copy_(values)
    got = emp.score(logits, labels, backend=backend)
    assert_scores(got, oracle.statistics(values, labels))
    columns = storage.as_strided((2, 3), (1, stride))  # the inner stride is the large one
    columns.copy_(values[:2, :3])
    got = emp.score(columns, labels[:2] % 3, backend=backend)
    assert_scores(got, oracle.statistics(values[:2, :3], labels[:2] % 3))


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_more_than_2_to_the_31_logits(backend):
    """N * C passes 2^31 (one row with stride 0, so that nothing of that size is stored). The
    reference would take half a minute."""
    row, _ = random((1, 128256), torch.bfloat16)
    n = 2**31 // 128256 + 3
    labels = torch.arange(n) % 128256
    labels[-1] = 128255
    got = emp.score(row.expand(n, -1), labels, backend=backend)
    rows = [0, 1, n // 2, n - 2, n - 1]
    truth = oracle.statistics(row.expand(len(rows), -1), labels[rows])
    assert_scores(emp.Scores(*(field[rows] for field in got)), truth)
    loss = oracle.to_float64(got.lse) - oracle.to_float64(row[0, labels])
    np.testing.assert_allclose(got.loss, loss, rtol=1e-5)


# ---- rows that do not count


def test_ignored_rows_are_not_read(backend):
    logits, labels = random((30, 20))
    labels[[3, 7, 8, 29]] = -100
    logits[3] = math.nan
    logits[7] = INF
    logits[8] = -INF
    got = check(logits, labels, backend, ignore_index=-100)
    assert got.score[[3, 7, 8, 29]].tolist() == [-INF] * 4
    for name in ("loss", "entropy", "lse"):
        assert getattr(got, name)[[3, 7, 8, 29]].tolist() == [0.0] * 4
    untouched, _ = random((30, 20))
    assert torch.equal(logits[[0, 29]], untouched[[0, 29]])


def test_a_class_can_be_ignored(backend):
    logits, labels = random((30, 20))
    labels[4] = 7
    got = check(logits, labels, backend, ignore_index=7)
    assert got.score[4] == -INF
    check(logits, torch.full_like(labels, 7), backend, ignore_index=7)  # every row
    check(logits[:, :0], torch.full_like(labels, 7), backend, ignore_index=7)  # no column to read


def test_ignoring_nothing(backend):
    logits, labels = random((5, 20))
    check(logits, labels, backend, ignore_index=-100)  # not among the labels
    labels[2] = -100
    with pytest.raises(ValueError, match=r"score: labels must be in \[0, 20\), got -100"):
        emp.score(logits, labels, backend=backend)


@pytest.mark.parametrize("dtype", LABEL_DTYPES, ids=str)
def test_ignore_index_is_compared_as_a_number(dtype, backend):
    """A label dtype that cannot hold ignore_index ignores nothing."""
    logits, labels = random((6, 20))
    info = torch.iinfo(dtype)
    for value in (-100, -1, 255, 65435, 2**32 - 100):
        holds = info.min <= value <= info.max
        column = labels.to(dtype)
        if holds:
            column[1] = value
        got = check(logits, column, backend, ignore_index=value)
        assert (got.score == -INF).tolist() == [False, holds, False, False, False, False]


def test_uint64_labels_do_not_wrap_into_ignore_index(backend):
    logits, _ = random((2, 20))
    labels = torch.tensor([3, 2**64 - 100], dtype=torch.uint64)
    with pytest.raises(ValueError, match=r"score: labels must be in \[0, 20\)"):
        emp.score(logits, labels, ignore_index=-100, backend=backend)


def test_a_label_at_minus_infinity_is_invalid(backend):
    logits = torch.tensor([[0.0, -INF, 1.0], [0.0, -INF, 1.0]])
    got = emp.score(logits, torch.tensor([1, 0]), backend=backend)
    assert got.score.isnan().tolist() == [True, False]
    assert got.loss[0] == INF
    assert got.entropy[0].isfinite()


# ---- anything at all

LOGITS = st.one_of(
    st.floats(width=32, allow_nan=False),
    st.floats(-100, 100, width=32),
    st.sampled_from([0.0, -0.0, 1.0, INF, -INF, math.nan, -87.5, -104.0, 3e38, -3e38, 1e-45]),
)


@given(
    values=hnp.arrays(
        np.float32, st.tuples(st.integers(1, 5), st.integers(1, 70)), elements=LOGITS
    ),
    dtype=st.sampled_from(DTYPES),
    label=st.integers(0, 69),
    spread=st.sampled_from([1.0, 1e-3, 1e-30]),
    ignore=st.booleans(),
)
def test_any_logits(backend, values, dtype, label, spread, ignore):
    logits = (torch.from_numpy(values) * spread).to(dtype)
    labels = (label + torch.arange(len(logits))) % logits.shape[1]
    ignore_index = int(labels[0]) if ignore else None
    check(logits, labels, backend, ignore_index=ignore_index)
    check(logits.t().contiguous().t(), labels, backend, ignore_index=ignore_index)


@given(st.data())
def test_any_view(backend, data):
    """Random slices, steps and permutations of a four-dimensional block."""
    dtype = data.draw(st.sampled_from(DTYPES))
    block, _ = random((3, 4, 5, 36), dtype, seed=data.draw(st.integers(0, 3)))
    view = block
    for dim in range(4):
        start = data.draw(st.integers(0, view.shape[dim] - 1))
        stop = data.draw(st.integers(start, view.shape[dim]))
        step = data.draw(st.sampled_from([1, 1, 1, 2, 3]))
        view = view[(slice(None),) * dim + (slice(start, stop, step),)]
    view = view.permute(data.draw(st.permutations(range(4))))
    if data.draw(st.booleans()):
        view = view.select(data.draw(st.integers(0, 2)), 0) if 0 not in view.shape else view
    shape = view.shape[:-1]
    if view.shape[-1] == 0:
        return
    labels = torch.randint(view.shape[-1], shape, generator=torch.Generator().manual_seed(0))
    check(view, labels, backend)


# ---- the surroundings of a call


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_autograd_is_left_alone(dtype, backend):
    logits, labels = random((8, 20), dtype)
    plain = emp.score(logits, labels, backend=backend)
    leaf = logits.clone().requires_grad_()
    derived = leaf * 1
    for z in (leaf, derived, torch.nn.Parameter(logits.clone())):
        got = emp.score(z, labels, backend=backend)
        for a, b in zip(got, plain, strict=True):
            assert torch.equal(a, b)
            assert not a.requires_grad
    derived.sum().backward()  # the graph of the argument still works
    assert torch.equal(leaf.grad, torch.ones_like(leaf))


def test_torch_defaults_do_not_reach_the_results(backend):
    logits, labels = random((8, 20))
    want = emp.score(logits, labels, backend=backend)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        got = emp.score(logits, labels, backend=backend)
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    with torch.inference_mode():
        inference = emp.score(logits, labels, backend=backend)
    for a, b, c in zip(got, want, inference, strict=True):
        assert a.dtype == torch.float32
        assert a.device.type == "cpu"
        assert torch.equal(a, b)
        assert torch.equal(c, b)


def test_lazily_negated_logits(backend):
    """A view that torch negates when read: its memory holds the opposite numbers."""
    real, labels = random((6, 10))
    logits = torch.complex(torch.zeros_like(real), -real).conj().imag
    assert logits.is_neg()
    assert torch.equal(logits, real)
    check(logits, labels, backend)
    check(logits[:, :1], labels * 0, backend)


def test_equal_calls_give_equal_bits(backend):
    logits, labels = random((500, 300))
    first = emp.score(logits, labels, backend=backend)
    for _ in range(3):
        again = emp.score(logits, labels, backend=backend)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
