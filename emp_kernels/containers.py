"""Nested containers of tensors: mappings, lists, tuples, NamedTuples and dataclasses."""

import copy
import dataclasses
from collections import UserDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch


def _is_namedtuple(node: Any) -> bool:
    return isinstance(node, tuple) and hasattr(node, "_fields")


def _is_dataclass(node: Any) -> bool:
    """Whether `node` is a dataclass instance and not also a mapping, list or tuple."""
    return (
        dataclasses.is_dataclass(node)
        and not isinstance(node, type)
        and not isinstance(node, Mapping | list | tuple)
    )


def _fields(node: Any) -> dict[str, Any]:
    """The fields of a dataclass that are set, by name."""
    values = {field.name: getattr(node, field.name) for field in dataclasses.fields(node)}
    return {name: value for name, value in values.items() if value is not None}


def collect(node: Any, leaves: list[torch.Tensor]) -> None:
    """Append the tensors of a nested container to `leaves`, in iteration order.

    Raises:
        TypeError: a leaf is not a tensor, or torch cannot select its rows.
        ValueError: a tensor has no first dimension.
    """
    if isinstance(node, torch.Tensor):
        if node.is_nested or node.layout not in (torch.strided, torch.sparse_coo):
            instead = "unbind()" if node.is_nested else "to_dense()"
            raise TypeError(
                f"gather: batch must hold tensors whose rows torch can select (pass the {instead} "
                f"of this one), got {'a nested tensor' if node.is_nested else node.layout}"
            )
        if node.dim() == 0:
            raise ValueError("gather: batch must hold tensors with a first dimension, got shape ()")
        leaves.append(node)
    elif isinstance(node, dict | Mapping):  # testing for dict first is faster
        for value in node.values():
            collect(value, leaves)
    elif isinstance(node, list | tuple):
        for value in node:
            collect(value, leaves)
    elif _is_dataclass(node):
        for value in _fields(node).values():
            collect(value, leaves)
    else:
        raise TypeError(
            "gather: batch must be a tensor or a mapping, list, tuple, NamedTuple or dataclass of "
            f"tensors, got a leaf of type {type(node).__name__}"
        )


def rebuild(node: Any, rows: Iterator[torch.Tensor]) -> Any:
    """A copy of the container with its tensors replaced, in order, by `rows`."""
    if isinstance(node, torch.Tensor):
        return next(rows)
    if isinstance(node, dict | Mapping):
        items = {key: rebuild(value, rows) for key, value in node.items()}
        if type(node) is dict:
            return items
        if isinstance(node, dict | UserDict):
            clone: Any = copy.copy(node)
            for key, value in items.items():  # transformers' ModelOutput has no update
                clone[key] = value
            return clone
        kind: Any = type(node)  # copying another mapping may share its items with the batch
        return kind(items)
    if _is_dataclass(node):
        clone = copy.copy(node)
        for name, value in _fields(node).items():
            object.__setattr__(clone, name, rebuild(value, rows))  # the dataclass may be frozen
        return clone
    values = [rebuild(value, rows) for value in node]
    return type(node)(*values) if _is_namedtuple(node) else type(node)(values)


def same_structure(a: Any, b: Any) -> bool:
    """Whether both have the same structure, with tensors in the same positions."""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
    if type(a) is not type(b):
        return False
    if _is_dataclass(a):
        a, b = _fields(a), _fields(b)
    if len(a) != len(b):
        return False
    if isinstance(a, Mapping):
        return list(a) == list(b) and all(same_structure(a[key], b[key]) for key in a)
    return all(same_structure(x, y) for x, y in zip(a, b, strict=True))
