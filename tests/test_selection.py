"""select: the exact top-k, ties to the lowest index, the same at any thread count."""

import functools
import math

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import emp_kernels as emp
from emp_kernels.keep import kept_count

INF = float("inf")
NAN = float("nan")
SIZES = [1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 255, 257, 1000, 2047, 2048]
SIZES += [2049, 4095, 4096, 4097, 10_000, 16_383, 16_385, 32_768, 32_769, 65_535, 65_537]


def rng(seed=0):
    return np.random.default_rng(seed)


def specials(r, n):
    """Every special value, many times over."""
    values = [0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, -NAN, 1e-45, -1e-45, 3.4e38, -3.4e38]
    return np.array(values)[r.integers(len(values), size=n)]


def any_bits(r, n):
    """Every bit pattern: subnormals, NaN payloads of both signs."""
    return r.integers(2**32, size=n, dtype=np.uint32).view(np.float32)


def zeros_among_others(r, n):
    return np.where(r.random(n) < 0.8, r.choice([0.0, -0.0], n), r.choice([-1.0, 1.0], n))


def neighbours(r, n):
    """Fifty floats one ulp apart."""
    return (np.uint32(0x3F800000) + r.integers(0, 50, n).astype(np.uint32)).view(np.float32)


def one_bucket(r, n):
    """Equal in their upper 21 bits: a histogram of the upper bits sees one value."""
    return (np.uint32(0x3FC00000) + r.integers(0, 1 << 11, n).astype(np.uint32)).view(np.float32)


def diluted(value, share):
    """`value` in that share of the positions, ordinary numbers elsewhere."""
    return lambda r, n: np.where(r.random(n) < share, value, r.standard_normal(n))


FAMILIES = {
    "normal": lambda r, n: r.standard_normal(n),
    "losses": lambda r, n: r.exponential(size=n) ** 3,
    "few values": lambda r, n: r.integers(-2, 3, size=n) / 2,
    "two values": lambda r, n: (r.random(n) < 0.3).astype(float),
    "all equal": lambda r, n: np.full(n, 0.7),
    "signed zeros": lambda r, n: np.where(r.random(n) < 0.5, 0.0, -0.0),
    "zeros among others": zeros_among_others,
    "specials": specials,
    "any bits": any_bits,
    "neighbours": neighbours,
    "one bucket": one_bucket,
    "subnormal": lambda r, n: r.integers(-40, 40, n).astype(np.float32) * np.float32(1e-45),
    "mostly NaN": diluted(NAN, 0.95),
    "all NaN": lambda r, n: np.full(n, NAN),
    "mostly -inf": diluted(-INF, 0.95),
    "never seen": diluted(INF, 0.6),
    "ascending": lambda r, n: np.arange(n) - n / 2,
    "descending": lambda r, n: n / 2 - np.arange(n),
    "negative": lambda r, n: -1 - r.random(n),
}
LARGE = ["normal", "few values", "specials", "any bits", "one bucket", "never seen", "all NaN"]


@functools.lru_cache(maxsize=1000)
def scores_of(family, n):
    """Float32 scores (n,) of a family, kept with their order for `check`."""
    with np.errstate(over="ignore"):
        values = FAMILIES[family](rng(n), n)
        return torch.from_numpy(np.ascontiguousarray(values.astype(np.float32)))


@functools.lru_cache(maxsize=1000)
def order_of(family, n):
    return oracle.order(oracle.to_float64(scores_of(family, n)))


def check(scores, keep, backend, order=None):
    """select against the oracle's order, and that it wrote nothing."""
    order = oracle.order(oracle.to_float64(scores)) if order is None else order
    version = scores._version
    got = emp.select(scores, keep, backend=backend)
    assert scores._version == version
    assert got.dtype == torch.int64
    assert got.device == scores.device
    assert not got.requires_grad
    want = torch.from_numpy(np.sort(order[: oracle.kept(keep, len(scores))]))
    if not torch.equal(got, want):
        missing = sorted(set(want.tolist()) - set(got.tolist()))[:5]
        extra = sorted(set(got.tolist()) - set(want.tolist()))[:5]
        pytest.fail(
            f"n={len(scores)}, keep={keep}: got {len(got)} of {len(want)}, missing {missing}, "
            f"extra {extra}, ascending: {bool((got.diff() > 0).all())}"
        )


def test_scores_are_left_alone(backend):
    scores = scores_of("any bits", 5000)
    before = oracle.fingerprint(scores)
    emp.select(scores, 0.3, backend=backend)
    assert oracle.fingerprint(scores) == before


