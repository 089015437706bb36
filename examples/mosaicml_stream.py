"""EMP pruning of MosaicML's StreamingDataset: each epoch reads what the last scores select.

    pip install mosaicml-streaming
    python examples/mosaicml_stream.py

Shards are written and streamed by persistent worker processes, and a training that is stopped in
mid-epoch resumes with exactly the rest.
"""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import torch
from plain import spirals
from streaming import MDSWriter, StreamingDataLoader
from streaming.base.util import clean_stale_shared_memory
from torch import nn

import emp_kernels as emp
from emp_kernels.integrations.mosaicml import PrunedStreamingDataset

EPOCHS, BATCH_SIZE = 5, 50
warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nor written


def write(folder: Path) -> None:
    points, arm = spirals().tensors
    columns = {"points": "ndarray:float32:2", "arm": "int"}
    with MDSWriter(out=str(folder), columns=columns, size_limit=4000) as shards:
        for x, y in zip(points.numpy(), arm.tolist(), strict=True):
            shards.write({"points": x, "arm": y})


def train(folder: Path, saved: dict | None = None, stop: int | None = None):
    """Train, from a checkpoint and to a step if given: (ids of each batch, state, checkpoint)."""
    torch.manual_seed(0)
    clean_stale_shared_memory()  # left by a stopped process
    dataset = PrunedStreamingDataset(
        local=str(folder), batch_size=BATCH_SIZE, shuffle=True, num_canonical_nodes=1
    )
    state = emp.EMPState(dataset.num_samples)  # new
    mask = emp.EpochMask(state, keep=0.3)  # new
    dataset.prune(mask)  # new
    loader = StreamingDataLoader(
        dataset, batch_size=BATCH_SIZE, num_workers=2, persistent_workers=True
    )
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.AdamW(model.parameters(), 0.01)
    kept = {"model": model, "optimizer": optimizer, "state": state, "loader": loader}
    first = step = 0
    if saved is not None:
        for name, part in kept.items():
            part.load_state_dict(saved[name])  # the loader's holds the mask
        first, step = saved["epoch"], saved["step"]

    batches = []
    for epoch in range(first, EPOCHS):
        mask.set_epoch(epoch)  # new
        for ids, sample in loader:
            logits = model(sample["points"])
            loss = emp.cross_entropy(logits, sample["arm"], state, indices=ids)  # changed
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            batches.append(ids.tolist())
            step += 1
            if step == stop:
                checkpoint = {name: part.state_dict() for name, part in kept.items()}
                return batches, state, checkpoint | {"epoch": epoch, "step": step}
        if saved is None:
            print(f"epoch {epoch}: {len(mask)} of {len(state)} samples, loss {loss.item():.3f}")
    return batches, state, None


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        shards, file = Path(name) / "shards", Path(name) / "checkpoint.pt"
        write(shards)
        whole, state, _ = train(shards)
        before, _, checkpoint = train(shards, stop=23)
        torch.save(checkpoint, file)
        after, resumed, _ = train(shards, torch.load(file, weights_only=True))
    same = before + after == whole and torch.equal(state.score, resumed.score)
    print(f"{len(whole)} steps; the same when stopped at step 23: {same}")
    clean_stale_shared_memory()
