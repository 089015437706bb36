"""EMP pruning with Hugging Face Accelerate: `prepare` for the loader, Accelerate for everything
else.

python examples/accelerate_loop.py                          # or
torchrun --nproc-per-node 2 examples/accelerate_loop.py
python examples/accelerate_loop.py --checkpoint folder      # stop it, run it again: it resumes
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from accelerate import Accelerator
from plain import BATCH_SIZE, spirals
from torch import nn
from torch.utils.data import DataLoader

import emp_kernels as emp
from emp_kernels.integrations.accelerate import prepare

EPOCHS = 5


def main(checkpoint: Path | None = None) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    torch.manual_seed(0)
    dataset = spirals()
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)

    state = emp.EMPState(len(dataset))
    sampler = emp.EMPSampler(state, keep=0.3, epochs=EPOCHS)
    batch_size = BATCH_SIZE // accelerator.num_processes
    loader = DataLoader(emp.IndexedDataset(dataset), batch_size=batch_size, sampler=sampler)

    # Accelerate advances a schedule by one step per process, so it needs that many steps.
    steps = sampler.total_steps(batch_size, accumulation=accelerator.gradient_accumulation_steps)
    schedule = torch.optim.lr_scheduler.LinearLR(
        optimizer, 1, 0.1, steps * accelerator.num_processes
    )
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    loader = prepare(accelerator, loader)
    if checkpoint is not None and (saved := sorted(checkpoint.glob("epochs-?"))):
        accelerator.load_state(saved[-1])

    for epoch in range(sampler.epoch, EPOCHS):
        for ids, (points, arm) in loader:
            with accelerator.accumulate(model):
                loss = emp.cross_entropy(model(points), arm, state, indices=ids)
                accelerator.backward(loss)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        if checkpoint is not None:
            save(accelerator, checkpoint / f"epochs-{epoch + 1}")
        accelerator.print(
            f"epoch {epoch}: {loss.item():.3f}, learning rate {schedule.get_last_lr()[0]:.4f}"
        )
    scored = int((state.updates > 0).sum())
    accelerator.print(f"{steps} steps; {scored} samples scored")
    accelerator.end_training()


def save(accelerator: Accelerator, folder: Path) -> None:
    """Write the folder atomically, after any step; all processes call it."""
    fresh = folder.with_suffix(".new")
    accelerator.save_state(fresh)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        fresh.rename(folder)
    accelerator.wait_for_everyone()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, help="a folder to save to and go on from")
    main(parser.parse_args().checkpoint)
