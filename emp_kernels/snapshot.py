"""Validation of checkpoints before they are loaded: types first, then values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from .validation import check_int, check_size, check_strided, describe

_LARGEST = torch.iinfo(torch.int64).max


def whole_tensors(entries: Mapping[str, Any]) -> Mapping[str, Any]:
    """`entries` with DTensors replaced by full tensors; if there are any, all ranks of their mesh
    must call."""
    if not isinstance(entries, Mapping):
        return entries  # rejected later
    return {
        name: entry.full_tensor() if hasattr(entry, "full_tensor") else entry
        for name, entry in entries.items()
    }


def check_tensors(
    function: str, entries: Mapping[str, Any], like: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """The entries named in `like`, detached, checked to be dense tensors in memory of its dtypes
    and shapes."""
    found = {}
    for name, own in like.items():
        tensor = entries[name]
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != own.dtype:
            raise TypeError(
                f"{function}: {name} must be a {own.dtype} tensor, got {describe(tensor)}"
            )
        check_strided(function, name, tensor)
        if tensor.is_meta and not own.is_meta:
            raise TypeError(f"{function}: {name} must lie in memory, got a tensor on 'meta'")
        if tensor.shape != own.shape:
            raise ValueError(
                f"{function}: {name} must have shape {tuple(own.shape)}, got {tuple(tensor.shape)}"
            )
        found[name] = tensor.detach()
    return found


def check_counters(function: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that are not tensors: epoch, synced_at and warned."""
    found: dict[str, Any] = {}
    for name in ("epoch", "synced_at"):
        found[name] = check_size(function, name, entries[name])
        if found[name] > _LARGEST:
            raise ValueError(f"{function}: {name} must fit in int64, got {found[name]}")
    found["warned"] = entries["warned"]
    if not isinstance(found["warned"], bool):
        raise TypeError(f"{function}: warned must be a bool, got {describe(found['warned'])}")
    return found


def check_same(function: str, name: str, value: Any, own: float) -> None:
    """Raise unless `value` is a number of the type of `own` and equal to it."""
    if isinstance(own, int):
        value = check_int(function, name, value)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{function}: {name} must be a real number, got {describe(value)}")
    if value != own:
        raise ValueError(f"{function}: {name} must be this state's {own}, got {value}")


def check_values(function: str, tensors: Mapping[str, torch.Tensor], synced_at: int) -> None:
    """Raise unless the tensors hold valid values; synchronises with their device. Meta tensors
    pass."""
    if any(tensor.is_meta for tensor in tensors.values()):
        return
    clock = int(tensors["clock"])
    rules = {"score": ("above -inf", tensors["score"] > -math.inf)}  # NaN is not
    for name in ("loss", "entropy", "windows"):
        rules[name] = ("finite", tensors[name].isfinite())
    for name in ("clock", "updates", "selections", "counted"):
        rules[name] = ("at least 0", tensors[name] >= 0)
    seen_at = tensors["seen_at"]
    rules["seen_at"] = (f"from 0 to the clock {clock}", (seen_at >= 0) & (seen_at <= clock))
    for name, (rule, good) in rules.items():
        if not good.all():
            position = int((~good).flatten().nonzero()[0])
            value = tensors[name].flatten()[position].item()
            raise ValueError(f"{function}: {name} must be {rule}, got {value} at {position}")
    if synced_at > clock:
        rule = f"synced_at must be at most the clock {clock}"
        raise ValueError(f"{function}: {rule}, got {synced_at}")


def one_tensor(function: str, name: str, entry: Any, dtype: torch.dtype) -> torch.Tensor:
    """The tensor (L,) in a tuple of one, on the CPU."""
    alone = isinstance(entry, tuple | list) and len(entry) == 1
    if not alone or not isinstance(entry[0], torch.Tensor):
        raise TypeError(
            f"{function}: {name} must be a tuple of one tensor or None, got {type(entry).__name__}"
        )
    tensor: torch.Tensor = entry[0]
    if tensor.dtype != dtype:
        raise TypeError(f"{function}: {name} must hold {dtype}, got {tensor.dtype}")
    check_strided(function, name, tensor)
    if tensor.device.type == "meta":
        raise TypeError(f"{function}: {name} must lie in memory, got a tensor on meta")
    if tensor.dim() != 1:
        raise ValueError(f"{function}: {name} must have shape (L,), got {tuple(tensor.shape)}")
    return tensor.detach().cpu().contiguous()
