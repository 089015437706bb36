"""Selecting the samples to train from a batch of candidates, in any training loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from ..distributed import ShardedState
from ..keep import kept_count
from ..selection import select
from ..state import EMPState
from ..validation import check_size


def check_candidates(function: str, candidates: int) -> int:
    """Return `candidates`, the number of candidates per trained sample.

    Raises:
        TypeError: it is no int.
        ValueError: it is below 1.
    """
    if check_size(function, "candidates", candidates) < 1:
        raise ValueError(f"{function}: candidates must be at least 1, got {candidates}")
    return candidates


def check_max_age(function: str, max_age: int | None, state: EMPState | None) -> int | None:
    """Return `max_age`, how many calls old a score may be that saves a candidate the look; None:
    every candidate is looked at.

    Raises:
        TypeError: it is no int.
        ValueError: it is below 0; the state is shared out, so that no rank has all scores at hand.
    """
    if max_age is None:
        return None
    if isinstance(state, ShardedState):
        raise ValueError(f"{function}: max_age must be None with a ShardedState, got {max_age}")
    return check_size(function, "max_age", max_age)


def to_look_at(state: EMPState, ids: torch.Tensor, max_age: int) -> torch.Tensor:
    """Ascending positions of the candidates `ids` (B,) whose scores are older than `max_age` calls,
    or that have none: on the state's device. At least one, the oldest, so that every rank makes the
    forward pass that the others wait for."""
    age = state.age()[ids.to(state.device)]
    age = age.masked_fill(age < 0, torch.iinfo(age.dtype).max)
    old = (age > max_age).nonzero()[:, 0]
    return old if len(old) else age.argmax()[None]


def filled_up(
    state: EMPState, ids: torch.Tensor, looked: torch.Tensor, scores: torch.Tensor
) -> torch.Tensor:
    """The scores (B,) of all candidates: `scores` at the positions `looked`, else remembered."""
    found = state.score[ids.to(state.device)]
    return found.index_copy(0, looked, scores.to(found.device))


@contextlib.contextmanager
def looking(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each submodule's mode is restored."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def best_of(scores: torch.Tensor, candidates: int) -> torch.Tensor:
    """Ascending positions of the samples to train: the max(1, round(N / candidates)) highest of N
    scores. Invalid (NaN) and ignored (-inf) samples come last."""
    return select(scores, kept_count(1 / candidates, len(scores)))


def narrowed(function: str, batch: Any, rows: torch.Tensor, n: int) -> Any:
    """The samples at `rows` of a batch of `n`: mappings, lists, tuples and NamedTuples of tensors
    (n, ...); numbers, strings, None and 0-d tensors are kept.

    Raises:
        ValueError: a tensor, or a list of other objects, does not have one row per sample.
    """
    if isinstance(batch, torch.Tensor):
        if batch.dim() == 0:
            return batch
        if len(batch) != n:
            raise ValueError(
                f"{function}: with candidates every tensor of a batch must have a row for each of "
                f"its {n} samples, got shape {tuple(batch.shape)}"
            )
        return batch.index_select(0, rows.to(batch.device))
    if isinstance(batch, dict) or hasattr(batch, "keys"):
        parts = {name: narrowed(function, batch[name], rows, n) for name in batch}
        return type(batch)(parts)
    if isinstance(batch, list | tuple):
        if isinstance(batch, list) and not any(map(_holds_rows, batch)):
            if len(batch) != n:
                raise ValueError(
                    f"{function}: with candidates every list of a batch must have an item for each "
                    f"of its {n} samples, got {len(batch)}"
                )
            return [batch[row] for row in rows.tolist()]
        items = [narrowed(function, item, rows, n) for item in batch]
        return type(batch)(*items) if hasattr(batch, "_fields") else type(batch)(items)
    return batch


def _holds_rows(item: Any) -> bool:
    """Whether `item` may hold one row per sample, unlike text and numbers."""
    return isinstance(item, torch.Tensor | list | tuple | dict) or hasattr(item, "keys")
