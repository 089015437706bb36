"""Order keys of the rows scored so far, in a file next to the result, so that a run can be
resumed."""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...terminal.requirements import CommandError

MAGIC = b"emp_kernels rank 1\n"


class Partial:
    """The file: a digest of what is being ranked, and the keys of the first rows.

    Attributes:
        rows: the number of rows with a key; not 0 if an earlier run was interrupted.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], dtype: torch.dtype) -> None:
        self.path = path
        self.dtype = np.dtype("<i8" if dtype == torch.int64 else "<i4")
        content = json.dumps(run, sort_keys=True).encode()
        head = MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n"
        self.begin = len(head)
        try:
            self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise CommandError(f"{path} cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self.file)
            raise CommandError(f"{path} is being written by another process") from None
        if os.pread(self.file, self.begin, 0) != head:
            os.ftruncate(self.file, 0)
            self._write(head, 0)
        self.rows = (os.fstat(self.file).st_size - self.begin) // self.dtype.itemsize

    def append(self, keys: torch.Tensor) -> None:
        """Write the keys (n,) of the next rows, flushed to disk on return."""
        content = keys.numpy().astype(self.dtype, copy=False).tobytes()
        self._write(content, self.begin + self.rows * self.dtype.itemsize)
        os.fdatasync(self.file)
        self.rows += len(keys)

    def _write(self, content: bytes, offset: int) -> None:
        rest = memoryview(content)
        while rest:
            written = os.pwrite(self.file, rest, offset)
            rest, offset = rest[written:], offset + written

    def read(self, start: int, stop: int) -> torch.Tensor:
        """The keys of rows [start, stop)."""
        keys = np.empty(stop - start, self.dtype)
        rest = memoryview(keys.view(np.uint8).data)
        offset = self.begin + start * self.dtype.itemsize
        while rest:
            found = os.preadv(self.file, [rest], offset)
            if not found:
                raise CommandError(f"{self.path} was cut off while it was read")
            rest, offset = rest[found:], offset + found
        return torch.from_numpy(keys)

    def close(self, *, finished: bool) -> None:
        """Close the file; remove it if `finished`, else leave it for a later run."""
        if finished:
            self.path.unlink(missing_ok=True)
        os.close(self.file)
