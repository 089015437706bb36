"""Gathers, and states after updates with duplicates, saving and loading."""

from __future__ import annotations

import io
from collections import namedtuple
from typing import Any

import torch

import emp_kernels as emp

from .. import oracle
from .cases import Case
from .distributions import scores

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32]
DTYPES += [torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64]
Pair = namedtuple("Pair", "left right")


def _leaf(case: Case, n: int) -> torch.Tensor:
    shape = [n] + [1 + case.below(5) for _ in range(case.below(4))]
    if case.below(8) == 0:
        shape.append(case.one_of([0, 100, 1025]))
    data = torch.from_numpy(case.random.integers(-100, 100, shape))
    leaf = data.to(case.one_of(DTYPES))
    layout = case.below(6)
    if layout == 0:
        return leaf.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == 1:
        return torch.cat([leaf, leaf])[::2]
    if layout == 2 and leaf.dtype is not torch.bool:
        return torch._neg_view(leaf)
    if layout == 3:
        return leaf[:1].expand(n, *shape[1:])
    return leaf


def _batch(case: Case, n: int, depth: int = 0) -> Any:
    kind = case.below(5 if depth < 2 else 1)
    if kind == 0:
        return _leaf(case, n)
    parts = [_batch(case, n, depth + 1) for _ in range(2)]
    if kind == 1:
        return dict(zip("ab", parts, strict=True))
    if kind == 2:
        return parts
    return tuple(parts) if kind == 3 else Pair(*parts)


def _check(got: Any, batch: Any, indices: torch.Tensor) -> None:
    if type(got) is not type(batch):
        raise AssertionError(f"a {type(batch).__name__} became a {type(got).__name__}")
    if isinstance(batch, torch.Tensor):
        want = batch.resolve_neg().resolve_conj()[indices]
        if got.dtype != want.dtype or not torch.equal(got, want):
            raise AssertionError(f"wrong rows of {tuple(batch.shape)} {batch.dtype}")
        return
    if isinstance(batch, dict):
        if list(got) != list(batch):
            raise AssertionError(f"keys {list(batch)} became {list(got)}")
        got, batch = list(got.values()), list(batch.values())
    for ours, theirs in zip(got, batch, strict=True):
        _check(ours, theirs, indices)


def gather(case: Case) -> None:
    """emp.gather of nested batches against indexing; of bad indices, its ValueError."""
    n = case.one_of([1, 2, 17, 300])
    batch = _batch(case, n)
    indices = torch.from_numpy(case.random.integers(0, n, case.below(100)))
    if case.below(2):
        indices = indices.sort().values
    torch.set_num_threads(case.one_of([1, 2]))
    if case.below(6) == 0 and len(indices):
        indices[case.below(len(indices))] = case.one_of([-1, n, 2**40, -(2**62)])
        try:
            emp.gather(batch, indices)
        except ValueError as error:
            if not str(error).startswith("gather: indices "):
                raise
            case.count("gathers of bad indices")
            return
        raise AssertionError(f"an index out of range was taken: {indices.tolist()}")
    given = indices.to(case.one_of([torch.int64, torch.int32, torch.int16]))
    with case.mode():
        got = emp.gather(batch, given)
    _check(got, batch, indices)
    case.count("gathers")


def state(case: Case) -> None:
    """A state after updates with duplicate ids against a model row by row, saved and loaded."""
    n = 1 + case.below(40)
    state, model = emp.EMPState(n, device="cpu"), oracle.StateModel(n)
    torch.set_num_threads(1)
    for _ in range(1 + case.below(4)):
        rows = case.below(60)
        ids = case.random.integers(0, n, rows)
        fields = [torch.from_numpy(scores(case, rows)) for _ in range(4)]
        valid = (fields[0] > -torch.inf) & fields[1].isfinite() & fields[2].isfinite()
        given = torch.from_numpy(ids).to(case.one_of([torch.int64, torch.int32, torch.uint8]))
        with case.mode():
            state.update(given, emp.Scores(*fields))
        model.update(ids.tolist(), fields, valid.numpy())
        model.assert_equal(state)
        case.count("updates")
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    twin = emp.EMPState(n, device="cpu")
    twin.load_state_dict(torch.load(file, weights_only=True))
    for name, ours in vars(state).items():
        theirs = getattr(twin, name)
        if isinstance(ours, torch.Tensor):  # bit for bit
            ours, theirs = ours.numpy().tobytes(), theirs.numpy().tobytes()
        if ours != theirs:
            raise AssertionError(f"{name} of a loaded state differs")
    case.count("states loaded")
