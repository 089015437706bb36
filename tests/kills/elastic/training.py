"""One rank of a training: torchrun starts `-m kills.elastic.training KIND FOLDER`.

The arithmetic is exact: features and weights are small integers, gradients are rounded to integers
before they are added up. So any number of ranks trains the same, bit for bit, and a training that
goes on on other ranks has to come to the results of the undisturbed one.
"""

from __future__ import annotations

import datetime
import mmap
import os
import shutil
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch.utils.data import DataLoader

import emp_kernels as emp

KINDS = ("whole", "shared")  # an EMPState on each rank, with sync; a ShardedState
WORLDS = (4, 3, 2)  # ranks
# Each of WORLDS divides an epoch's length and a step's samples; an epoch's last step has fewer.
SAMPLES, CLASSES, FEATURES, KEEP, BATCH_SIZE, EPOCHS = 60, 3, 6, 36, 24, 10
# The first epoch draws everything.
STEPS = -(-SAMPLES // BATCH_SIZE) + (EPOCHS - 1) * -(-KEEP // BATCH_SIZE)
SAMPLINGS = {"whole": "gumbel", "shared": "top"}
PATIENCE = 600.0  # seconds that ranks wait for one another

MOMENTS = (
    *("start", "meeting", "resuming", "an epoch's start", "in a batch", "in sync", "saving"),
    "at the end",
)


def points() -> list[tuple[torch.Tensor, int]]:
    """Whole-numbered features (6,) and a label for each sample."""
    generator = torch.Generator().manual_seed(1)
    features = torch.randint(-2, 3, (SAMPLES, FEATURES), generator=generator).float()
    labels = torch.arange(SAMPLES) % CLASSES
    features[torch.arange(SAMPLES), labels] += 2
    return list(zip(features, labels.tolist(), strict=True))


class Weights:
    """(features, classes) int64, in units of 2**-8, and how many steps have changed them."""

    def __init__(self) -> None:
        self.units = torch.zeros(FEATURES, CLASSES, dtype=torch.int64)
        self.steps = torch.zeros((), dtype=torch.int64)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        return (features @ self.units.float() / 256).requires_grad_()

    def step(self, features: torch.Tensor, gradient: torch.Tensor) -> None:
        """Descend by what all ranks' gradients (N, C) of their logits add up to."""
        total = features.long().T @ (gradient * 1024).round().long()
        dist.all_reduce(total)
        self.units -= total // 128
        self.steps += 1

    def state_dict(self) -> dict[str, torch.Tensor]:
        return vars(self)

    def load_state_dict(self, saved: dict[str, torch.Tensor]) -> None:
        for name, own in vars(self).items():
            own.copy_(saved[name])


class Rank:
    """What a rank tells of itself in files that outlive it.

    `moment-PID` says what it does now, and behind how many steps. `journal` has a line for each
    step and rank, written before the step is taken; a life that goes on behind step b says so, and
    takes back what earlier ones trained beyond b.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        moment = folder / f"moment-{os.getpid()}"
        moment.with_suffix(".new").write_bytes(bytes([MOMENTS.index("meeting"), 0]))
        os.replace(moment.with_suffix(".new"), moment)
        with moment.open("r+b") as file:
            self._moment = mmap.mmap(file.fileno(), 2)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        self._journal = os.open(folder / "journal", flags)

    def now(self, moment: str) -> None:
        self._moment[0] = MOMENTS.index(moment)

    def begin(self, steps: int) -> None:
        """All ranks have come to the same step."""
        self._moment[1] = steps
        if dist.get_rank() == 0:
            os.write(self._journal, f"begin {steps} {dist.get_world_size()}\n".encode())
        dist.barrier()

    def trained(self, step: int, epoch: int, ids: torch.Tensor) -> None:
        self._moment[1] = step
        numbers = " ".join(str(i) for i in ids.tolist())
        os.write(self._journal, f"step {step} {epoch} {numbers}\n".encode())

    def saved(self) -> Path | None:
        """The latest whole checkpoint's folder."""
        whole = sorted(self.folder.glob("whole-*"), key=lambda path: int(path.name.split("-")[1]))
        return whole[-1] if whole else None

    def save(self, kept: dict, step: int) -> None:
        """A checkpoint, which takes the last one's place once it is whole."""
        beside, last = self.folder / "beside", self.saved()
        if dist.get_rank() == 0:
            shutil.rmtree(beside, ignore_errors=True)
        dist.barrier()
        checkpoint.save(kept, checkpoint_id=beside)
        dist.barrier()
        if dist.get_rank() == 0:
            os.rename(beside, self.folder / f"whole-{step}")
            if last is not None:
                shutil.rmtree(last)
        dist.barrier()


def train(kind: str, rank: Rank) -> None:
    """On the ranks of the default process group, from the last checkpoint to the end."""
    weights = Weights()
    state = emp.distributed.ShardedState(SAMPLES) if kind == "shared" else emp.EMPState(SAMPLES)
    sampler = emp.EMPSampler(state, KEEP, sampling=SAMPLINGS[kind], epochs=EPOCHS)
    loader = DataLoader(
        emp.IndexedDataset(points()),
        batch_size=BATCH_SIZE // dist.get_world_size(),
        sampler=sampler,
        generator=torch.Generator(),
    )
    kept = {"weights": weights, "state": state, "sampler": sampler}
    rank.now("resuming")
    folder = rank.saved()
    if folder is not None:
        checkpoint.load(kept, checkpoint_id=folder)
    rank.begin(int(weights.steps))
    for epoch in range(sampler.epoch, EPOCHS):
        rank.now("an epoch's start")
        for ids, (features, labels) in loader:
            rank.now("in a batch")
            logits = weights.logits(features)
            loss = emp.cross_entropy(logits, labels, state, indices=ids, reduction="sum")
            rank.trained(int(weights.steps), epoch, ids)
            loss.backward()
            weights.step(features, logits.grad)
            rank.now("in sync")
            emp.distributed.sync(state)
            rank.now("saving")
            rank.save(kept, int(weights.steps))
            rank.now("an epoch's start")
    rank.now("at the end")
    emp.distributed.sync(state)
    whole = emp.EMPState(SAMPLES)
    whole.load_state_dict(state.state_dict())
    if dist.get_rank() == 0:
        result = {"weights": weights.state_dict(), "state": whole.state_dict()}
        torch.save(result, rank.folder / "result.new")
        os.replace(rank.folder / "result.new", rank.folder / "result")
    dist.barrier()


def main(kind: str, folder: Path) -> None:
    rank = Rank(folder)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=PATIENCE))
    train(kind, rank)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
