"""Ids for samples that have only names."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import get_worker_info

from .snapshot import one_tensor
from .validation import check_snapshot

_VERSION = 1
_ENCODING = {"encoding": "utf-8", "errors": "surrogatepass"}  # file names may hold surrogates


class KeyIds:
    """Dense ids of string keys, in the order of first sight: ``ids[key]`` is 0 for the first key
    ever asked for, 1 for the next one, and a key's number never changes.

    Keys are compared whole, never by a hash alone. ``key in ids`` and :meth:`get` give no numbers.
    A number is given in the process that trains: in a DataLoader's worker, whose copy would give
    numbers of its own, an unknown key is an error. Over several ranks numbers must be alike: show
    every rank all keys in one order before the training (``KeyIds(keys)``).

    Args:
        keys: keys to number at once.

    Raises:
        TypeError: a key is no str, or `keys` is one.
        RuntimeError: a worker's copy is asked for the number of an unknown key.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._ids: dict[str, int] = {}
        if isinstance(keys, str):  # its letters are strings, too
            raise TypeError("KeyIds: keys must be an iterable of str, got str")
        for key in keys:
            self[key]

    def __getitem__(self, key: str) -> int:
        known = self._ids.get(key)
        return self._number(key) if known is None else known

    def _number(self, key: str) -> int:
        """The id of a key that has none."""
        if not isinstance(key, str):
            raise TypeError(f"KeyIds: key must be a str, got {type(key).__name__}")
        if get_worker_info() is not None:
            raise RuntimeError(
                "KeyIds: key must be known in a DataLoader's worker (numbers given there never "
                "reach the process that trains: hand on the key, and ask with ids.get(key)), "
                f"got {key!r}"
            )
        self._ids[str(key)] = number = len(self._ids)
        return number

    def get(self, key: str, default: int | None = None) -> int | None:
        """The key's id, or `default` where it has none; gives no number."""
        return self._ids.get(key, default)

    def __contains__(self, key: object) -> bool:
        return key in self._ids

    def __len__(self) -> int:
        return len(self._ids)

    def __iter__(self) -> Iterator[str]:
        """The keys, in the order of their ids."""
        return iter(self._ids)

    def __repr__(self) -> str:
        return f"KeyIds(<{len(self)} keys>)"

    def state_dict(self) -> dict[str, Any]:
        """All keys, as one tensor of their UTF-8 and one of where each ends."""
        encoded = [key.encode(**_ENCODING) for key in self._ids]
        lengths = torch.tensor([len(key) for key in encoded], dtype=torch.int64, device="cpu")
        joined = bytearray(b"".join(encoded))
        text = torch.empty(0, dtype=torch.uint8, device="cpu")
        if joined:
            text = torch.frombuffer(joined, dtype=torch.uint8)
        # In tuples, whose lengths torch.distributed.checkpoint need not know when it loads.
        return {"version": _VERSION, "text": (text,), "ends": (lengths.cumsum(0),)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the saved keys' ids in place of one's own.

        Raises:
            TypeError: `state_dict` is no mapping, or an entry has another type.
            ValueError: it lacks an entry, is of another version, or holds no list of keys, each
                once; nothing is changed.
        """
        function = "KeyIds.load_state_dict"
        check_snapshot(function, state_dict, _VERSION, ("text", "ends"))
        text = one_tensor(function, "text", state_dict["text"], torch.uint8)
        ends = one_tensor(function, "ends", state_dict["ends"], torch.int64).tolist()
        if sorted([0, *ends, len(text)]) != [0, *ends, len(text)] or (ends or [0])[-1] < len(text):
            raise ValueError(
                f"{function}: ends must ascend from 0 to the text's length {len(text)}, "
                f"got {ends[:8]}"
            )
        joined = text.numpy().tobytes()
        ids: dict[str, int] = {}
        for start, end in zip([0, *ends], ends, strict=False):
            try:
                key = joined[start:end].decode(**_ENCODING)
            except UnicodeDecodeError as error:
                raise ValueError(f"{function}: text must be UTF-8, got {error}") from None
            ids.setdefault(key, len(ids))
        if len(ids) != len(ends):
            raise ValueError(
                f"{function}: text must hold each key once, got {len(ends)} keys, {len(ids)} of "
                "them different"
            )
        self._ids = ids
