"""Writes ids to files, atomically."""

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...terminal.requirements import CommandError, require_packages
from .file_arrays import InputError


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """A temporary path, renamed to `path` at the end of the block, or removed if it raises."""
    beside = path.with_name(path.name + ".new")
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise CommandError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        beside.unlink(missing_ok=True)


def _write_npy(path: Path, ids: Iterable[torch.Tensor], count: int) -> None:
    with path.open("wb") as file:
        header: Any = {"descr": "<i8", "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)
        for block in ids:
            file.write(block.numpy().astype("<i8", copy=False).tobytes())


def _write_csv(path: Path, ids: Iterable[torch.Tensor], count: int) -> None:
    with path.open("w", encoding="ascii") as file:
        file.write("id\n")
        for block in ids:
            file.writelines(f"{i}\n" for i in block.tolist())


def _write_json(path: Path, ids: Iterable[torch.Tensor], count: int) -> None:
    with path.open("w", encoding="ascii") as file:
        between = '{"ids": ['
        for block in ids:
            if len(block):
                file.write(between + json.dumps(block.tolist())[1:-1])
                between = ", "
        file.write((between if between[0] == "{" else "") + "]}\n")


def _write_parquet(path: Path, ids: Iterable[torch.Tensor], count: int) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([("id", pyarrow.int64())])
    with pyarrow.parquet.ParquetWriter(path, schema) as file:
        for block in ids:
            file.write_table(pyarrow.table({"id": block.numpy()}, schema=schema))


_WRITERS: dict[str, Callable[[Path, Iterable[torch.Tensor], int], None]] = {
    ".npy": _write_npy,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".json": _write_json,
}


def check_out(path: Path) -> None:
    """Raise unless ids can be written to `path`."""
    if path.suffix not in _WRITERS:
        raise InputError(f"--out must end in one of {', '.join(_WRITERS)}, got {path}")
    if path.is_dir():
        raise InputError(f"--out must be a file, got the folder {path}")
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK):
        raise InputError(f"--out must be in a folder that can be written, got {path}")
    if path.suffix == ".parquet":
        require_packages("--out with a .parquet file", "pyarrow")


def write_ids(path: Path, ids: Iterable[torch.Tensor], count: int) -> None:
    """Write `count` ids, given in blocks, to `path`."""
    with written_beside(path) as beside:
        _WRITERS[path.suffix](beside, ids, count)
