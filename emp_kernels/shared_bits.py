"""One bit per sample, in growable memory that the processes of a machine share.

Processes that were started earlier, forked or spawned, see later writes and later growth. torch's
shared tensors have a fixed size, and a replacement does not reach a process that already has its
copy. This is therefore an in-memory file, which each process maps, and maps again when it has
grown.
"""

from __future__ import annotations

import mmap
import os
import secrets
import tempfile
import weakref
from typing import Any

import torch

_HEAD = 64  # header bytes before the bits: int64 magic, size, kept, epoch
_MAGIC, _SIZE, _KEPT, _EPOCH = range(4)


class SharedBits:
    """Bits that one process writes and every process with a copy of this object reads.

    Bit i is ``bytes[i // 8] >> (i % 8) & 1``. A copy (by fork, pickle or ``copy``) shares the
    memory, which is freed with the last copy. A pickle can be loaded on the same machine as long as
    the process that created it holds the memory; on Linux no file is left behind, even if that
    process is killed.

    Attributes:
        owner: id of the process that created it.
    """

    def __init__(self) -> None:
        self.owner = os.getpid()
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("emp_kernels")
            self._path = f"/proc/{self.owner}/fd/{descriptor}"
        else:
            descriptor, self._path = tempfile.mkstemp(prefix="emp_kernels")
            weakref.finalize(self, _remove, self._path, self.owner)
        self._hold(descriptor)
        self._secret = secrets.randbits(62)  # tells it from other files of that name
        self._reserve(0)
        self._head()[:] = torch.tensor([self._secret, 0, 0, -1], device="cpu")

    def _hold(self, descriptor: int) -> None:
        self._descriptor = descriptor
        weakref.finalize(self, os.close, descriptor)

    def _reserve(self, size: int) -> None:
        """Grow to at least `size` bits."""
        length = _HEAD + (size + 7) // 8
        if os.fstat(self._descriptor).st_size < length:
            os.ftruncate(self._descriptor, length)
        self._map()

    def _map(self) -> None:
        self._memory = mmap.mmap(self._descriptor, 0)  # all of it; tensors keep it alive

    def _head(self) -> torch.Tensor:
        return torch.frombuffer(self._memory, dtype=torch.int64, count=4)

    def _number(self, which: int) -> int:
        start = 8 * which
        return int.from_bytes(self._memory[start : start + 8], "little", signed=True)

    @property
    def size(self) -> int:
        """Number of bits."""
        return self._number(_SIZE)

    @property
    def kept(self) -> int:
        """Number of bits that are 1."""
        return self._number(_KEPT)

    @property
    def epoch(self) -> int:
        """The epoch written with the bits; -1 if none was."""
        return self._number(_EPOCH)

    def __getitem__(self, i: int) -> bool:
        """Bit i, for 0 <= i < `size`."""
        byte = _HEAD + (i >> 3)
        if byte >= len(self._memory):  # written since this process mapped it
            self._map()
        return bool(self._memory[byte] >> (i & 7) & 1)

    def packed(self) -> torch.Tensor:
        """(ceil(size / 8),) uint8: a read-only view of the bytes."""
        count = (self.size + 7) // 8
        if not count:
            return torch.empty(0, dtype=torch.uint8, device="cpu")
        if _HEAD + count > len(self._memory):
            self._map()
        return torch.frombuffer(self._memory, dtype=torch.uint8, count=count, offset=_HEAD)

    def write(self, packed: torch.Tensor, size: int, kept: int, epoch: int) -> None:
        """Write the bytes (ceil(size / 8),) uint8 on the CPU, `kept` bits of which are 1."""
        self._reserve(size)
        if len(packed):
            view = torch.frombuffer(self._memory, dtype=torch.uint8, offset=_HEAD)
            view[: len(packed)] = packed
        self._head()[1:] = torch.tensor([size, kept, epoch], device="cpu")

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self._path, "secret": self._secret, "owner": self.owner}

    def __setstate__(self, entries: dict[str, Any]) -> None:
        self._path, self._secret = entries["path"], entries["secret"]
        self.owner = entries["owner"]
        try:
            self._hold(os.open(self._path, os.O_RDWR))
            self._map()
            found = self._number(_MAGIC)
        except (OSError, ValueError):
            found = None
        if found != self._secret:
            raise RuntimeError(
                "EpochMask: a copy must be made on the machine of the mask and while its process "
                f"has it (save its state_dict() instead), got one of process {self.owner}, which "
                "is not there"
            )


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:  # not when a forked child exits
        os.unlink(path)
