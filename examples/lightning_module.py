"""EMP pruning in Lightning: a callback keeps the scores and the order with each checkpoint.

python examples/lightning_module.py
"""

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


def main() -> None:
    lightning.seed_everything(0, verbose=False)
    dataset = spirals()
    state = emp.EMPState(len(dataset))
    sampler = emp.EMPSampler(state, keep=0.3)
    loader = DataLoader(emp.IndexedDataset(dataset), batch_size=BATCH_SIZE, sampler=sampler)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=5,
        callbacks=[EMPCallback(state, sampler)],
        reload_dataloaders_every_n_epochs=1,  # epochs are of different lengths
        use_distributed_sampler=False,  # EMPSampler serves all ranks
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(state), loader)
    found = state.diagnostics()
    print(f"{trainer.global_step} steps; shares {found.windows[:, 0].tolist()}")


if __name__ == "__main__":
    main()
