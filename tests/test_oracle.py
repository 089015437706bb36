"""The oracle itself, against 60-digit decimal arithmetic and hand-made tables."""

import math
from decimal import Decimal, localcontext

import numpy as np
import oracle
import pytest
import torch


def decimal_row(z, y):
    """Loss, entropy, lse, confidence, EL2N of one row in 60-digit decimals."""
    with localcontext() as context:
        context.prec = 60
        context.Emin, context.Emax = -(10**9), 10**9
        finite = [(j, Decimal(float(v))) for j, v in enumerate(z) if v != -math.inf]
        top = max(v for _, v in finite)
        e = {j: (v - top).exp() for j, v in finite}
        s = sum(e.values())
        lse = top + s.ln()
        p = {j: x / s for j, x in e.items()}
        entropy = -sum(p[j] * (v - lse) for j, v in finite)
        square = (1 - p[y]) ** 2 + sum(x**2 for j, x in p.items() if j != y)
        loss = lse - dict(finite)[y]
        return tuple(float(x) for x in (loss, entropy, lse, p[y], square.sqrt()))


NASTY = {
    "confident": ([0.0, 100.0, -3.0, 1e-3], 1),
    "confident and wrong": ([0.0, 100.0, -3.0, 1e-3], 0),
    "tied tops": ([7.25, -1.0, 7.25, 7.25], 2),
    "masked": ([-math.inf, 2.5, -math.inf, 40.125], 3),
    "one class": ([-12.5], 0),
    "constant": ([-0.1] * 9, 4),
    "scale 1e4": ([12034.5, -8000.25, 11999.0, 0.0], 0),
    "subnormal answer": ([0.0, -100.0, -101.5], 0),
    "very negative": ([-1e30, -1e30, -1.0000001e30], 1),
    "huge": ([3e38, 3e38, -3e38], 0),
}


@pytest.mark.parametrize("name", NASTY)
def test_statistics_against_decimals(name):
    z, y = NASTY[name]
    row = torch.tensor([z], dtype=torch.float64)
    got = oracle.statistics(row, torch.tensor([y]))
    want = decimal_row(z, y)
    for field, value in zip(("loss", "entropy", "lse", "confidence", "el2n"), want, strict=True):
        assert getattr(got, field)[0] == pytest.approx(value, rel=1e-13, abs=1e-300), field
    assert got.valid[0]
    assert got.correct[0] == (z.index(max(z)) == y)


def test_statistics_of_a_long_flat_row():
    z = torch.full((1, 128256), -0.1, dtype=torch.float32)
    z[0, 77] = 0.0
    got = oracle.statistics(z, torch.tensor([77]))
    below = float(np.float32(-0.1))
    s = 1 + 128255 * math.exp(below)
    assert got.loss[0] == pytest.approx(math.log(s), rel=1e-14)
    assert got.entropy[0] == pytest.approx(math.log(s) - 128255 * math.exp(below) * below / s)


def test_rows_that_do_not_count():
    z = torch.tensor(
        [[0.0, math.nan], [0.0, math.inf], [-math.inf] * 2, [0.0, -math.inf], [3e38, -3e38]],
        dtype=torch.float32,
    )
    got = oracle.statistics(z, torch.tensor([0, 0, 0, 1, 1]))
    assert not got.valid.any()
    assert not got.correct.any()
    got = oracle.statistics(z, torch.tensor([-7, -7, -7, 0, 0]), ignore_index=-7)
    assert got.ignored.tolist() == [True, True, True, False, False]
    assert got.valid.tolist() == [False, False, False, True, True]
    assert (got.loss[:4] == 0).all()
    assert got.entropy[3] == 0


def test_order_by_hand():
    nan, inf = math.nan, math.inf
    scores = np.array([0.0, -0.0, nan, -inf, 1.0, inf, 0.0, -nan, -inf, 1.0])
    assert oracle.order(scores).tolist() == [5, 4, 9, 0, 1, 6, 3, 8, 2, 7]


def test_ulps_and_relative_errors():
    one = np.array([1.0, 0.0, 1e-40])
    got = torch.tensor([1.0 + 2**-22, 2**-149, 1e-40])
    assert oracle.ulps(got, one)[:2].tolist() == [2.0, 1.0]
    assert oracle.relative_errors(got, one)[0] == pytest.approx(2**-22)
    assert oracle.relative_errors(got, one)[1] == 0.0
    assert oracle.relative_errors(torch.tensor([0.0]), np.array([1e-30]))[0] == 1.0
