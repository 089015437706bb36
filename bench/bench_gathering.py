"""gather of sorted indices, 30 % of the rows, against torch.index_select and NumPy's take; and how
its cost grows with the rows."""

import pytest
import torch

import emp_kernels as emp
from bench import harness

# Row bytes, rows, rounds, calls per round; the second list has batch sizes.
SINGLE = [(4, 10**7, 15, 1), (512, 400_000, 15, 1), (12288, 20_000, 15, 1)]
SINGLE += [(4, 256, 61, 200), (4, 33_333, 61, 50), (512, 256, 61, 200), (12288, 256, 61, 50)]
# Rows, rounds, calls per round: an epoch's images, a large batch, a small batch.
SEVERAL = [(20_000, 15, 1), (1024, 31, 5), (256, 61, 50)]
WIDTH, MOST = 128, 10**7  # growth: elements per row, and rows of the source
GATHERED = [10**3, 10**4, 10**5, 10**6, 3 * 10**6]


def ascending(rows: int) -> torch.Tensor:
    """30 % of the row numbers, drawn at random, ascending."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    return order[: round(0.3 * rows)].sort().values


@pytest.mark.parametrize(
    ("row_bytes", "rows", "rounds", "calls"), SINGLE, ids=[f"{s[0]}B-{s[1]}" for s in SINGLE]
)
def bench_one_tensor(case, row_bytes, rows, rounds, calls):
    """The bytes counted: rows read, rows written, and indices."""
    numbers = torch.randn(rows, row_bytes // 4, generator=torch.Generator().manual_seed(0))
    source = numbers.squeeze(1)  # rows of one number become (N,), like labels
    indices = ascending(rows)
    array, positions = source.numpy(), indices.numpy()
    assert torch.equal(emp.gather(source, indices), source.index_select(0, indices))
    case(
        f"gather rows of {row_bytes} B" + (f", {rows} rows" if calls > 1 else ""),
        lambda: emp.gather(source, indices),
        {
            "index_select": lambda: source.index_select(0, indices),
            "numpy": lambda: array.take(positions, 0),
        },
        moved=len(indices) * (2 * row_bytes + 8),
        rounds=rounds,
        calls=calls,
        goals={"index_select": (1, None)},
        fields={"n": rows, "row_bytes": [row_bytes]},
    )


@pytest.mark.parametrize(("rows", "rounds", "calls"), SEVERAL, ids=[f"{s[0]}" for s in SEVERAL])
def bench_dictionary(case, rows, rounds, calls):
    """Images of 12 KB, features of 512 B and labels, in one call."""
    generator = torch.Generator().manual_seed(0)
    batch = {
        "image": torch.randn(rows, 3, 32, 32, generator=generator),
        "features": torch.randn(rows, 128, generator=generator),
        "label": torch.randint(0, 1000, (rows,), generator=generator),
    }
    indices = ascending(rows)

    def each() -> dict[str, torch.Tensor]:
        return {name: tensor.index_select(0, indices) for name, tensor in batch.items()}

    expected = each()
    for name, tensor in emp.gather(batch, indices).items():
        assert torch.equal(tensor, expected[name])
    row_bytes = [tensor[0].nbytes for tensor in batch.values()]
    case(
        f"gather dict of 3, {rows} rows",
        lambda: emp.gather(batch, indices),
        {"index_select": each},
        moved=len(indices) * (2 * sum(row_bytes) + 8),
        rounds=rounds,
        calls=calls,
        goals={"index_select": (1, None)},
        fields={"n": rows, "row_bytes": row_bytes},
    )


@pytest.fixture(scope="module")
def rows_of_512():
    return harness.normal_logits(MOST * WIDTH, "float32").view(MOST, WIDTH)


@pytest.mark.parametrize("k", GATHERED)
def bench_growth(case, rows_of_512, k):
    source = rows_of_512[: round(k / 0.3)]
    indices = ascending(len(source))
    assert torch.equal(emp.gather(source, indices), source.index_select(0, indices))
    case(
        f"growth gather K = {k:.1e}",
        lambda: emp.gather(source, indices),
        {},
        moved=k * (2 * 4 * WIDTH + 8),
        rounds=9,
        calls=max(1, 10**5 // k),
        fields={"n": len(source), "row_bytes": [4 * WIDTH], "growth": "K", "size": k},
    )
