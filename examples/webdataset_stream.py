"""EMP pruning of a WebDataset: samples that an epoch does not keep are not decoded.

    pip install webdataset
    python examples/webdataset_stream.py

Samples have names and no ids: ids are assigned when they are first seen, and the state grows.
Worker processes are started for each epoch, with the ids known at that time. A training that is
stopped in mid-epoch resumes with exactly the rest.
"""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path

import torch
import webdataset as wds
from plain import spirals
from torch import nn

import emp_kernels as emp
from emp_kernels.integrations.streams import Kept, indices_of, named

EPOCHS, BATCH_SIZE = 5, 50


def write(folder: Path) -> list[str]:
    points, arm = spirals().tensors
    with wds.ShardWriter(str(folder / "%04d.tar"), maxcount=150, verbose=0) as shards:
        for i, (x, y) in enumerate(zip(points, arm.tolist(), strict=True)):
            shards.write({"__key__": f"{i % 150:04d}", "points.pth": x.clone(), "arm.cls": y})
    return sorted(str(path) for path in folder.glob("*.tar"))


def stream(urls: list[str], kept: Kept, epoch: int) -> wds.WebLoader:
    """The epoch's batches, in an order determined by its number."""
    dataset = wds.WebDataset(urls, shardshuffle=100, detshuffle=True, seed=epoch)
    dataset = dataset.map(named).select(kept)  # new: before decode
    dataset = (
        dataset.decode().shuffle(200, seed=epoch).to_tuple("__name__", "points.pth", "arm.cls")
    )
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=2)
    return loader.batched(BATCH_SIZE)


def train(urls: list[str], saved: dict | None = None, stop: int | None = None):
    """Train, from a checkpoint and to a step if given: (names of each batch, state, checkpoint)."""
    torch.manual_seed(0)
    ids, state = emp.KeyIds(), emp.EMPState(0)  # new
    mask = emp.EpochMask(state, keep=0.3)  # new
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    parts = {"model": model, "optimizer": optimizer, "ids": ids, "state": state, "mask": mask}
    first = step = trained = 0
    if saved is not None:
        state.grow(saved["state"]["num_samples"])
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        first, step, trained = saved["epoch"], saved["step"], saved["trained"]

    batches = []
    for epoch in range(first, EPOCHS):
        mask.set_epoch(epoch)  # new
        loader = enumerate(stream(urls, Kept(mask, ids=ids), epoch), 1)
        for batch, (names, points, arm) in islice(loader, trained, None):
            indices = indices_of(names, ids, state)  # new
            logits = model(torch.as_tensor(points))
            loss = emp.cross_entropy(logits, torch.as_tensor(arm), state, indices=indices)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            batches.append(list(names))
            step += 1
            if step == stop:
                checkpoint = {name: part.state_dict() for name, part in parts.items()}
                return batches, state, checkpoint | {"epoch": epoch, "step": step, "trained": batch}
        trained = 0
        if saved is None:
            share = len(mask) / len(state) if epoch else 1.0
            print(f"epoch {epoch}: {share:.0%} of {len(state)} samples, loss {loss.item():.3f}")
    return batches, state, None


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        urls, file = write(Path(name)), Path(name) / "checkpoint.pt"
        whole, state, _ = train(urls)
        before, _, checkpoint = train(urls, stop=23)
        torch.save(checkpoint, file)
        after, resumed, _ = train(urls, torch.load(file, weights_only=True))
    same = before + after == whole and torch.equal(state.score, resumed.score)
    print(f"{len(whole)} steps; the same when stopped at step 23: {same}")
