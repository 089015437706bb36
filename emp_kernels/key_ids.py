"""Integer ids for samples that are identified by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch.utils.data import get_worker_info

from .snapshot import one_tensor
from .validation import check_snapshot

_VERSION = 1
_ENCODING = {"encoding": "utf-8", "errors": "surrogatepass"}  # file names may contain surrogates


class KeyIds:
    """Dense ids of string keys, in the order of first use: ``ids[key]`` is 0 for the first key, 1
    for the next new one, and a key's id never changes.

    Keys are compared in full, not only by hash. ``key in ids`` and :meth:`get` assign no ids. New
    ids are assigned only in the training process: in a DataLoader's worker, whose copy would
    diverge, an unknown key is an error. With several ranks the ids must agree, so give every rank
    all keys in the same order before training (``KeyIds(keys)``).

    Args:
        keys: keys to assign ids to immediately.

    Raises:
        TypeError: a key is not a str, or `keys` is one.
        RuntimeError: an unknown key is looked up in a worker's copy.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._ids: dict[str, int] = {}
        if isinstance(keys, str):  # its characters are strings, too
            raise TypeError("KeyIds: keys must be an iterable of str, got str")
        for key in keys:
            self[key]

    def __getitem__(self, key: str) -> int:
        known = self._ids.get(key)
        return self._number(key) if known is None else known

    def _number(self, key: str) -> int:
        """Assign an id to a new key."""
        if not isinstance(key, str):
            raise TypeError(f"KeyIds: key must be a str, got {type(key).__name__}")
        if get_worker_info() is not None:
            raise RuntimeError(
                "KeyIds: key must be known in a DataLoader's worker (ids assigned there never "
                "reach the training process: pass on the key, and look it up with ids.get(key)), "
                f"got {key!r}"
            )
        self._ids[str(key)] = number = len(self._ids)
        return number

    def get(self, key: str, default: int | None = None) -> int | None:
        """The key's id, or `default` if it has none; assigns no id."""
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
        """All keys, as a tensor of their UTF-8 bytes and a tensor of their ends."""
        encoded = [key.encode(**_ENCODING) for key in self._ids]
        lengths = torch.tensor([len(key) for key in encoded], dtype=torch.int64, device="cpu")
        joined = bytearray(b"".join(encoded))
        text = torch.empty(0, dtype=torch.uint8, device="cpu")
        if joined:
            text = torch.frombuffer(joined, dtype=torch.uint8)
        # In tuples, so that torch.distributed.checkpoint need not know the lengths when it loads.
        return {"version": _VERSION, "text": (text,), "ends": (lengths.cumsum(0),)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Replace all ids by the saved ones.

        Raises:
            TypeError: `state_dict` is no mapping, or an entry has another type.
            ValueError: it lacks an entry, is of another version, or does not hold a list of
                distinct keys; nothing is changed.
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
