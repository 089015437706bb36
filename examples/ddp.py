"""EMP pruning with DistributedDataParallel: each epoch's selection is divided among the ranks.

    torchrun --nproc-per-node 2 examples/ddp.py

The plain loop hardly changes: the sampler detects the process group, merges the ranks' scores at
the start of each epoch and gives each rank its share; one rank saves a checkpoint after a merge.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from plain import BATCH_SIZE, spirals
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import emp_kernels as emp


def train(epochs: int = 3, folder: Path | None = None) -> emp.EMPState:
    """Train on all ranks of the default process group; save the merged state to `folder`."""
    torch.manual_seed(0)
    dataset = spirals()
    model = DistributedDataParallel(nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 2)))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)

    state = emp.EMPState(len(dataset))
    sampler = emp.EMPSampler(state, keep=0.3)
    batch_size = BATCH_SIZE // dist.get_world_size()
    loader = DataLoader(emp.IndexedDataset(dataset), batch_size=batch_size, sampler=sampler)

    for epoch in range(epochs):
        for ids, (points, arm) in loader:
            loss = emp.cross_entropy(model(points), arm, state, indices=ids)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: {len(loader.sampler)} samples a rank are next")
    emp.distributed.sync(state)
    if folder is not None:
        checkpoint.save({"model": model.module.state_dict(), "emp": state}, checkpoint_id=folder)
    return state


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to save a distributed checkpoint")
    dist.init_process_group("gloo")
    state = train(folder=parser.parse_args().folder)
    scored = int((state.updates > 0).sum())
    print(f"rank {dist.get_rank()}: {scored} samples scored, next {state.select(5).tolist()}")
    dist.destroy_process_group()
