"""LOGITS and LABELS: files whose arrays are read as one."""

import bisect
import glob
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ...validation import FLOAT_DTYPES, INTEGER_DTYPES
from . import mapped, parquet, torch_files
from .file_arrays import Array, InputError

OPENERS: dict[str, Callable[[Path, str], Array]] = {
    ".npy": mapped.open_npy,
    ".npz": mapped.open_npz,
    ".pt": torch_files.Saved,
    ".safetensors": mapped.open_safetensors,
    ".parquet": parquet.Columns,
}
SUFFIXES = ", ".join(OPENERS)


def open_array(path: Path, kind: str) -> Array:
    """The array of `path` by its name's ending: "logits", "labels" or a column's own name."""
    if path.suffix not in OPENERS:
        raise InputError(f"{path} must end in one of {SUFFIXES}")
    try:
        return OPENERS[path.suffix](path, kind)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None


def files_of(kind: str, text: str) -> list[Path]:
    """The files that `text` names: one file, a folder's or a pattern's, sorted by name."""
    path = Path(text)
    if path.is_dir():
        files = [file for file in path.iterdir() if file.is_file() and file.name[0] != "."]
        files = sorted(file for file in files if file.suffix in OPENERS)
        if not files:
            raise InputError(f"{kind} must be files: the folder {text} holds none of {SUFFIXES}")
        return files
    if path.exists():
        return [path]
    if glob.escape(text) == text:
        raise InputError(f"{kind} must be a file, a folder or a pattern: {text} does not exist")
    found = sorted(Path(name) for name in glob.glob(text, recursive=True))
    files = [file for file in found if file.is_file()]
    if not files:
        raise InputError(f"{kind} must be files that exist: the pattern {text} matches none")
    return files


def out_of_order(files: list[Path]) -> tuple[Path, Path] | None:
    """Two neighbouring files whose order by name differs from that of the numbers in their
    names."""

    def by_number(file: Path) -> list[int | str]:
        parts = re.split(r"(\d+)", file.name)
        return [int(part) if i % 2 else part for i, part in enumerate(parts)]

    for earlier, later in itertools.pairwise(files):
        if by_number(earlier) > by_number(later):
            return earlier, later
    return None


class Shards:
    """Several arrays, concatenated.

    Attributes:
        rows: the total number of rows.
        arrays: the arrays.
    """

    def __init__(self, kind: str, arrays: list[Array]) -> None:
        self.kind, self.arrays = kind, arrays
        self.starts = list(itertools.accumulate((a.shape[0] for a in arrays), initial=0))
        self.rows = self.starts[-1]

    def read(self, start: int, stop: int) -> torch.Tensor:
        """Rows [start, stop), from as many files as needed."""
        parts = []
        place = max(0, bisect.bisect_right(self.starts, start) - 1)
        for array, first in zip(self.arrays[place:], self.starts[place:], strict=False):
            if first >= stop:
                break
            begin, end = max(start - first, 0), min(stop - first, array.shape[0])
            if begin < end:
                parts.append(self._checked(array, array.read(begin, end)))
        if not parts:
            return self.arrays[0].read(0, 0)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _checked(self, array: Array, rows: torch.Tensor) -> torch.Tensor:
        floats = self.kind not in ("labels", "id")
        if len(rows) and rows.dtype not in (FLOAT_DTYPES if floats else INTEGER_DTYPES):
            wanted = "float32, float16, bfloat16 or float64" if floats else "integers"
            dtype = str(rows.dtype).removeprefix("torch.")
            raise InputError(f"{array.path} must hold {self.kind} in {wanted}, got {dtype}")
        return rows

    def spans(self, size: int, start: int = 0) -> Iterator[tuple[int, int]]:
        """(start, stop) of blocks of at most `size` rows, each within one file, from row `start`
        on."""
        for first, stop in itertools.pairwise(self.starts):
            for row in range(max(first, start), stop, size):
                yield row, min(row + size, stop)


def open_shards(kind: str, files: list[Path]) -> Shards:
    """The arrays of `files`, which must go together: logits (N, C), others (N,)."""
    arrays = [open_array(path, kind) for path in files]
    for array in arrays:
        if kind != "logits" and len(array.shape) != 1:
            column = " (as labels[:, 0] has)" if array.shape[1:] == (1,) else ""
            raise InputError(f"{array.path} must have shape (N,){column}, got {array.shape}")
        if kind == "logits" and (len(array.shape) != 2 or array.shape[1] == 0):
            raise InputError(f"{array.path} must have shape (N, C), got {array.shape}")
        if array.shape[1:] != arrays[0].shape[1:]:
            raise InputError(
                f"{array.path} must have the {arrays[0].shape[1]} columns of {arrays[0].path}, "
                f"got {array.shape[1]}"
            )
    shards = Shards(kind, arrays)
    for array in arrays:
        shards._checked(array, array.read(0, min(1, array.shape[0])))
    return shards
