"""sample_statistics: every field against float64, and its agreement with score."""

import math

import hard_rows
import numpy as np
import oracle
import pytest
import torch

import emp_kernels as emp

INF = float("inf")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
VALUES = ("loss", "entropy", "lse", "confidence", "el2n", "margin")


def assert_statistics(got, truth, names=None):
    """Every field within rtol 2e-5, atol 1e-6 of the truth; `correct` and `prediction` exactly."""
    names = [f"row {i}" for i in range(len(truth.loss))] if names is None else names
    counted = truth.valid | truth.ignored
    for name in VALUES:
        want = getattr(truth, name)
        with np.errstate(over="ignore"):
            want = np.where(np.abs(want) > oracle.FLOAT32_MAX, np.copysign(INF, want), want)
        have = oracle.to_float64(getattr(got, name).reshape(-1))
        with np.errstate(invalid="ignore"):
            close = (np.abs(have - want) <= 1e-6 + 2e-5 * np.abs(want)) | (have == want)
        bad = [
            f"{names[i]}: got {have[i]!r}, want {want[i]!r}"
            for i in np.flatnonzero(~close & counted)
        ]
        assert not bad, f"{name}: {len(bad)} rows wrong\n" + "\n".join(bad[:8])
    assert got.correct.dtype == torch.bool
    np.testing.assert_array_equal(got.correct.reshape(-1).numpy(), truth.correct)
    assert got.prediction.dtype == torch.int64
    np.testing.assert_array_equal(got.prediction.reshape(-1).numpy(), truth.prediction)
    finite = (got.loss.isfinite() & got.entropy.isfinite()).reshape(-1).numpy()
    np.testing.assert_array_equal(finite, counted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "classes",
    [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 129, 257, 1000, 2049, 4097],
)
def test_hard_rows(classes, dtype, backend):
    for seed in range(3):
        logits, labels, names = hard_rows.batch(classes, dtype, seed=seed)
        truth = oracle.statistics(logits, labels)
        got = emp.sample_statistics(logits, labels, backend=backend)
        assert_statistics(got, truth, names)
        for name in VALUES:
            field = getattr(got, name)
            assert field.dtype == torch.float32
            assert not field.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [50257, 128256])
def test_hard_rows_of_a_vocabulary(classes, dtype, backend):
    families = ["scale 1", "masked blocks", "confident", "ascending", "flat", "broken"]
    logits, labels, names = hard_rows.batch(classes, dtype, families, seed=classes % 3)
    truth = oracle.statistics(logits, labels)
    assert_statistics(emp.sample_statistics(logits, labels, backend=backend), truth, names)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [2, 3, 8, 16, 17, 33, 64, 70, 130, 1025])
def test_ties_at_the_maximum(classes, dtype, backend):
    """prediction is the lowest index, which correct requires; the margin of a tied label is 0."""
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randint(0, 3, (300, classes), generator=generator).to(dtype)
    labels = torch.randint(classes, (300,), generator=generator)
    labels[::2] = logits[::2].float().argmax(1)
    got = emp.sample_statistics(logits, labels, backend=backend)
    assert_statistics(got, oracle.statistics(logits, labels))
    for value in (0.0, -0.0, -5.0, 7.0):
        flat = torch.full((classes, classes), value, dtype=dtype)
        got = emp.sample_statistics(flat, torch.arange(classes), backend=backend)
        assert got.correct.tolist() == [True] + [False] * (classes - 1)
        assert (got.prediction == 0).all()
        assert (got.margin == 0).all()


def test_signed_zeros_tie(backend):
    logits = torch.tensor([[-0.0, 0.0, -1.0], [0.0, -0.0, -1.0]])
    for label, correct in ((0, [True, True]), (1, [False, False])):
        got = emp.sample_statistics(logits, torch.tensor([label] * 2), backend=backend)
        assert got.correct.tolist() == correct
        assert got.prediction.tolist() == [0, 0]
        assert got.margin.tolist() == [0, 0]


@pytest.mark.parametrize("classes", [1, 2, 5, 16, 33, 64, 130])
def test_every_column_is_found(classes, backend):
    """The maximum, and the runner-up, in each column in turn."""
    labels = torch.arange(classes)
    diagonal = torch.eye(classes, dtype=torch.bool)
    base = torch.rand(classes, classes, generator=torch.Generator().manual_seed(1))
    for dtype in DTYPES:
        for value in (9.0, -9.0):
            logits = base.masked_fill(diagonal, value).to(dtype)
            for y in (labels, (labels + 1) % classes, (labels - 1) % classes):
                got = emp.sample_statistics(logits, y, backend=backend)
                assert_statistics(got, oracle.statistics(logits, y))


def test_one_class(backend):
    got = emp.sample_statistics(torch.tensor([[3.5]]), torch.tensor([0]), backend=backend)
    assert [getattr(got, name).item() for name in VALUES] == [0, 0, 3.5, 1, 0, INF]
    assert got.correct.item() is True
    assert got.prediction.item() == 0


def test_two_classes_by_hand(backend):
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]])
    got = emp.sample_statistics(logits, torch.tensor([1, 0]), backend=backend)
    third = [math.log(4 / 3), math.log(4)]
    torch.testing.assert_close(got.loss, torch.tensor(third))
    torch.testing.assert_close(got.confidence, torch.tensor([0.75, 0.25]))
    torch.testing.assert_close(got.el2n, torch.tensor([0.25, 0.75]) * math.sqrt(2))
    torch.testing.assert_close(got.margin, torch.tensor([math.log(3), -math.log(3)]))
    assert got.correct.tolist() == [True, False]


