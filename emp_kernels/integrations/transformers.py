"""EMP pruning in the Hugging Face Trainer (transformers 5).

    class PruningTrainer(EMPTrainerMixin, transformers.Trainer):
        pass

    trainer = PruningTrainer(model, arguments, train_dataset=data, keep=0.3)

Trains models with one label a sample: `labels` (B,) and outputs with `logits` (B, C).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, default_data_collator
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .. import distributed
from ..dataset import IndexedDataset
from ..keep import Keep
from ..loss import cross_entropy
from ..sampler import EMPSampler
from ..state import EMPState

IDS = "sample_ids"  # the batch's key of the sample ids
CHECKPOINT = "emp_state.pt"  # in each checkpoint's folder


class IdCollator:
    """A data collator that keeps sample ids: items ``(id, features)`` of an
    :class:`emp_kernels.IndexedDataset` become what `collator` makes of the features, and their ids
    (B,) int64 under ``sample_ids``. Other items, as in evaluation, go to `collator` untouched."""

    def __init__(self, collator: Callable[[list[Any]], Any]) -> None:
        self.collator = collator

    def __call__(self, items: Sequence[Any]) -> Any:
        if not items or not isinstance(items[0], tuple):
            return self.collator(list(items))
        batch = self.collator([features for _, features in items])
        batch[IDS] = torch.tensor([i for i, _ in items], dtype=torch.int64)
        return batch


class EMPTrainerMixin:
    """Put before ``Trainer`` among the bases: trains each epoch on what EMP selects.

    The loss is :func:`emp_kernels.cross_entropy`, which refreshes the scores; the order is
    :class:`emp_kernels.EMPSampler`'s; epochs, steps and the learning-rate schedule count what is
    really drawn; checkpoints hold the state and the epoch's order (``emp_state.pt``), and resuming
    goes on in mid-epoch. Accelerate hands the batches out to the processes, so that the sampler
    itself is that of one rank; the processes' states are merged as an epoch begins.

    Args:
        keep, sampler_options: of :class:`emp_kernels.EMPSampler`; `epochs` and `seed` come from the
            TrainingArguments.
        beta: of the :class:`emp_kernels.EMPState`, made for `train_dataset`.
        emp_state: an existing state instead.
        data_collator: for features without ids, by default transformers' default_data_collator.
        Everything else is Trainer's.

    Raises:
        ValueError: ids are missing from a training batch.
    """

    emp_state: EMPState
    emp_sampler: EMPSampler | None
    loss_is_scaled_for_ga = False

    def __init__(
        self,
        *arguments: Any,
        keep: Keep = 0.3,
        beta: float = 1.0,
        emp_state: EMPState | None = None,
        sampler_options: Mapping[str, Any] | None = None,
        data_collator: Callable[[list[Any]], Any] | None = None,
        train_dataset: Any = None,
        **options: Any,
    ) -> None:
        if train_dataset is not None and not isinstance(train_dataset, IndexedDataset):
            train_dataset = IndexedDataset(train_dataset)
        super().__init__(  # type: ignore[call-arg]
            *arguments,
            data_collator=IdCollator(data_collator or default_data_collator),
            train_dataset=train_dataset,
            **options,
        )
        trainer = self._trainer()
        if emp_state is None:
            emp_state = EMPState(0 if train_dataset is None else len(train_dataset), beta=beta)
        self.emp_state = emp_state.to(trainer.args.device)
        self.emp_sampler = None
        self._keep, self._sampler_options = keep, dict(sampler_options or {})
        self._rng_of: str | None = None  # a checkpoint's folder, until its generators are restored
        trainer.add_callback(_Checkpointing(self))

    def _trainer(self) -> Trainer:
        assert isinstance(self, Trainer)
        return self

    def _get_train_sampler(self, train_dataset: Any = None) -> EMPSampler:
        arguments = self._trainer().args
        seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
        options = {"seed": seed, "epochs": math.ceil(arguments.num_train_epochs)}
        self.emp_sampler = EMPSampler(
            self.emp_state,
            self._keep,
            num_replicas=1,
            rank=0,
            **(options | self._sampler_options),
        )
        return self.emp_sampler

    def _batches(self, ids: int) -> int:
        """Batches of each process for so many ids of all processes."""
        trainer = self._trainer()
        batches = ids / trainer._train_batch_size
        whole = math.floor(batches) if trainer.args.dataloader_drop_last else math.ceil(batches)
        return math.ceil(whole / trainer.accelerator.num_processes)

    def set_initial_training_values(self, args: Any, dataloader: Any) -> tuple[Any, ...]:
        """As Trainer's, with the steps of all epochs instead of those of the first times epochs."""
        values = list(super().set_initial_training_values(args, dataloader))  # type: ignore[misc]
        sampler = self.emp_sampler
        if args.max_steps < 0 and sampler is not None:
            steps = 0
            for epoch in range(math.ceil(args.num_train_epochs)):
                sampler.set_epoch(epoch)
                steps += max(
                    1, math.ceil(self._batches(len(sampler)) / args.gradient_accumulation_steps)
                )
            sampler.set_epoch(0)
            values[-1] = steps
        return tuple(values)

    def _init_training_state(self, *arguments: Any, **options: Any) -> tuple[int, int]:
        found = super()._init_training_state(*arguments, **options)  # type: ignore[misc]
        folder = options.get("resume_from_checkpoint", arguments[3] if len(arguments) > 3 else None)
        if folder is None or self.emp_sampler is None:
            return tuple(found)
        saved = torch.load(os.path.join(folder, CHECKPOINT), weights_only=True)
        self.emp_state.load_state_dict(saved["state"])
        self.emp_sampler.load_state_dict(saved["sampler"])
        if saved["sampler"]["order"] is not None:
            self._rng_of = folder
        return saved["sampler"]["epoch"], 0  # the sampler skips what was drawn

    def _run_epoch(self, **options: Any) -> None:
        sampler = self.emp_sampler
        if sampler is not None:
            sampler.set_epoch(options["epoch"])
            begun = sampler.state_dict()
            left = len(sampler) - begun["start"]
            batches = max(1, self._batches(left))
            every = self._trainer().args.gradient_accumulation_steps
            options["steps_in_epoch"] = batches
            options["num_update_steps_per_epoch"] = math.ceil(batches / every)
        super()._run_epoch(**options)  # type: ignore[misc]

    def get_batch_samples(self, *arguments: Any, **options: Any) -> Any:
        batches = super().get_batch_samples(*arguments, **options)  # type: ignore[misc]
        if self._rng_of is not None:  # making the loader's iterator has drawn from the generators
            self._trainer()._load_rng_state(self._rng_of)
            self._rng_of = None
        return batches

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """EMP's loss of a training batch; of others, Trainer's."""
        ids = inputs.pop(IDS, None)
        if not model.training:
            return super().compute_loss(  # type: ignore[misc]
                model, inputs, return_outputs, num_items_in_batch
            )
        if ids is None:
            raise ValueError(
                f"EMPTrainerMixin: a training batch must hold {IDS!r}, got {sorted(inputs)}; pass "
                "train_dataset and data_collator when the trainer is made"
            )
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs[0]
        loss = cross_entropy(logits, labels, self.emp_state, indices=ids)
        return (loss, outputs) if return_outputs else loss


class _Checkpointing(TrainerCallback):
    """Merges the processes' states and keeps them with each checkpoint."""

    def __init__(self, owner: EMPTrainerMixin) -> None:
        self.owner = owner
        self.first_step = 0  # global step at which the running epoch began, or was resumed

    def _sync(self) -> None:
        if distributed.initialised():
            distributed.sync(self.owner.emp_state)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self._sync()
        self.first_step = state.global_step

    def on_save(self, args: Any, state: Any, control: Any, **options: Any) -> None:
        self._sync()
        sampler = self.owner.emp_sampler
        if sampler is None or not state.is_world_process_zero:
            return
        trainer = self.owner._trainer()
        batches = (state.global_step - self.first_step) * args.gradient_accumulation_steps
        trained = batches * trainer._train_batch_size * trainer.accelerator.num_processes
        folder = os.path.join(args.output_dir, f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}")
        torch.save(
            {
                "state": self.owner.emp_state.state_dict(),
                "sampler": sampler.state_dict(position=trained),
            },
            os.path.join(folder, CHECKPOINT),
        )
