"""Arrays stored uncompressed: .npy, .npz (as np.savez writes it) and .safetensors.

A block is memory-mapped, and unmapped when its last tensor is freed, so that pages that were read
do not stay resident.
"""

import json
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch

from ...arrays import as_tensor
from .file_arrays import Array, InputError, named

SAFETENSORS_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"} | {
    f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)
}


BROKEN = (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError)  # of damaged archives


class Header(NamedTuple):
    """The header of a .npy array."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype


class Mapped(Array):
    """An array at an offset in a file."""

    def __init__(self, path: Path, header: Header, offset: int, *, bfloat16: bool = False) -> None:
        self.path, self.shape = path, header.shape
        self.header, self.offset, self.bfloat16 = header, offset, bfloat16
        size = path.stat().st_size
        needed = offset + header.dtype.itemsize * int(np.prod(header.shape, dtype=object))
        if size < needed:
            raise InputError(f"{path} is cut off: it must have {needed:,} bytes, got {size:,}")

    def read(self, start: int, stop: int) -> torch.Tensor:
        shape, fortran, dtype = self.header
        if 0 in shape or start == stop:
            rows = np.empty((stop - start, *shape[1:]), dtype)
        else:
            order: Any = "F" if fortran else "C"
            rows = np.memmap(self.path, dtype, "r", self.offset, shape, order)[start:stop]
        found: torch.Tensor = as_tensor("rank", "rows", rows)
        return found.view(torch.bfloat16) if self.bfloat16 else found


class Streamed(Array):
    """An array in a compressed member of a .npz, read from front to back."""

    def __init__(self, path: Path, member: str, header: Header) -> None:
        self.path, self.shape, self.member, self.header = path, header.shape, member, header
        if header.fortran and len(header.shape) > 1:
            raise InputError(f"{path} must hold {member} in C order where it is compressed")
        self.stream: Any = None
        self.next = 0

    def read(self, start: int, stop: int) -> torch.Tensor:
        row = self.header.dtype.itemsize * int(np.prod(self.shape[1:], dtype=object))
        try:
            if self.stream is None or start < self.next:
                archive = zipfile.ZipFile(self.path)
                self.stream, self.next = archive.open(self.member), 0
                read_header(self.stream, self.path)
            while self.next < start:
                skipped = min(start - self.next, max(1, (1 << 20) // max(1, row)))
                self._exactly(skipped * row)
                self.next += skipped
            content = self._exactly((stop - start) * row)
        except (OSError, *BROKEN) as error:
            raise InputError(f"{self.path} cannot be read: {error}") from None
        self.next = stop
        rows = np.frombuffer(content, self.header.dtype).reshape(stop - start, *self.shape[1:])
        found: torch.Tensor = as_tensor("rank", "rows", rows)
        return found

    def _exactly(self, size: int) -> bytes:
        content: bytes = self.stream.read(size)
        if len(content) < size:
            raise InputError(f"{self.path} is cut off inside {self.member}")
        return content


def read_header(file: IO[bytes], path: Path) -> Header:
    """Read the header at the current position of `file`, which is then at the data."""
    try:
        version = np.lib.format.read_magic(file)
        reader: Any = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }.get(version)
        if reader is None:
            raise ValueError(f"version {version}")
        header = Header(*reader(file))
    except (ValueError, EOFError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} must be an array of NumPy's ({reason})") from None
    try:
        as_tensor("rank", "rows", np.empty(0, header.dtype))
    except TypeError:
        raise InputError(
            f"{path} must hold numbers of a dtype that torch has, got {header.dtype}"
        ) from None
    return header


def open_npy(path: Path, kind: str) -> Array:
    with path.open("rb") as file:
        header = read_header(file, path)
        return Mapped(path, header, file.tell())


def open_npz(path: Path, kind: str) -> Array:
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            info = members[named(path, kind, members)]
            with archive.open(info) as member:
                header = read_header(member, path)
                before = member.tell()
    except BROKEN as error:
        raise InputError(f"{path} must be an archive of np.savez ({error})") from None
    if info.compress_type != zipfile.ZIP_STORED:
        return Streamed(path, info.filename, header)
    with path.open("rb") as file:
        file.seek(info.header_offset)
        lengths = struct.unpack("<HH", file.read(30)[26:30])  # of the name and the extra field
    return Mapped(path, header, info.header_offset + 30 + sum(lengths) + before)


def open_safetensors(path: Path, kind: str) -> Array:
    """The format: a length, a JSON header of that length, and the data."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > 100_000_000:
                raise ValueError("its header has no length")
            entries: Mapping[str, Any] = json.loads(file.read(length))
        tensors = {name: entry for name, entry in entries.items() if name != "__metadata__"}
        entry = tensors[named(path, kind, tensors)]
        shape, begin, code = tuple(entry["shape"]), entry["data_offsets"][0], entry["dtype"]
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} must be a file of safetensors ({error})") from None
    if code not in SAFETENSORS_DTYPES:
        known = ", ".join(SAFETENSORS_DTYPES)
        raise InputError(f"{path} must hold one of the dtypes {known}, got {code}")
    header = Header(shape, False, np.dtype(SAFETENSORS_DTYPES[code]))
    return Mapped(path, header, 8 + length + begin, bfloat16=code == "BF16")
