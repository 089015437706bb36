"""EMP pruning in Lightning: a callback keeps the scores and the order with each checkpoint. Fabric
needs none: its checkpoints accept state and sampler directly.

python examples/lightning_module.py
"""

import tempfile
from pathlib import Path

import lightning
import torch
from plain import BATCH_SIZE, spirals
from torch import nn
from torch.utils.data import DataLoader

import emp_kernels as emp
from emp_kernels.integrations.lightning import EMPCallback


class Classifier(lightning.LightningModule):
    def __init__(self, state: emp.EMPState) -> None:
        super().__init__()
        self.state = state
        self.layers = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 2))

    def training_step(self, batch, batch_idx):
        ids, (points, arm) = batch
        return emp.cross_entropy(self.layers(points), arm, self.state, indices=ids)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 0.01)


def with_trainer() -> None:
    lightning.seed_everything(0, verbose=False)
    dataset = spirals()
    state = emp.EMPState(len(dataset))
    sampler = emp.EMPSampler(state, keep=0.3)
    loader = DataLoader(emp.IndexedDataset(dataset), batch_size=BATCH_SIZE, sampler=sampler)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=5,
        callbacks=[EMPCallback(state, sampler)],
        reload_dataloaders_every_n_epochs=1,  # epochs differ in length
        use_distributed_sampler=False,  # EMPSampler serves all ranks
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(state), loader)
    found = state.diagnostics()
    print(f"{trainer.global_step} steps; shares {found.windows[:, 0].tolist()}")


def with_fabric(checkpoint: Path, stop_at: int | None = None) -> list[list[int]]:
    """Train from `checkpoint`, if it exists, to the end or to a step that is saved there.

    Returns:
        the ids of each batch.
    """
    fabric = lightning.Fabric(accelerator="cpu")
    torch.manual_seed(0)
    dataset = spirals()
    state = emp.EMPState(len(dataset), device=fabric.device)
    sampler = emp.EMPSampler(state, keep=0.3)
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 2))
    model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), 0.01))
    loader = fabric.setup_dataloaders(
        DataLoader(emp.IndexedDataset(dataset), batch_size=BATCH_SIZE, sampler=sampler),
        use_distributed_sampler=False,
    )
    kept = {"model": model, "optimizer": optimizer, "state": state, "sampler": sampler}
    if checkpoint.exists():
        fabric.load(checkpoint, kept)

    drawn = []
    for _ in range(sampler.epoch, 5):
        for ids, (points, arm) in loader:
            loss = emp.cross_entropy(model(points), arm, state, indices=ids)
            optimizer.zero_grad()
            fabric.backward(loss)
            optimizer.step()
            drawn.append(ids.tolist())
            if len(drawn) == stop_at:
                if fabric.world_size > 1:
                    emp.distributed.sync(state)
                fabric.save(checkpoint, kept)
                return drawn
    return drawn


if __name__ == "__main__":
    with_trainer()
    with tempfile.TemporaryDirectory() as folder:
        whole = with_fabric(Path(folder) / "none")
        first = with_fabric(Path(folder) / "fabric.ckpt", stop_at=20)
        rest = with_fabric(Path(folder) / "fabric.ckpt")
    print(f"Fabric: {len(whole)} steps, the same when stopped at 20: {first + rest == whole}")
