"""Epochs of the Hugging Face Trainer as EMPSampler draws them: order, lengths, steps, resumes."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from .. import distributed
from ..cautions import caution
from ..keep import Keep
from ..sampler import EMPSampler
from ..state import EMPState
from .trainer_batches import with_ids
from .trainer_options import check_initial_values

CHECKPOINT = "emp_state.pt"  # in each checkpoint's folder


class PrunedEpochs:
    """A base class to put before ``Trainer``: trains the epochs that an EMPSampler draws.

    The Trainer assumes that every epoch is as long as the first, skips the batches that a resumed
    epoch has trained, and restores the random generators. This class provides each epoch's length,
    the epoch of a checkpoint, and how much of it was trained. A resumed epoch is drawn from its
    beginning, in its saved order; the state's `selections` are restored to the epoch's beginning.

    With another batch size, accumulation or number of processes than the checkpoint's, the Trainer
    alone would take as many steps in all as if it had begun with them. Here a resumed training has
    the checkpoint's steps and those of all samples that are left.
    """

    emp_state: EMPState
    emp_sampler: EMPSampler | None
    _keep: Keep
    _candidates: int  # per trained sample
    _sampler_options: dict[str, Any]
    _first: dict[str, Any] | None  # the initial state, for trainings that start over
    _folder: str | None = None  # of the checkpoint that the running training resumes
    _saved: dict[str, Any] | None = None  # its CHECKPOINT
    _batch: int  # samples per batch, over all processes
    _resumed: tuple[int, int]  # epoch, and number of its ids that the sampler skips
    # The running epoch's number, ids and batches; batches trained, ids skipped; selections at its
    # beginning.
    _epoch: int
    _ids: int
    _batches: int
    _trained: int = 0
    _scored: bool  # whether the mixin computed this batch's loss
    _left_out: int
    _selections: torch.Tensor | None = None

    def _trainer(self) -> Trainer:
        assert isinstance(self, Trainer)
        return self

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **options: Any
    ) -> Any:
        """As in Trainer."""
        self._folder = resume_from_checkpoint or None  # type: ignore[assignment]
        if resume_from_checkpoint is True:
            self._folder = get_last_checkpoint(self._trainer().args.output_dir)
        return super().train(  # type: ignore[misc]
            resume_from_checkpoint, *arguments, **options
        )

    def get_train_dataloader(self) -> DataLoader:
        """The Trainer's loader with another order and each batch's ids; called when a training
        begins."""
        trainer = self._trainer()
        stock = super().get_train_dataloader()  # type: ignore[misc]
        if len(stock.dataset) != self.emp_state.num_samples:
            raise ValueError(
                "EMPTrainerMixin: train_dataset must be of the emp_state's "
                f"{self.emp_state.num_samples} samples, got {len(stock.dataset)}"
            )
        if self._first is not None:
            self.emp_state.load_state_dict(self._first)
        arguments = trainer.args
        ours: dict[str, Any] = {
            "seed": arguments.seed if arguments.data_seed is None else arguments.data_seed,
            "epochs": None if arguments.max_steps > 0 else math.ceil(arguments.num_train_epochs),
            "shuffle": getattr(arguments, "train_sampling_strategy", "random") != "sequential",
        }
        self.emp_sampler = EMPSampler(
            self.emp_state, self._keep, num_replicas=1, rank=0, **(ours | self._sampler_options)
        )
        self._resumed, self._selections = (-1, 0), None
        drop_last = arguments.dataloader_drop_last
        loader = with_ids(stock, self.emp_sampler, drop_last, self._candidates)
        prepared: Any = trainer.accelerator.prepare(loader)
        self._batch = prepared.total_batch_size
        return prepared

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple[Any, ...]:
        """As in Trainer, with each epoch's own length and, of a training that is resumed, the steps
        that the checkpoint took."""
        values = super().set_initial_training_values(args, dataloader)  # type: ignore[misc]
        check_initial_values(values)
        sampler = self.emp_sampler
        if sampler is None:
            return tuple(values)
        epochs, per_epoch, examples, samples, batch, in_epoch, steps = values

        def count(epoch: int) -> int:
            sampler.set_epoch(epoch)
            return self._steps(len(dataloader))

        ahead = self._load(sampler, count)
        if args.max_steps > 0:
            epochs, counted = 0, ahead
            while counted < args.max_steps:
                counted += count(epochs)
                epochs += 1
        else:
            whole = math.floor(args.num_train_epochs)
            steps, samples = ahead, 0
            for epoch in range(whole):
                steps += count(epoch)
                samples += len(sampler)
            if whole < epochs:  # as Trainer rounds, assuming all epochs as long as the last
                last = count(whole)
                steps += math.ceil(args.num_train_epochs * last) - whole * last
                samples += (args.num_train_epochs - whole) * len(sampler)
        sampler.set_epoch(0)
        return epochs, per_epoch, examples, samples, batch, in_epoch, steps

    def _steps(self, batches: int) -> int:
        return max(1, math.ceil(batches / self._trainer().args.gradient_accumulation_steps))

    def _batches_of(self, ids: int) -> int:
        whole, rest = divmod(ids, self._batch)
        return whole + (rest > 0 and not self._trainer().args.dataloader_drop_last)

    def _skipped(self, trained: int) -> tuple[int, int]:
        """What the Trainer and what the sampler skips of `trained` ids: batches that make whole
        steps, and the remaining ids."""
        accumulated = self._trainer().args.gradient_accumulation_steps
        batches = trained // (self._batch * accumulated) * accumulated
        return batches, trained - batches * self._batch

    def _load(self, sampler: EMPSampler, count: Callable[[int], int]) -> int:
        """Load the checkpoint. Returns how many more steps it took than the epochs' `count` of
        steps up to there, which is 0 with unchanged options."""
        self._saved = None
        if self._folder is None:
            return 0
        path = os.path.join(self._folder, CHECKPOINT)
        if not os.path.isfile(path):
            raise ValueError(
                f"EMPTrainerMixin: resume_from_checkpoint must be a folder with {CHECKPOINT}, "
                f"got {self._folder}; a checkpoint of another Trainer can only start a new "
                "training, with its model"
            )
        self._saved = saved = torch.load(path, weights_only=True)
        self.emp_state.load_state_dict(saved["state"])
        sampler.load_state_dict(saved["sampler"])
        sampler.set_epoch(saved["epoch"])
        batches, rest = self._skipped(saved["trained"])
        left = self._batches_of(len(sampler) - saved["left_out"] - rest) - batches
        path = os.path.join(self._folder, TRAINER_STATE_NAME)
        taken = TrainerState.load_from_json(path).global_step
        counted = sum(count(epoch) for epoch in range(saved["epoch"] + 1))
        return taken + self._steps(left) - counted

    def _init_training_state(self, *arguments: Any, **options: Any) -> tuple[int, int]:
        found = super()._init_training_state(*arguments, **options)  # type: ignore[misc]
        saved, sampler = self._saved, self.emp_sampler
        if saved is None or sampler is None:
            return tuple(found)
        self._saved = None
        sampler.load_state_dict(saved["sampler"])
        trained = 0 if self._trainer().args.ignore_data_skip else saved["trained"]
        batches, rest = self._skipped(trained)
        if rest:
            drawn = iter(sampler)
            for _ in range(rest):
                next(drawn)
            sampler.load_state_dict(sampler.state_dict(position=rest))
        self._resumed = (saved["epoch"], saved["left_out"] + rest)
        return saved["epoch"], batches

    def _run_epoch(self, **options: Any) -> None:
        sampler = self.emp_sampler
        if sampler is None:  # a loader without our sampler
            super()._run_epoch(**options)  # type: ignore[misc]
            return
        epoch = options["epoch"]
        self._sync()
        sampler.set_epoch(epoch)
        resumed, left_out = self._resumed
        left_out = left_out if resumed == epoch else 0
        self._ids = len(sampler)
        batches = len(options["train_dataloader"])
        if left_out:
            batches = self._batches_of(self._ids - left_out)
        skipped = 0
        if epoch == options["epochs_trained"]:
            skipped = options["steps_trained_in_current_epoch"]
        self._epoch, self._batches = epoch, max(1, batches)
        self._trained, self._left_out = skipped, left_out  # batches, ids
        self._selections = self.emp_state.selections.clone()  # a resumed epoch is drawn again
        options["steps_in_epoch"] = self._batches
        options["num_update_steps_per_epoch"] = self._steps(self._batches)
        super()._run_epoch(**options)  # type: ignore[misc]

    def training_step(self, *arguments: Any, **options: Any) -> Any:
        self._trained += 1
        self._scored = False
        loss = super().training_step(*arguments, **options)  # type: ignore[misc]
        if not self._scored and self._candidates == 1:
            caution(
                f"EMPTrainerMixin: {type(self).compute_loss.__qualname__} does not call "  # type: ignore[attr-defined]
                "super().compute_loss, so that no scores are written and the samples are chosen by "
                "chance: pass your own loss as compute_loss_func instead",
                self.emp_state,
                "unwritten",
            )
        return loss

    def save_model(self, output_dir: str | None = None, *arguments: Any, **options: Any) -> None:
        """As in Trainer; also saves the scores and the epoch's order into a checkpoint's folder."""
        super().save_model(output_dir, *arguments, **options)  # type: ignore[misc]
        trainer, sampler = self._trainer(), self.emp_sampler
        name = f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}"
        if output_dir is None or os.path.basename(output_dir) != name:
            return
        if sampler is None or self._selections is None:  # no epoch has begun
            return
        self._sync()
        if not trainer.args.should_save:
            return
        over = self._trained >= self._batches
        state = self.emp_state.state_dict()
        if not over:
            state["selections"] = self._selections
        torch.save(
            {
                "state": state,
                "sampler": sampler.state_dict(position=self._ids if over else 0),
                "epoch": self._epoch + over,
                # Ids of all processes: those that the saved order skips, and those trained after
                # them.
                "left_out": 0 if over else self._left_out,
                "trained": 0 if over else self._trained * self._batch,
            },
            os.path.join(output_dir, CHECKPOINT),
        )

    def _sync(self) -> None:
        if distributed.initialised():
            distributed.sync(self.emp_state)
