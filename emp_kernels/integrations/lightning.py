"""EMP pruning in Lightning 2: a callback that keeps the state and the sampler.

    state = emp.EMPState(len(data))
    sampler = emp.EMPSampler(state, 0.3)
    loader = DataLoader(emp.IndexedDataset(data), batch_size=128, sampler=sampler)
    trainer = lightning.Trainer(
        callbacks=[EMPCallback(state, sampler)],
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
    )

The module's training step computes ``emp.cross_entropy(logits, labels, state, indices=ids)``; the
format of its batches and the number of loaders are up to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from .. import distributed
from ..sampler import EMPSampler
from ..scoring import score
from ..state import EMPState
from .candidates import (
    best_of,
    check_candidates,
    check_max_age,
    filled_up,
    looking,
    narrowed,
    to_look_at,
)

Labelled = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # ids (B,), logits (B, C), labels (B,)


class EMPCallback(Callback):
    """Moves the state to the module's device, saves and restores it and the epoch's order with each
    checkpoint, and logs its diagnostics.

    A checkpoint within an epoch resumes after the last batch that was trained, even if worker
    processes had prefetched more. Logged at the end of each epoch: ``emp/never_seen``,
    ``emp/share`` and ``emp/overlap``; a collapse of hard selection is warned of once.

    `limit_train_batches` ends each epoch early; the next one is chosen from the scores at that
    time. `overfit_batches` replaces the sampler by Lightning's sequential order, so nothing is
    pruned. With several loaders (a dict, or a CombinedLoader) the sampler's loader may end first in
    the modes "min_size" and "max_size", but must not be restarted within an epoch.

    With `candidates`, the training step gets only the highest-scoring 1 / `candidates` of each
    batch, so the loader must make batches that many times as large. The whole batch is scored
    first, by a forward pass in evaluation mode with the current weights. The sampler's `keep` must
    then be 1.0, so that every sample is a candidate.

    Args:
        state: the state that the training step writes scores into.
        sampler: that of the training loader, or of one of them.
        candidates: the number of samples loaded per trained sample.
        max_age: of the candidates, those whose score was written at most so many calls ago
            (:meth:`emp_kernels.EMPState.age`; a step makes two) are chosen by it, without a forward
            pass; a batch's first part must then be its ids. None: all are scored.
        logits_of: a function (module, batch) -> (ids, logits, labels). By default a
            batch is ``ids, (inputs, labels)`` and its logits are ``module(inputs)``.

    Raises:
        TypeError: a wrong type.
        ValueError: (when training begins) the Trainer would assume all epochs as long as the first,
            or would replace the sampler; no training loader has it; (in an epoch) its loader was
            restarted, as CombinedLoader's mode "max_size_cycle" does with loaders that end first.
    """

    def __init__(
        self,
        state: EMPState,
        sampler: EMPSampler,
        *,
        candidates: int = 1,
        max_age: int | None = None,
        logits_of: Callable[[Any, Any], Labelled] | None = None,
    ) -> None:
        if not isinstance(state, EMPState):
            raise TypeError(f"EMPCallback: state must be an EMPState, got {type(state).__name__}")
        if not isinstance(sampler, EMPSampler) or sampler.state is not state:
            raise ValueError(f"EMPCallback: sampler must be an EMPSampler of state, got {sampler}")
        self.emp_state, self.sampler = state, sampler
        self._candidates = check_candidates("EMPCallback", candidates)
        self._max_age = check_max_age("EMPCallback", max_age, state)
        self._logits_of = logits_of or _of_pairs
        # This rank's counts in the running epoch or since its resume: batches trained, total
        # batches, batch size (0: the loader is not the sampler's), and the sampler's epoch.
        self._batches = self._last = self._batch_size = self._epoch = 0

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
        self._batches = 0  # a resumed epoch has no start event
        if self._candidates > 1:
            step = partial(self._training_step, pl_module, pl_module.training_step)
            pl_module.training_step = step  # type: ignore[method-assign]

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        step = vars(pl_module).get("training_step")
        if isinstance(step, partial) and step.func == self._training_step:
            del pl_module.training_step  # which restores the class's own

    def _training_step(
        self,
        module: LightningModule,
        step: Callable[..., Any],
        batch: Any,
        *others: Any,
        **named: Any,
    ) -> Any:
        """The module's `step` on the best candidates of a batch; Lightning runs it with its
        training precision."""
        function, state, looked, part = "EMPCallback", self.emp_state, None, batch
        if self._max_age is not None:
            given = _ids_of(batch)
            looked = to_look_at(state, given, self._max_age)
            part = narrowed(function, batch, looked, len(given))
        with looking(module):
            ids, logits, labels = self._logits_of(module, part)
        scores = score(logits, labels, beta=state.beta)
        state.update(ids, scores)
        all_scores = scores.score
        if looked is not None:
            ids, all_scores = given, filled_up(state, given, looked, scores.score)
        rows = best_of(all_scores, self._candidates)
        return step(narrowed(function, batch, rows, len(ids)), *others, **named)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Resumed after an epoch's last batch, Lightning assumes the middle of the next epoch if
        # that is longer.
        loop: Any = trainer.fit_loop.epoch_loop
        batches = loop.batch_progress
        if loop.restarted_on_train_batch_end and batches.is_last_batch:
            batches.current.completed = max(batches.current.completed, trainer.num_training_batches)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batches = 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._batches == 0:
            self._begin(trainer)
        self._batches += 1
        if self._batch_size and self._batches > self._last and self._cycled():
            raise ValueError(
                "EMPCallback: the sampler's loader must last as long as the other loaders, or "
                "CombinedLoader's mode be 'min_size' or 'max_size', got one that was restarted "
                f"after its {self._last} batches"
            )
        # Resumed after an epoch's last batch, Lightning does not count the start of the next epoch:
        # after another resume within it, it would train one epoch too many.
        epochs: Any = trainer.fit_loop.epoch_progress
        for progress in (epochs.total, epochs.current):
            progress.ready = progress.started = progress.processed + 1

    def _begin(self, trainer: Trainer) -> None:
        """What the sampler's loader has left in this epoch, at its first batch."""
        loaders = list(_loaders(trainer.train_dataloader))
        ours = [loader for loader in loaders if loader.sampler is self.sampler]
        if not ours and not getattr(trainer, "overfit_batches", 0):
            raise ValueError(
                "EMPCallback: sampler must be that of a training loader, got loaders with "
                f"{[type(loader.sampler).__name__ for loader in loaders]}"
            )
        self._batch_size = self._last = 0
        if ours:
            batches: Any = ours[0].batch_sampler
            saved, ranks = self.sampler.state_dict(position=0), self.sampler.num_replicas
            left = len(saved["order"][0]) - saved["start"]
            left = left // ranks if self.sampler.drop_last else -(-left // ranks)
            self._batch_size, self._epoch = batches.batch_size, saved["epoch"]
            whole, rest = divmod(left, self._batch_size)
            self._last = whole + (rest > 0 and not batches.drop_last)

    def _cycled(self) -> bool:
        """After the last batch: whether the sampler is drawn from again (CombinedLoader may also
        yield None instead of the loader's batches)."""
        saved = self.sampler.state_dict()
        return saved["epoch"] != self._epoch and saved["order"] is not None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Lightning still holds the loader's iterator when it asks for the next epoch's length.
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
            "sampler": self.sampler.state_dict(position=self._position(trainer)),
        }

    def _position(self, trainer: Trainer) -> int | None:
        """Number of ids that count as drawn: all if Lightning's epoch is over."""
        if not self._batch_size:
            return None
        if trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return self.sampler.state.num_samples
        return self._batches * self._batch_size

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


def _ids_of(batch: Any) -> torch.Tensor:
    """A batch's first part."""
    ids = batch[0] if isinstance(batch, list | tuple) and batch else None
    if not isinstance(ids, torch.Tensor):
        raise ValueError(
            f"EMPCallback: with max_age a batch must begin with its ids, got {type(batch).__name__}"
        )
    return ids


def _of_pairs(module: Any, batch: Any) -> Labelled:
    """For batches ``ids, (inputs, labels)``."""
    try:
        ids, (inputs, labels) = batch
    except (TypeError, ValueError) as error:
        raise ValueError(
            "EMPCallback: with candidates a batch must be ids, (inputs, labels), or logits_of be "
            f"given, got {type(batch).__name__}"
        ) from error
    return ids, module(inputs), labels


def _loaders(source: Any) -> Iterator[DataLoader]:
    """All training loaders that Lightning accepts: one, or any nesting."""
    if isinstance(source, Mapping):
        source = list(source.values())
    if isinstance(source, list | tuple):
        for part in source:
            yield from _loaders(part)
    elif hasattr(source, "sampler"):
        yield source