def test_masked_rivals(backend):
    """All other columns at -inf: the margin is +inf, nothing is NaN."""
    logits = torch.full((2, 40), -INF)
    logits[0, 3] = 2.0
    logits[1, 39] = -2.0
    got = emp.sample_statistics(logits, torch.tensor([3, 39]), backend=backend)
    assert got.margin.tolist() == [INF, INF]
    assert got.correct.tolist() == [True, True]
    assert got.confidence.tolist() == [1, 1]
    assert got.el2n.tolist() == [0, 0]


def test_el2n_of_confident_rows_does_not_cancel(backend):
    """The expanded form q / s^2 - 2 p + 1 is off by 7e-4 here."""
    logits = torch.zeros(50, 10)
    logits[:, 4] = torch.linspace(5, 20, 50)
    labels = torch.full((50,), 4)
    got = emp.sample_statistics(logits, labels, backend=backend)
    truth = oracle.statistics(logits, labels)
    np.testing.assert_allclose(got.el2n, truth.el2n, rtol=2e-5, atol=1e-6)


def test_ignored_rows_are_zero(backend):
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    logits[1] = math.nan
    labels = torch.tensor([0, -1, 2, 3, -1, 4])
    got = emp.sample_statistics(logits, labels, ignore_index=-1, backend=backend)
    assert_statistics(got, oracle.statistics(logits, labels, -1))
    for field in got:
        assert field[[1, 4]].tolist() == [0, 0]


def test_invalid_rows_can_be_told(backend):
    logits = torch.zeros(5, 20)
    logits[0, 19] = math.nan
    logits[1, 3] = INF
    logits[2] = -INF
    logits[3, 0] = -INF
    got = emp.sample_statistics(logits, torch.zeros(5, dtype=torch.int64), backend=backend)
    finite = got.loss.isfinite() & got.entropy.isfinite()
    assert finite.tolist() == [False] * 4 + [True]
    assert got.correct.tolist() == [False] * 4 + [True]
    assert got.prediction.tolist() == [0, 0, 0, 1, 0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [5, 40, 1000, 1501, 4100, 9000])
def test_tied_maxima_far_apart(classes, dtype, backend):
    """The first of two maxima is found wherever they are: in different chunks, tiles and edges."""
    generator = torch.Generator().manual_seed(classes)
    first = torch.randint(classes, (60,), generator=generator)
    second = torch.randint(classes, (60,), generator=generator)
    first[:4], second[:4] = torch.tensor([0, 1, 0, classes - 1]), classes - 1
    logits = torch.randn(60, classes, generator=generator).clamp(max=8)
    for top in (8.5, -INF):
        if top < 0:  # all others below every number but -inf, and the maxima the lowest number
            logits, top = torch.full_like(logits, -INF), torch.finfo(dtype).min
        rows = torch.arange(60)
        logits[rows, first] = logits[rows, second] = top
        z = logits.to(dtype)
        got = emp.sample_statistics(z, second, backend=backend)
        assert torch.equal(got.prediction, torch.minimum(first, second))
        assert torch.equal(got.correct, second <= first)
        shifted = torch.cat([z.new_zeros(60, 3), z], 1)[:, 3:]  # rows that start elsewhere
        assert torch.equal(
            emp.sample_statistics(shifted, second, backend=backend).prediction, got.prediction
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts(dtype, backend):
    generator = torch.Generator().manual_seed(5)
    cube = (2 * torch.randn(4, 6, 35, generator=generator)).to(dtype)
    labels = torch.randint(20, (4, 6), generator=generator)
    for z, y in [
        (cube, labels),
        (cube[:, :-1, :33], labels[:, 1:]),
        (cube.transpose(0, 1), labels.t()),
        (cube[..., ::2][..., :17], labels % 17),
        (cube[:1].expand(4, 6, 35), labels),
        (cube[1], labels[1].to(torch.uint8)),
        (cube[:, :0], labels[:, :0]),
        (cube[:0], labels[:0]),
    ]:
        before = oracle.fingerprint(z, y)
        got = emp.sample_statistics(z, y, backend=backend)
        assert oracle.fingerprint(z, y) == before
        assert all(field.shape == y.shape for field in got)
        flat = z.reshape(y.numel(), z.shape[-1])
        assert_statistics(got, oracle.statistics(flat, y.reshape(-1)))


def test_agreement_with_score(backend):
    """The same rows are invalid, and the numbers are the same up to rounding."""
    for classes in (2, 10, 65, 1000):
        logits, labels, _ = hard_rows.batch(classes, torch.float32)
        scores = emp.score(logits, labels, backend=backend)
        got = emp.sample_statistics(logits, labels, backend=backend)
        finite = got.loss.isfinite() & got.entropy.isfinite()
        assert torch.equal(finite, scores.loss.isfinite() & scores.entropy.isfinite())
        assert torch.equal(finite, ~scores.score.isnan())
        for name in ("loss", "entropy", "lse"):
            a, b = getattr(got, name)[finite], getattr(scores, name)[finite]
            torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-6)


def test_float64_is_answered_in_float64():
    logits = torch.randn(20, 9, generator=torch.Generator().manual_seed(2)).double()
    labels = torch.arange(20) % 9
    truth = oracle.statistics(logits, labels)
    got = emp.sample_statistics(logits, labels)
    for name in VALUES:
        assert getattr(got, name).dtype == torch.float64
        np.testing.assert_allclose(getattr(got, name), getattr(truth, name), rtol=1e-12)


def test_autograd_is_left_alone(backend):
    logits = torch.randn(3, 4, requires_grad=True)
    got = emp.sample_statistics(logits, torch.tensor([0, 1, 2]), backend=backend)
    assert not any(field.requires_grad for field in got)
