"""Lightning's Trainer; checkpoints after steps and at an epoch's end."""

import logging
import warnings
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

import emp_kernels as emp
from emp_kernels.integrations.lightning import EMPCallback

from .. import task
from ..life import Life

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Module(lightning.LightningModule):
    def __init__(self, life: Life, net: task.Net, state: emp.EMPState) -> None:
        super().__init__()
        self.net, self.life, self.state = net, life, state

    def training_step(self, batch: Any, step: int) -> torch.Tensor:
        self.life.now("in a batch")
        self.life.epoch = self.current_epoch
        ids, (features, labels) = batch
        torch.manual_seed(int(ids[0]))  # dropout's: Lightning does not keep the generators
        loss = emp.cross_entropy(self.net(features), labels, self.state, indices=ids)
        self.life.trained(self.net, ids, loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), 0.3, 0.9)


class Saving(Callback):
    def __init__(self, life: Life) -> None:
        self.life, self.steps = life, 0

    def save(self, trainer: lightning.Trainer) -> None:
        with self.life.saving() as beside:
            trainer.save_checkpoint(beside / "checkpoint.ckpt")

    def on_train_start(self, trainer: lightning.Trainer, module: Module) -> None:
        self.life.begin(module.net)
        self.steps = trainer.global_step

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Module, *_: Any) -> None:
        if trainer.global_step > self.steps:
            self.save(trainer)
        self.steps = trainer.global_step
        self.life.now("before a batch")

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Module) -> None:
        self.life.now("between epochs")
        self.save(trainer)
        self.life.now("between epochs")


def train(life: Life) -> None:
    warnings.simplefilter("ignore")
    net, _ = task.parts()
    state, sampler = task.state_and_sampler()
    loader = DataLoader(
        emp.IndexedDataset(task.points()),
        batch_size=task.BATCH_SIZE,
        sampler=sampler,
        num_workers=life.workers,
    )
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=life.ranks,
        strategy=DDPStrategy(process_group_backend="gloo") if life.ranks > 1 else "auto",
        accumulate_grad_batches=life.accumulate,
        max_epochs=task.EPOCHS,
        callbacks=[EMPCallback(state, sampler), Saving(life)],
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=life.folder,
    )
    folder = life.checkpoint()
    if folder is not None:
        life.now("resuming")
    path = None if folder is None else folder / "checkpoint.ckpt"
    trainer.fit(Module(life, net, state), loader, ckpt_path=path)
    life.finish(net, state)
