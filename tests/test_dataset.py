"""IndexedDataset: ids with items, one by one, in batches and through a DataLoader."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

import emp_kernels as emp


class Squares(Dataset):
    """A map-style data set of dictionaries."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        if not -10 <= index < 10:
            raise IndexError(index)
        return {"value": torch.tensor(float(index * index)), "name": f"n{index}"}


class Batched(Squares):
    """One that fetches batches itself, and remembers having done so."""

    def __init__(self):
        self.batches = []

    def __getitems__(self, indices):
        self.batches.append(list(indices))
        return [{"value": torch.tensor(float(i * i)), "name": f"b{i}"} for i in indices]


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(3))

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return index


def test_items_carry_their_index():
    data = emp.IndexedDataset(Squares())
    assert len(data) == 10
    index, item = data[3]
    assert index == 3
    assert type(index) is int
    assert item["value"].item() == 9
    assert item["name"] == "n3"


def test_items_of_any_shape_are_left_as_they_are():
    items = [1, "two", (3, 4), [5], {"six": 7}, None]
    data = emp.IndexedDataset(items)
    for i, item in enumerate(items):
        assert data[i] == (i, item)
        assert data[i][1] is item


def test_negative_and_numpy_indices_give_the_samples_id():
    data = emp.IndexedDataset(list("abc"))
    assert data[-1] == (2, "c")
    assert data[np.int64(1)] == (1, "b")
    assert data[torch.tensor(2)] == (2, "c")
    assert type(data[np.int64(1)][0]) is int


def test_an_index_out_of_range_is_an_index_error():
    with pytest.raises(IndexError):
        emp.IndexedDataset(list("abc"))[3]


def test_iterating_stops_at_the_end():
    assert list(emp.IndexedDataset(list("abc"))) == [(0, "a"), (1, "b"), (2, "c")]


def test_batches_are_forwarded():
    inner = Batched()
    data = emp.IndexedDataset(inner)
    got = data.__getitems__([4, 0, 4])
    assert inner.batches == [[4, 0, 4]]
    assert [index for index, _ in got] == [4, 0, 4]
    assert [item["name"] for _, item in got] == ["b4", "b0", "b4"]
    got = emp.IndexedDataset(Squares()).__getitems__([4, 0])
    assert [(index, item["name"]) for index, item in got] == [(4, "n4"), (0, "n0")]


def test_a_batch_of_another_length_is_an_error():
    inner = Batched()
    inner.__class__ = type("Short", (Batched,), {"__getitems__": lambda self, indices: [0]})
    with pytest.raises(ValueError, match="IndexedDataset: __getitems__ must return 2 items, got 1"):
        emp.IndexedDataset(inner).__getitems__([1, 2])


@pytest.mark.parametrize("inner", [Squares, Batched])
@pytest.mark.parametrize("workers", [0, 2])
def test_through_a_data_loader(inner, workers):
    loader = DataLoader(
        emp.IndexedDataset(inner()), batch_size=4, num_workers=workers, timeout=60 if workers else 0
    )
    seen = []
    for ids, batch in loader:
        assert ids.dtype == torch.int64
        assert torch.equal(batch["value"], ids.float() ** 2)
        seen += ids.tolist()
    assert seen == list(range(10))


def test_the_loop_of_the_contract():
    """The ids that a loader yields are those that the state takes."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(50, 6, generator=generator), torch.arange(50) % 6
    data = emp.IndexedDataset(TensorDataset(x, y))
    state = emp.EMPState(len(data))
    for ids, (inputs, labels) in DataLoader(data, batch_size=8, shuffle=True):
        chosen = emp.score_and_select(inputs, labels, state, 0.5, indices=ids)
        kept = emp.gather([inputs, labels], chosen.indices)
        assert torch.equal(kept[0], x[ids[chosen.indices]])
    assert state.updates.tolist() == [1] * 50
    assert torch.equal(state.score, emp.score(x, y).score)


def test_a_subset_keeps_the_positions_of_what_it_wraps():
    inner = Subset(Squares(), [7, 2, 9])
    assert [index for index, _ in emp.IndexedDataset(inner)] == [0, 1, 2]
    outer = Subset(emp.IndexedDataset(Squares()), [7, 2, 9])
    assert [index for index, _ in outer] == [7, 2, 9]


@pytest.mark.parametrize("wrong", [Stream(), iter([1]), 5, None, {1, 2}, (i for i in range(3))])
def test_only_map_style_data_sets(wrong):
    with pytest.raises(TypeError, match="IndexedDataset: dataset must be map-style"):
        emp.IndexedDataset(wrong)
