"""EMP pruning in Lightning 2: a callback that keeps the state and the sampler.

    state = emp.EMPState(len(data))
    sampler = emp.EMPSampler(state, 0.3)
    loader = DataLoader(emp.IndexedDataset(data), batch_size=128, sampler=sampler)
    trainer = lightning.Trainer(
        callbacks=[EMPCallback(state, sampler)],
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
    )

The module's training step computes ``emp.cross_entropy(logits, labels, state, indices=ids)``.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from .. import distributed
from ..sampler import EMPSampler
from ..state import EMPState


class EMPCallback(Callback):
    """Moves the state to the module's device, saves and restores it with each checkpoint together
    with the epoch's order, and logs its diagnostics.

    A checkpoint within an epoch resumes behind the last batch that was trained, also where worker
    processes had prefetched more. Logged as an epoch ends: ``emp/never_seen``, ``emp/share`` and
    ``emp/overlap``; a collapse of hard selection is a warning, once.

    Args:
        state: what the training step writes the scores into.
        sampler: the training loader's.

    Raises:
        ValueError: (as training begins) the Trainer would count every epoch like the first, or
            would replace the sampler.
    """

    def __init__(self, state: EMPState, sampler: EMPSampler) -> None:
        if not isinstance(state, EMPState):
            raise TypeError(f"EMPCallback: state must be an EMPState, got {type(state).__name__}")
        if not isinstance(sampler, EMPSampler) or sampler.state is not state:
            raise ValueError(f"EMPCallback: sampler must be an EMPSampler of state, got {sampler}")
        self.emp_state, self.sampler = state, sampler
        self._trained = 0  # ids of this rank in the running epoch, or since it was resumed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        every = getattr(trainer, "reload_dataloaders_every_n_epochs", None)
        if every != 1:
            raise ValueError(
                "EMPCallback: reload_dataloaders_every_n_epochs must be 1 (epochs are of different "
                f"lengths), got {every}"
            )
        if trainer.world_size > 1 and trainer._accelerator_connector.use_distributed_sampler:
            raise ValueError(
                "EMPCallback: use_distributed_sampler must be False (EMPSampler serves all ranks), "
                "got True"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.emp_state.to(pl_module.device)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning, resumed behind an epoch's last batch, takes it for the middle of the next epoch
        # where that is longer.
        loop: Any = trainer.fit_loop.epoch_loop
        batches = loop.batch_progress
        if loop.restarted_on_train_batch_end and batches.is_last_batch:
            batches.current.completed = max(batches.current.completed, trainer.num_training_batches)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trained = 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._trained += len(batch[0])
        # Lightning, resumed behind an epoch's last batch, does not count that the next one began:
        # resumed in it once more, it would train an epoch too many.
        epochs: Any = trainer.fit_loop.epoch_progress
        for progress in (epochs.total, epochs.current):
            progress.ready = progress.started = progress.processed + 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning still holds the loader's iterator as it asks for the next epoch's length.
        self.sampler.set_epoch(trainer.current_epoch + 1)
        if distributed.initialised():
            distributed.sync(self.emp_state)
        found = self.emp_state.diagnostics()
        values = {"never_seen": found.never_seen, "share": found.share, "overlap": found.overlap}
        pl_module.log_dict({f"emp/{name}": value for name, value in values.items()})

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if distributed.initialised():
            distributed.sync(self.emp_state)
        checkpoint["emp"] = {
            "state": self.emp_state.state_dict(),
            "sampler": self.sampler.state_dict(position=self._trained),
        }

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if "emp" not in checkpoint:
            raise ValueError(
                "EMPCallback: checkpoint must have been saved with an EMPCallback, got one without "
                "its entry 'emp'"
            )
        self._trained = 0
        self.emp_state.load_state_dict(checkpoint["emp"]["state"])
        self.sampler.load_state_dict(checkpoint["emp"]["sampler"])
