"""One process of a training, which records its activity and trained batches in files."""

from __future__ import annotations

import mmap
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

import emp_kernels as emp

MOMENTS = (
    "start",
    "resuming",
    "before a batch",
    "in a batch",
    "saving",
    "between epochs",
    "at the end",
)


class Training(NamedTuple):
    """The parameters that distinguish trainings."""

    loop: str
    workers: int
    ranks: int
    accumulate: int


class Life:
    """The interface between a loop and the harness.

    The journal has one line for each batch, written before the step that it belongs to is taken.
    A process that starts at batch b overrides what earlier ones trained beyond b.
    """

    def __init__(self, training: Training, folder: Path, rank: int) -> None:
        self.training, self.folder, self.rank = training, folder, rank
        self.workers, self.ranks, self.accumulate = training[1:]
        self.epoch = 0  # reported by the loop
        with (folder / f"moment-{rank}").open("r+b") as file:
            self._moment = mmap.mmap(file.fileno(), 1)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._journal = os.open(folder / f"journal-{rank}", flags)

    def now(self, moment: str) -> None:
        self._moment[0] = MOMENTS.index(moment)

    def begin(self, net: torch.nn.Module) -> None:
        """The network has been restored or initialised."""
        self._write(f"begin {int(net.batches)}")
        self.now("between epochs")

    def trained(self, net: torch.nn.Module, ids: torch.Tensor, loss: torch.Tensor) -> None:
        numbers = " ".join(str(i) for i in ids.tolist())
        self._write(f"batch {int(net.batches)} {self.epoch} {loss.item().hex()} {numbers}")

    def _write(self, line: str) -> None:
        os.write(self._journal, f"{line}\n".encode())

    @contextmanager
    def saving(self):
        """A new folder for a checkpoint, which replaces the last one once it is complete."""
        self.now("saving")
        beside = self.folder / "beside"
        if self.rank == 0:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
        self._wait()
        yield beside
        self._wait()
        if self.rank == 0:
            last = self.checkpoint()
            number = 0 if last is None else int(last.name.split("-")[1]) + 1
            os.rename(beside, self.folder / f"whole-{number}")
            if last is not None:
                shutil.rmtree(last)
        self._wait()
        self.now("before a batch")

    def checkpoint(self) -> Path | None:
        """The folder of the latest complete checkpoint."""
        whole = sorted(self.folder.glob("whole-*"), key=lambda path: int(path.name.split("-")[1]))
        return whole[-1] if whole else None

    def _wait(self) -> None:
        if self.ranks > 1:
            dist.barrier()

    def finish(self, net: torch.nn.Module, state: emp.EMPState) -> None:
        """Write the final results."""
        self.now("at the end")
        if self.ranks > 1:
            emp.distributed.sync(state)
        result: dict[str, Any] = {"net": net.state_dict(), "state": state.state_dict()}
        torch.save(result, self.folder / f"result-{self.rank}.new")
        os.replace(self.folder / f"result-{self.rank}.new", self.folder / f"result-{self.rank}")