@pytest.mark.parametrize("family", FAMILIES)
def test_every_size_and_keep(family, backend):
    for n in SIZES:
        scores = scores_of(family, n)
        for keep in {1, 2, 0.1, 0.3, 0.5, n // 2, n - 1, n}:
            if isinstance(keep, float) or 1 <= keep <= n:
                check(scores, keep, backend)


@pytest.mark.parametrize("family", LARGE)
def test_a_million(family, backend):
    for keep in (0.3, 5):
        check(scores_of(family, 1_000_003), keep, backend, order_of(family, 1_000_003))


def test_every_count_of_a_small_array(backend):
    for family in FAMILIES:
        for keep in range(1, 71):
            check(scores_of(family, 70), keep, backend, order_of(family, 70))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_scores(family, dtype, backend):
    for n in (1, 9, 1000, 40_001):
        scores = scores_of(family, n).to(dtype)
        order = oracle.order(oracle.to_float64(scores))
        for keep in (1, 0.3, n):
            check(scores, keep, backend, order)


def test_float64_scores_are_ranked_as_float64():
    scores = 1 + 2.0**-50 * torch.arange(1000, dtype=torch.float64)[torch.randperm(1000)]
    for backend in (None, "reference"):
        check(scores, 10, backend)
        check(scores, 0.5, backend)


@pytest.mark.parametrize("family", ["normal", "few values", "specials", "one bucket", "all NaN"])
def test_any_thread_count(family, backend, threads):
    for n in (1, 100, 4096, 65_537, 1_000_003):
        for count in threads if n < 10**6 or backend != "reference" else [3]:
            torch.set_num_threads(count)
            check(scores_of(family, n), 0.3, backend, order_of(family, n))


def test_layouts(backend):
    values = scores_of("few values", 40_000)
    check(values[::2], 0.3, backend)
    check(values[3::7], 100, backend)
    check(values[1:], 0.3, backend)
    check(values.view(200, 200)[:, 5], 0.3, backend)
    check(values[:1].expand(5000), 0.3, backend)
    check(values[:1].expand(5000), 4999, backend)
    for offset in range(1, 17):
        check(values[offset : offset + 100], 0.5, backend)


def test_ties_by_hand(backend):
    scores = torch.tensor([0.0, -0.0, NAN, -INF, 1.0, INF, 0.0, -NAN, -INF, 1.0])
    wants = [[5], [4, 5], [4, 5, 9], [0, 4, 5, 9], [0, 1, 4, 5, 9], [0, 1, 4, 5, 6, 9]]
    wants += [[0, 1, 3, 4, 5, 6, 9], [0, 1, 3, 4, 5, 6, 8, 9], [0, 1, 2, 3, 4, 5, 6, 8, 9]]
    for count, want in enumerate(wants, start=1):
        assert emp.select(scores, count, backend=backend).tolist() == want
    assert emp.select(scores, 1.0, backend=backend).tolist() == list(range(10))


def test_thousands_of_ties_at_the_cut(backend):
    """A million bfloat16 losses have about two thousand distinct values."""
    losses = torch.from_numpy(rng(1).exponential(size=1_000_000)).to(torch.bfloat16)
    order = oracle.order(oracle.to_float64(losses))
    check(losses.float(), 0.3, backend, order)
    check(losses, 0.3, backend, order)


def test_more_elements_than_float32_can_count(backend):
    """Beyond 2^24 elements, ties at both ends."""
    n = 2**24 + 5
    scores = torch.zeros(n)
    scores[[0, 7, n // 2, n - 1]] = torch.tensor([-1.0, 1.0, 1.0, 2.0])
    got = emp.select(scores, 5, backend=backend)
    assert got.tolist() == [1, 2, 7, n // 2, n - 1]
    if backend != "reference":  # all but the one lowest
        got = emp.select(scores, n - 1, backend=backend)
        assert len(got) == n - 1
        assert got[0] == 1


@pytest.mark.parametrize("beyond", [-1000, 10], ids=["cut below the zeros", "cut in the zeros"])
def test_a_digit_that_ends_just_below_zero(beyond, backend):
    """Millions of zeros of both signs next to the threshold, for a radix select whose digits start
    at -1.9999999: one ends at -0.0, and tiny negative numbers are in it."""
    n, keep = 3_000_000, 900_000
    scores = torch.full((n,), -1.9999998807907104)
    places = torch.randperm(n, generator=torch.Generator().manual_seed(0))
    zeros, tiny = places[: keep + beyond], places[keep + beyond : keep + beyond + 2000]
    scores[zeros[::2]] = 0.0
    scores[zeros[1::2]] = -0.0
    scores[tiny] = -1e-45
    want = zeros.sort().values[:keep]
    want = torch.cat([want, tiny.sort().values[: keep - len(want)]]).sort().values
    assert torch.equal(emp.select(scores, keep, backend=backend), want)


# ---- how many


KEPT = [
    # keep, n, K: Python's round of the float64 product, halves to even, at least one
    (0.5, 1, 1), (0.5, 2, 1), (0.5, 3, 2), (0.5, 5, 2), (0.5, 7, 4), (0.5, 9, 4), (0.3, 1, 1),
    (0.3, 5, 2), (0.3, 10, 3), (0.1, 5, 1), (0.1, 14, 1), (0.1, 15, 2), (0.1, 25, 2),
    (0.35, 10, 4), (0.45, 10, 4), (0.7, 5, 4), (0.15, 10, 2), (0.25, 10, 2), (0.29, 50, 14),
    (1e-300, 1000, 1), (1.0, 17, 17), (0.9999999, 3, 3), (0.3, 256, 77), (0.3, 65536, 19661),
    (np.float32(0.3), 10, 3), (np.float64(0.5), 5, 2), (3, 17, 3), (17, 17, 17), (1, 17, 1),
    (np.int64(4), 17, 4), (np.uint8(4), 17, 4),
]  # fmt: skip


@pytest.mark.parametrize(("keep", "n", "count"), KEPT)
def test_kept_count(keep, n, count, backend):
    scores = torch.arange(n, dtype=torch.float32)
    got = emp.select(scores, keep, backend=backend)
    assert got.tolist() == list(range(n - count, n))


def test_kept_count_does_not_round_in_float32():
    assert kept_count(1.0, 2**24 + 1) == 2**24 + 1
    assert kept_count(0.3, 10**9 + 7) == 300_000_002
    assert kept_count(2**24 + 1, 2**25) == 2**24 + 1


@pytest.mark.parametrize("keep", [0.3, 1.0, 1e-9, 1, 5])
def test_nothing_to_select_from(keep, backend):
    got = emp.select(torch.zeros(0), keep, backend=backend)
    assert got.shape == (0,)
    assert got.dtype == torch.int64


def test_scores_that_require_grad(backend):
    scores = scores_of("normal", 100).clone().requires_grad_()
    assert torch.equal(emp.select(scores * 1, 0.3, backend=backend), oracle.select(scores, 0.3))


def test_lazily_negated_scores(backend):
    real = scores_of("normal", 100)
    scores = torch.complex(torch.zeros(100), -real).conj().imag
    assert scores.is_neg()
    check(scores, 0.3, backend)


def test_torch_defaults_do_not_reach_the_result(backend):
    scores = scores_of("normal", 100)
    torch.set_default_device("meta")
    try:
        got = emp.select(scores, 0.3, backend=backend)
    finally:
        torch.set_default_device(None)
    assert got.device.type == "cpu"
    assert torch.equal(got, oracle.select(scores, 0.3))


# ---- rows that do not count


def counted_only(scores, keep, ignored):
    """The oracle's choice among the rows that count."""
    rows = (~ignored).nonzero()[:, 0]
    return rows[oracle.select(scores[rows], keep)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_ignored_rows_are_neither_counted_nor_returned(family, dtype, backend):
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 9, 65, 1000, 2049, 10_000):
        scores = scores_of(family, n).to(dtype)
        for share in (0.0, 0.1, 0.6, 0.99):
            ignored = torch.rand(n, generator=generator) < share
            counted = n - int(ignored.sum())
            before = oracle.fingerprint(scores), oracle.fingerprint(ignored)
            for keep in [0.3, 1.0, *{min(1, counted), counted // 2, counted} - {0}]:
                got = emp.select(scores, keep, ignored=ignored, backend=backend)
                assert got.dtype == torch.int64
                assert torch.equal(got, counted_only(scores, keep, ignored)), (n, share, keep)
            assert (oracle.fingerprint(scores), oracle.fingerprint(ignored)) == before


def test_ignored_rows_rank_below_nan(backend):
    """NaN rows count, ranked last; ignored rows do not count at all."""
    scores = torch.tensor([NAN, 1.0, INF, -INF, NAN, 2.0])
    ignored = torch.tensor([True, False, True, False, False, False])
    for count, want in enumerate([[5], [1, 5], [1, 3, 5], [1, 3, 4, 5]], start=1):
        assert emp.select(scores, count, ignored=ignored, backend=backend).tolist() == want
    assert emp.select(scores, 1.0, ignored=ignored, backend=backend).tolist() == [1, 3, 4, 5]
    assert emp.select(scores, 0.4, ignored=ignored, backend=backend).tolist() == [1, 5]


def test_a_share_is_that_of_the_rows_that_count(backend):
    """0.6 of 40 tokens of 64, where a share of all would be 38."""
    scores = scores_of("normal", 64)
    ignored = torch.arange(64) % 8 > 4
    got = emp.select(scores, 0.6, ignored=ignored, backend=backend)
    assert len(got) == 24
    assert torch.equal(got, counted_only(scores, 0.6, ignored))


def test_nothing_counts(backend):
    for keep in (0.3, 1.0, 1, 7):
        got = emp.select(torch.ones(5), keep, ignored=torch.ones(5).bool(), backend=backend)
        assert got.shape == (0,)
        assert got.dtype == torch.int64
    none = torch.zeros(0, dtype=torch.bool)
    assert emp.select(torch.zeros(0), 3, ignored=none, backend=backend).shape == (0,)


def test_ignored_of_any_layout_beside_scores_with_a_gradient(backend):
    values = scores_of("few values", 400)
    ignored = torch.arange(800) % 3 == 0
    for own, mask in ((values[::2], ignored[::4]), (values[1:], ignored[:399])):
        own = own.clone().requires_grad_()
        got = emp.select(own * 1, 0.5, ignored=mask, backend=backend)
        assert torch.equal(got, counted_only(own.detach(), 0.5, mask))
        assert not got.requires_grad


def test_float64_scores_with_ignored_rows():
    scores = 1 + 2.0**-50 * torch.arange(1000, dtype=torch.float64)[torch.randperm(1000)]
    ignored = torch.arange(1000) % 2 == 0
    for backend in (None, "reference"):
        got = emp.select(scores, 0.5, ignored=ignored, backend=backend)
        assert torch.equal(got, counted_only(scores, 0.5, ignored))


@pytest.mark.parametrize(
    ("ignored", "keep", "error", "message"),
    [
        (None, 4, ValueError, "keep must be between 1 and the number of rows 3, got 4"),
        (None, 0.0, ValueError, r"keep must be in \(0, 1\] when it is a float, got 0.0"),
        (None, True, TypeError, "keep must be a float in"),
        (torch.zeros(4), 1, TypeError, "ignored must be a torch.bool tensor, got torch.float32"),
        ([True] * 4, 1, TypeError, "ignored must be a torch.bool tensor, got list"),
        (torch.zeros(3).bool(), 1, ValueError, r"shape \(4,\) of scores, got \(3,\)"),
        (torch.zeros(4, 1).bool(), 1, ValueError, r"shape \(4,\) of scores, got \(4, 1\)"),
        (torch.zeros(4, device="meta").bool(), 1, ValueError, "device of scores"),
        (torch.zeros(4).bool().to_sparse(), 1, TypeError, "layout torch.strided"),
    ],
)
def test_wrong_ignored(ignored, keep, error, message, backend):
    mask = torch.tensor([False, True, False, False]) if ignored is None else ignored
    with pytest.raises(error, match=f"^select: .*{message}"):
        emp.select(torch.ones(4), keep, ignored=mask, backend=backend)


# ---- anything at all

FLOATS = st.one_of(
    st.sampled_from([0.0, -0.0, INF, -INF, NAN, 1.0, -1.0]),
    st.floats(width=32, allow_subnormal=True),
)


@given(
    values=hnp.arrays(np.float32, st.integers(1, 200), elements=FLOATS),
    keep=st.one_of(st.integers(1, 200), st.floats(0, 1, exclude_min=True)),
)
def test_any_scores_and_any_keep(backend, values, keep):
    if isinstance(keep, int):
        keep = min(keep, len(values))
    check(torch.from_numpy(values), keep, backend)


@given(bits=hnp.arrays(np.uint32, st.integers(1, 300)), share=st.floats(0.01, 1))
def test_any_bit_pattern(backend, bits, share):
    check(torch.from_numpy(bits.view(np.float32)), share, backend)


@given(st.floats(0, 1, exclude_min=True), st.integers(1, 2**53))
def test_kept_count_is_pythons_round(keep, n):
    assert kept_count(keep, n) == max(1, round(keep * n))
    assert 1 <= kept_count(keep, n) <= n


def test_an_infinite_score_is_the_highest(backend):
    scores = torch.tensor([1.0, math.inf, 2.0, math.inf])
    assert emp.select(scores, 2, backend=backend).tolist() == [1, 3]
