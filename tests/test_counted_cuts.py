"""Cuts found from blocks give the same result as a stable sort."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emp_kernels import counted_cuts
from emp_kernels.counted_cuts import Block, Taking, find_cut
from emp_kernels.order_keys import order_keys, values_of_keys

SPECIAL = [0.0, -0.0, float("inf"), -float("inf"), float("nan"), 1.0, -1.0, 1e-45, -1e-45, 3.4e38]


def highest(values, count):
    """Ascending positions by a stable sort of the order keys."""
    return order_keys(values).argsort(descending=True, stable=True)[:count].sort().values


def taken(values, groups, counts, size):
    """What the blocks of `size` take, as positions, and the cut."""

    keys = order_keys(values)

    def blocks():
        for i in range(0, len(values), size):
            yield Block(keys[i : i + size], None if groups is None else groups[i : i + size])

    cut = find_cut(blocks, torch.tensor(counts), keys.dtype, grouped=groups is not None)
    taking = Taking(cut)
    masks = [taking.of(block) for block in blocks()]
    return torch.cat(masks or [torch.zeros(0, dtype=torch.bool)]).nonzero()[:, 0], cut


@pytest.fixture(params=[1 << 22, 64, 1])
def counters(request, monkeypatch):
    """Many passes of few digits, too."""
    monkeypatch.setattr(counted_cuts, "COUNTERS", request.param)


@pytest.mark.usefixtures("counters")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["spread", "tied", "special"])
def test_one_target(dtype, kind):
    generator = torch.Generator().manual_seed(3)
    n = 500
    values = torch.randn(n, generator=generator, dtype=dtype)
    if kind == "tied":
        values = (2 * values).round()
    if kind == "special":
        values = torch.tensor(SPECIAL, dtype=dtype)[torch.randint(10, (n,), generator=generator)]
    for count in (0, 1, 7, 250, n - 1, n):
        found, cut = taken(values, None, [count], 97)
        assert torch.equal(found, highest(values, count))
        if count and not values[found].isnan().any():
            assert values_of_keys(cut.keys) == values[found].min()


@pytest.mark.usefixtures("counters")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_target_a_group(dtype):
    generator = torch.Generator().manual_seed(4)
    n, groups = 600, 7
    values = torch.randn(n, generator=generator, dtype=dtype).mul(3).round()
    group = torch.randint(groups - 1, (n,), generator=generator)  # the last one is empty
    counts = [int((group == g).sum()) * (g % 4) // 3 for g in range(groups)]
    found, _ = taken(values, group, counts, 50)
    want = [
        (group == g).nonzero()[:, 0][highest(values[group == g], counts[g])] for g in range(groups)
    ]
    assert torch.equal(found, torch.cat(want).sort().values)


@pytest.mark.usefixtures("counters")
def test_several_ranks_in_one_search():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(5))
    ranks = torch.tensor([1, 500, 10, 1000, 500, 999])
    cut = find_cut(lambda: [Block(order_keys(values), None)], ranks, torch.int32, grouped=False)
    assert torch.equal(values_of_keys(cut.keys), values.sort(descending=True).values[ranks - 1])


@given(
    st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=40),
    st.integers(0, 40),
    st.integers(1, 40),
)
def test_any_values(numbers, count, size):
    values = torch.tensor(numbers, dtype=torch.float32)
    count = min(count, len(values))
    assert torch.equal(taken(values, None, [count], size)[0], highest(values, count))


def test_keys_lead_back_to_values():
    for dtype in (torch.float32, torch.float64):
        values = torch.tensor(SPECIAL, dtype=dtype)
        back = values_of_keys(order_keys(values))
        assert torch.equal(back.nan_to_num(7.0), values.nan_to_num(7.0))


def test_no_scores():
    found, _ = taken(torch.zeros(0), None, [0], 5)
    assert len(found) == 0
