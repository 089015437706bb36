"""EMP pruning in another library's loop: TorchTNT's, which fetches batches, accumulates and steps.

    pip install torchtnt "setuptools<81"
    python examples/torchtnt_loop.py

Such a loop needs three things: a loader whose sampler is an EMPSampler, a loss that gets the ids,
and a checkpoint with state and sampler. The loop prefetches a batch, so the number of trained ids
is saved as the sampler's position.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import torch
from plain import BATCH_SIZE, spirals
from torch import nn
from torch.utils.data import DataLoader
from torchtnt.framework.auto_unit import AutoUnit
from torchtnt.framework.callback import Callback
from torchtnt.framework.train import train

import emp_kernels as emp

EPOCHS, ACCUMULATE = 5, 2
logging.getLogger("torchtnt").setLevel(logging.ERROR)


class Place:
    """The training's position in the sampler's epoch."""

    def __init__(self, sampler: emp.EMPSampler) -> None:
        self.sampler, self.batches = sampler, None  # trained since the epoch or the load

    def state_dict(self) -> dict:
        position = None if self.batches is None else self.batches * BATCH_SIZE
        return self.sampler.state_dict(position=position)

    def load_state_dict(self, state_dict: dict) -> None:
        self.sampler.load_state_dict(state_dict)
        self.batches = None


class Classifier(AutoUnit):
    """Attributes with a state_dict are part of a TorchTNT checkpoint."""

    def __init__(self, state: emp.EMPState, sampler: emp.EMPSampler) -> None:
        layers = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 2))
        super().__init__(module=layers, gradient_accumulation_steps=ACCUMULATE)
        self.emp_state, self.place = state, Place(sampler)
        self.drawn: list[list[int]] = []

    def configure_optimizers_and_lr_scheduler(self, module):
        return torch.optim.AdamW(module.parameters(), 0.01), None

    def on_train_epoch_start(self, state) -> None:
        self.place.batches = None

    def compute_loss(self, state, data):
        ids, (points, arm) = data
        self.place.batches = (self.place.batches or 0) + 1
        self.drawn.append(ids.tolist())
        logits = self.module(points)
        return emp.cross_entropy(logits, arm, self.emp_state, indices=ids), logits


class Stop(Callback):
    """Save and stop after `batches` trained batches."""

    def __init__(self, checkpoint: Path, batches: int | None) -> None:
        self.checkpoint, self.batches = checkpoint, batches

    def save(self, state, unit) -> None:
        if self.batches is not None and len(unit.drawn) >= self.batches:
            kept = {name: part.state_dict() for name, part in unit.app_state().items()}
            torch.save(kept, self.checkpoint)
            self.batches = None
            state.stop()

    def on_train_step_end(self, state, unit) -> None:
        done = unit.train_progress
        # After an epoch's last batch the sampler is already in the next epoch, but not the loop.
        ended = unit.place.state_dict()["epoch"] > done.num_epochs_completed
        if done.num_steps_completed_in_epoch % ACCUMULATE == 0 and not ended:
            self.save(state, unit)

    def on_train_epoch_end(self, state, unit) -> None:
        self.save(state, unit)


def main(checkpoint: Path, stop_at: int | None = None) -> Classifier:
    """Train from `checkpoint`, if it exists, to the end or to a step that is saved there."""
    torch.manual_seed(0)
    dataset = spirals()
    state = emp.EMPState(len(dataset))
    sampler = emp.EMPSampler(state, keep=0.3)
    loader = DataLoader(emp.IndexedDataset(dataset), batch_size=BATCH_SIZE, sampler=sampler)
    unit = Classifier(state, sampler)
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for name, part in unit.app_state().items():
            part.load_state_dict(saved[name])
    train(unit, loader, max_epochs=EPOCHS, callbacks=[Stop(checkpoint, stop_at)])
    return unit


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        whole = main(Path(folder) / "none")
        first = main(Path(folder) / "checkpoint.pt", stop_at=20)
        rest = main(Path(folder) / "checkpoint.pt")
    same = first.drawn + rest.drawn == whole.drawn
    same = same and torch.equal(rest.emp_state.score, whole.emp_state.score)
    shares = whole.emp_state.diagnostics().windows[:, 0].tolist()
    print(f"shares {shares}; the same when stopped at batch 20: {same}")
