"""KeyIds: dense, exact ids of string keys, the same after a resume."""

import copy
import io
import pickle
import random

import pytest
import torch
import torch.distributed.checkpoint as checkpoint
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

import emp_kernels as emp


def test_ids_are_dense_and_in_order_of_first_sight():
    ids = emp.KeyIds()
    keys = ["b", "a", "b", "", "c/d", "a", "é", "\ud800"]
    assert [ids[key] for key in keys] == [0, 1, 0, 2, 3, 1, 4, 5]
    assert len(ids) == 6
    assert list(ids) == ["b", "a", "", "c/d", "é", "\ud800"]
    assert "b" in ids
    assert "x" not in ids
    assert ids.get("x") is None
    assert ids.get("x", -1) == -1
    assert ids.get("c/d") == 3
    assert len(ids) == 6
    assert type(ids["b"]) is int


class Collides(str):
    """A string whose hash all others of its kind have."""

    __slots__ = ()

    def __hash__(self):
        return 1

    def __eq__(self, other):
        return str.__eq__(self, other)


def test_keys_of_one_hash_are_different_keys():
    ids = emp.KeyIds()
    keys = [Collides(f"key {i}") for i in range(300)]
    assert [ids._ids.setdefault(key, i) for i, key in enumerate(keys)] == list(range(300))
    assert [ids[key] for key in keys] == list(range(300))


def test_a_million_keys():
    """More keys than 32-bit hashes can distinguish: a few hundred would collide."""
    ids = emp.KeyIds(f"shard-{i % 1000:04d}.tar/{i:07d}" for i in range(1_000_000))
    assert len(ids) == 1_000_000
    for i in random.Random(0).sample(range(1_000_000), 1000):
        assert ids[f"shard-{i % 1000:04d}.tar/{i:07d}"] == i


@pytest.mark.parametrize("key", [1, None, b"a", ("a",), 0.5])
def test_keys_are_strings(key):
    ids = emp.KeyIds(["a"])
    with pytest.raises(TypeError, match=r"^KeyIds: key must be a str, got"):
        ids[key]
    with pytest.raises(TypeError, match=r"^KeyIds: keys must be an iterable of str, got str"):
        emp.KeyIds("abc")
    assert list(ids) == ["a"]


@given(st.lists(st.text(max_size=8), unique=True, max_size=40))
def test_a_resume_gives_the_same_ids(keys):
    ids = emp.KeyIds(keys)
    file = io.BytesIO()
    torch.save(ids.state_dict(), file)
    file.seek(0)
    again = emp.KeyIds(["something else"])
    again.load_state_dict(torch.load(file, weights_only=True))
    assert list(again) == keys
    assert [again[key] for key in keys] == list(range(len(keys)))
    assert again["new" * 9] == len(keys)
    assert len(ids) == len(keys)


def test_copies_go_their_own_way():
    ids = emp.KeyIds(["a", "b"])
    for other in (pickle.loads(pickle.dumps(ids)), copy.deepcopy(ids)):
        assert other["c"] == 2
    assert "c" not in ids


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_distributed_checkpoint(tmp_path):
    ids, again = emp.KeyIds(f"k{i}" for i in range(500)), emp.KeyIds(["x"])
    checkpoint.save({"ids": ids}, checkpoint_id=tmp_path)
    checkpoint.load({"ids": again}, checkpoint_id=tmp_path)
    assert list(again) == list(ids)


def tensors(text, ends):
    return {"text": (torch.tensor(text, dtype=torch.uint8),), "ends": (torch.tensor(ends),)}


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"version": 3}, ValueError, "version must be 1, got 3"),
        (tensors([97, 98], [1, 1]), ValueError, "ends must ascend from 0 to the text's length 2"),
        (tensors([97, 98], [2, 1, 2]), ValueError, "ends must ascend"),
        (tensors([97, 98], [-1, 2]), ValueError, "ends must ascend"),
        (tensors([97, 98], [1, 3]), ValueError, "ends must ascend"),
        (tensors([97], torch.zeros(0).long().tolist()), TypeError, "ends must hold torch.int64"),
        (tensors([97, 97], [1, 2]), ValueError, "text must hold each key once, got 2 keys, 1 of"),
        (tensors([255], [1]), ValueError, "text must be UTF-8, got"),
        ({"text": None}, TypeError, "text must be a tuple of one tensor"),
        ({"text": (torch.zeros(2),)}, TypeError, "text must hold torch.uint8, got torch.float32"),
    ],
)
def test_checkpoints_that_are_none(entries, error, message):
    ids = emp.KeyIds(["a", "b"])
    with pytest.raises(error, match=f"^KeyIds.load_state_dict: {message}"):
        ids.load_state_dict(ids.state_dict() | entries)
    with pytest.raises(ValueError, match="got one without ends"):
        ids.load_state_dict({"version": 1, "text": None})
    assert list(ids) == ["a", "b"]


class Names(IterableDataset):
    def __init__(self, ids, keys):
        self.ids, self.keys = ids, keys

    def __iter__(self):
        for key in self.keys:
            yield self.ids[key]


def test_a_worker_knows_ids_and_gives_none():
    ids = emp.KeyIds(["a", "b", "c"])
    loader = DataLoader(Names(ids, ["c", "a"]), batch_size=None, num_workers=1)
    assert [int(i) for i in loader] == [2, 0]
    loader = DataLoader(Names(ids, ["c", "new"]), batch_size=None, num_workers=1)
    with pytest.raises(RuntimeError, match="KeyIds: key must be known in a DataLoader's worker"):
        list(loader)
    assert len(ids) == 3
