"""EMP pruning of a Hugging Face streaming data set with a column of ids.

    pip install datasets torchdata
    python examples/huggingface_stream.py

The filter keeps the epoch's ids, in persistent worker processes. The loader's state counts
examples, so a resume restores the mask first.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import datasets
import torch
from plain import spirals
from torch import nn
from torchdata.stateful_dataloader import StatefulDataLoader

import emp_kernels as emp
from emp_kernels.integrations.streams import Kept

EPOCHS, BATCH_SIZE = 5, 50


def stream() -> datasets.IterableDataset:
    """As returned by ``load_dataset(…, streaming=True)``, with row numbers in a column "id"."""
    points, arm = spirals().tensors
    rows = {"id": list(range(len(arm))), "points": points.tolist(), "arm": arm.tolist()}
    shards = datasets.Dataset.from_dict(rows).to_iterable_dataset(num_shards=4)
    return shards.with_format("torch")


def train(saved: dict | None = None, stop: int | None = None):
    """Train, from a checkpoint and to a step if given: (ids of each batch, state, checkpoint)."""
    torch.manual_seed(0)
    state = emp.EMPState(1000)  # new
    mask = emp.EpochMask(state, keep=0.3)  # new
    dataset = stream().filter(Kept(mask, "id"))  # new
    loader = StatefulDataLoader(
        dataset, batch_size=BATCH_SIZE, num_workers=2, persistent_workers=True
    )
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    parts = {"model": model, "optimizer": optimizer, "state": state, "mask": mask, "loader": loader}
    first = step = 0
    if saved is not None:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        first, step = saved["epoch"], saved["step"]

    batches = []
    for epoch in range(first, EPOCHS):
        mask.set_epoch(epoch)  # new
        dataset.set_epoch(epoch)  # or resumed workers would start each epoch at that position
        for batch in loader:
            logits = model(batch["points"])
            loss = emp.cross_entropy(logits, batch["arm"], state, indices=batch["id"])  # changed
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            batches.append(batch["id"].tolist())
            step += 1
            if step == stop:
                checkpoint = {name: part.state_dict() for name, part in parts.items()}
                return batches, state, checkpoint | {"epoch": epoch, "step": step}
        if saved is None:
            print(f"epoch {epoch}: {len(mask)} of {len(state)} samples, loss {loss.item():.3f}")
    return batches, state, None


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "checkpoint.pt"
        whole, state, _ = train()
        before, _, checkpoint = train(stop=23)
        torch.save(checkpoint, file)
        after, resumed, _ = train(torch.load(file, weights_only=False))  # of this program
    same = before + after == whole and torch.equal(state.score, resumed.score)
    print(f"{len(whole)} steps; the same when stopped at step 23: {same}")
