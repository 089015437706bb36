"""EMP pruning in a plain PyTorch loop: the three lines, and a checkpoint that resumes anywhere.

    python examples/plain.py
    python examples/plain.py --checkpoint plain.pt   # stop it, run it again: it resumes

Two spirals of points; each epoch after the first trains on the 30 % with the highest scores.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import emp_kernels as emp

EPOCHS, BATCH_SIZE = 8, 64


def spirals(n: int = 1000) -> TensorDataset:
    """Points (n, 2) on two arms, and which arm (n,)."""
    generator = torch.Generator().manual_seed(0)
    arm = torch.arange(n) % 2
    turn = torch.rand(n, generator=generator) * 1.5 * math.pi + 0.5
    angle = turn + arm * math.pi
    points = torch.stack([turn * angle.cos(), turn * angle.sin()], 1) / 2
    return TensorDataset(points + 0.1 * torch.randn(n, 2, generator=generator), arm)


def train(checkpoint: Path | None = None, on_step: Callable[[int, float], None] | None = None):
    """Train; with a `checkpoint`, save it after every step, and resume from it if it exists.

    Args:
        checkpoint: a file.
        on_step: called with the step's number and loss.

    Returns:
        (model, state)
    """
    torch.manual_seed(0)
    dataset = spirals()
    model = nn.Sequential(nn.Linear(2, 256), nn.ReLU(), nn.Dropout(0.05), nn.Linear(256, 2))

    state = emp.EMPState(len(dataset))
    sampler = emp.EMPSampler(state, keep=0.3, anneal_epochs=1, epochs=EPOCHS)
    loader = DataLoader(
        emp.IndexedDataset(dataset),
        batch_size=BATCH_SIZE,
        sampler=sampler,
        generator=torch.Generator(),  # the loader does not use torch's global generator
    )

    steps = sampler.total_steps(BATCH_SIZE)  # the schedule takes shorter epochs into account
    optimizer = torch.optim.AdamW(model.parameters(), 0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.02, total_steps=steps)
    kept = {"model": model, "optimizer": optimizer, "schedule": schedule}
    kept |= {"state": state, "sampler": sampler}

    first_epoch = step = 0
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        for name, part in kept.items():
            part.load_state_dict(saved[name])
        first_epoch, step = saved["epoch"], saved["step"]
        torch.set_rng_state(saved["random"])

    for epoch in range(first_epoch, EPOCHS):
        total = 0.0
        for ids, (points, arm) in loader:
            loss = emp.cross_entropy(model(points), arm, state, indices=ids)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(ids)
            step += 1
            if on_step is not None:
                on_step(step, loss.item())
            if checkpoint is not None:
                save(
                    checkpoint,
                    {name: part.state_dict() for name, part in kept.items()}
                    | {"epoch": epoch, "step": step, "random": torch.get_rng_state()},
                )
        found = state.diagnostics()  # warns when hard selection is collapsing
        again = f", {found.overlap:.0%} of it again" if epoch > 0 else ""
        print(f"epoch {epoch}: trained on {found.share:.0%}{again}, step {step} of {steps}")
    return model, state


def save(checkpoint: Path, contents: dict) -> None:
    """Write the file atomically, even if the process is killed."""
    fresh = checkpoint.with_suffix(".new")
    torch.save(contents, fresh)
    os.replace(fresh, checkpoint)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="a file to save to and go on from")
    model, _ = train(parser.parse_args().checkpoint)
    points, arm = spirals().tensors
    with torch.no_grad():
        correct = (model.eval()(points).argmax(1) == arm).float().mean()
    print(f"accuracy {correct:.1%}")
