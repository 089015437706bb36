"""EMP pruning in the Hugging Face Trainer (transformers 5), and in TRL's SFTTrainer.

    class PruningTrainer(EMPTrainerMixin, transformers.Trainer):
        pass

    trainer = PruningTrainer(model, arguments, train_dataset=data, keep=0.3)

Trains models with class labels: `labels` (B,) for logits (B, C), or `labels` (B, T) for logits (B,
T, C), as in language models, where a sample is a sequence.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers import Trainer

from ..dataset import IndexedDataset
from ..keep import Keep
from ..state import EMPState
from ..validation import check_real
from .candidates import (
    best_of,
    check_candidates,
    check_max_age,
    filled_up,
    looking,
    narrowed,
    to_look_at,
)
from .trainer_batches import IDS, LENGTHS, IdCollator, count_tokens
from .trainer_epochs import CHECKPOINT, PrunedEpochs
from .trainer_logits import OutputHead
from .trainer_loss import BatchLoss
from .trainer_model import divides_by_items, takes, unwrapped
from .trainer_options import check_options, check_tokens, check_trainer

__all__ = ["CHECKPOINT", "IDS", "EMPTrainerMixin", "IdCollator"]

_SFT = "trl.trainer.sft_trainer"


class EMPTrainerMixin(PrunedEpochs):
    """A mixin to put before ``Trainer``: trains each epoch on the samples that EMP selects.

    The loss is the stock one, computed in the same pass over the logits that refreshes the scores;
    the order is :class:`emp_kernels.EMPSampler`'s; epochs, steps and the learning-rate schedule
    count the samples actually drawn; checkpoints hold the state and the epoch's order
    (``emp_state.pt``), and resuming continues in mid-epoch. Accelerate distributes the batches to
    the processes, so the sampler acts as a single rank; the processes' states are merged at the
    start of each epoch. With a `model_init`, each training starts from the initial scores.

    Language models: a sequence's score is the mean over its tokens that count (labels other than
    -100), and `keep` chooses sequences. `keep_tokens` trains, of each batch's tokens, that share
    with the highest scores (loss plus beta times entropy): the model reads all tokens, the loss is
    the mean over these. Without `keep`, every epoch then has all sequences.

    The first batch of a training is passed through the model up to twice more, without gradients,
    to compare the model's own loss with the mixin's; not with a `compute_loss_func`, label
    smoothing, `materialise_logits=False` or SFTTrainer.

    The Trainer's options work as without the mixin, except those that raise an error: orders other
    than "random" and "sequential" (`train_sampling_strategy`), several GPUs in one process, TRL's
    losses other than "nll". A `compute_loss_func` remains the loss, and scores are computed in
    addition. Of TRL's own metrics `num_tokens` is logged in training; token accuracy and entropy
    are not, as they would take another forward pass.

    Args:
        keep, sampler_options: of :class:`emp_kernels.EMPSampler`; where `sampler_options` does not
            name them, `epochs`, `seed` and `shuffle` come from the TrainingArguments. `keep`
            defaults to 0.3, or to 1.0 with `candidates` or `keep_tokens`. Importance sampling is
            refused: the Trainer's loss would leave its weights out.
        candidates: batches are loaded this many times larger, scored by a forward pass in
            evaluation mode, and the `per_device_train_batch_size` samples with the highest scores
            are trained. An epoch then has that many times fewer steps.
        max_age: candidates whose score was written at most so many calls ago
            (:meth:`emp_kernels.EMPState.age`; a batch makes one or two) keep it and are left out
            of the scoring pass. Samples are loaded again about one epoch later, so that with fewer
            calls than an epoch has, most scores are too old. None: all are scored.
        beta: of the :class:`emp_kernels.EMPState` that is created for the training set.
        emp_state: an existing state instead.
        keep_tokens: a float in (0, 1], or None to train all tokens. Only for labels (B, T).
        materialise_logits: False trains a causal language model from its last hidden states and its
            output head's weight (:func:`emp_kernels.linear_cross_entropy`), without computing
            logits.
        causal: whether position t of the logits predicts label t + 1; None derives it from the
            model, which must then be a transformers model.
        All other arguments are Trainer's.

    Raises:
        ValueError: an option that the mixin would ignore; a training batch without ids; labels that
            are not classes.
        RuntimeError: this Trainer version lacks the private methods that the mixin overrides, or
            computes its own loss.
    """

    def __init__(
        self,
        *arguments: Any,
        keep: Keep | None = None,
        candidates: int = 1,
        max_age: int | None = None,
        beta: float = 1.0,
        emp_state: EMPState | None = None,
        sampler_options: Mapping[str, Any] | None = None,
        keep_tokens: float | None = None,
        materialise_logits: bool = True,
        causal: bool | None = None,
        train_dataset: Any = None,
        **options: Any,
    ) -> None:
        check_trainer(self, PrunedEpochs)
        self._candidates = check_candidates("EMPTrainerMixin", candidates)
        self._max_age = check_max_age("EMPTrainerMixin", max_age, emp_state)
        if keep is None:
            keep = 0.3 if candidates == 1 and keep_tokens is None else 1.0
        if keep_tokens is not None:
            given = keep_tokens
            keep_tokens = check_real("EMPTrainerMixin", "keep_tokens", given)
            if not 0 < keep_tokens <= 1:
                raise ValueError(
                    f"EMPTrainerMixin: keep_tokens must be a share in (0, 1] or None, got {given}"
                )
        if isinstance(train_dataset, IndexedDataset):
            train_dataset = train_dataset.dataset
        super().__init__(  # type: ignore[call-arg]
            *arguments, train_dataset=train_dataset, **options
        )
        trainer = self._trainer()
        if emp_state is None:
            data = trainer.train_dataset
            emp_state = EMPState(0 if data is None else len(IndexedDataset(data)), beta=beta)
        self.emp_state = emp_state.to(trainer.args.device)
        self.emp_sampler = None
        self._keep, self._sampler_options = keep, dict(sampler_options or {})
        self._keep_tokens, self._causal = keep_tokens, causal
        self._materialise_logits = materialise_logits
        self._head: OutputHead | None = None
        self._divides: bool | None = None  # the model's loss, by num_items_in_batch
        self._first = None if trainer.model_init is None else self.emp_state.state_dict()
        check_options(self, keep_tokens, materialise_logits, self._sampler_options)

    def get_train_dataloader(self) -> DataLoader:
        check_options(self, self._keep_tokens, self._materialise_logits, self._sampler_options)
        self._head = self._divides = None  # a new training may use another model
        return super().get_train_dataloader()

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """As in Trainer; for a training batch it also writes the scores into the state. With
        `materialise_logits=False` the outputs of a training batch have no full logits."""
        inherited = super().compute_loss  # type: ignore[misc]
        whose = inherited.__qualname__
        if not model.training:
            return inherited(model, inputs, return_outputs, num_items_in_batch)
        self._scored = True
        self._is_sft = inherited.__module__ == _SFT
        if self._is_sft:  # it would run the model again for its metrics
            inherited = partial(Trainer.compute_loss, self._trainer())
            count_tokens(self, inputs)
        loss = self._loss_of(model, inputs)
        trainer = self._trainer()
        own, trainer.compute_loss_func = trainer.compute_loss_func, loss
        try:
            with self._head or contextlib.nullcontext():
                found = inherited(model, inputs, return_outputs, num_items_in_batch)
        finally:
            trainer.compute_loss_func = own
        if not loss.called:
            raise RuntimeError(
                "EMPTrainerMixin: compute_loss must call the Trainer's compute_loss_func, got "
                f"{whose}, which computes a loss of its own: pass that as compute_loss_func"
            )
        return found

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> Any:
        """As in Trainer, but with only the candidates that are trained, which it then counts."""
        if self._candidates > 1 and self.emp_sampler is not None:
            found = islice(epoch_iterator, num_batches)
            epoch_iterator = iter([self._best_of(batch) for batch in found])
        return super().get_batch_samples(  # type: ignore[misc]
            epoch_iterator, num_batches, device
        )

    def _best_of(self, batch: Any) -> Any:
        """The candidates of a batch with the highest scores under the current weights."""
        function, trainer = "EMPTrainerMixin", self._trainer()
        if LENGTHS in batch:
            raise ValueError(
                f"{function}: candidates must be 1 where a collator joins the samples of a batch "
                f"into one row, got {self._candidates}"
            )
        looked, part = None, batch
        if self._max_age is not None and IDS in batch:
            looked = to_look_at(self.emp_state, batch[IDS], self._max_age)
            part = narrowed(function, batch, looked, len(batch[IDS]))
        inputs = dict(trainer._prepare_inputs(part))
        loss, name = self._batch_loss(inputs)
        labels = inputs[name]
        inputs.pop("labels", None)
        model = trainer.model_wrapped
        with looking(model), trainer.compute_loss_context_manager():
            with self._head or contextlib.nullcontext():
                outputs = model(**inputs)
            scores = loss.samples(outputs, labels)
        if looked is not None:
            scores = filled_up(self.emp_state, batch[IDS], looked, scores)
        rows = best_of(scores, self._candidates)
        return narrowed(function, batch, rows, len(scores))

    def _batch_loss(self, inputs: dict[str, Any]) -> tuple[BatchLoss, str]:
        """The loss of a batch and its labels' name; `inputs` retains only what the model takes."""
        trainer = self._trainer()
        ids, lengths = inputs.pop(IDS, None), inputs.pop(LENGTHS, None)
        if ids is None:
            raise ValueError(
                f"EMPTrainerMixin: a training batch must hold {IDS!r}, got {sorted(inputs)}"
            )
        name = self._labels_name(inputs)
        labels = inputs[name]
        check_tokens(labels, self._keep_tokens, self._materialise_logits)
        inner = unwrapped(trainer.accelerator.unwrap_model(trainer.model))
        decoder_ids = getattr(inner, "prepare_decoder_input_ids_from_labels", None)
        if decoder_ids is not None and "decoder_input_ids" not in inputs:
            inputs["decoder_input_ids"] = decoder_ids(labels=labels)
        if not self._materialise_logits and self._head is None:
            self._head = OutputHead(inner)
        smoother = trainer.label_smoother
        return BatchLoss(
            *(self.emp_state, ids, lengths, inner),
            causal=self._causal,
            targets=inputs.get("shift_labels"),
            keep_tokens=self._keep_tokens,
            smoothing=0.0 if smoother is None else smoother.epsilon,
            own=trainer.compute_loss_func,
            head=self._head,
        ), name

    def _loss_of(self, model: torch.nn.Module, inputs: dict[str, Any]) -> BatchLoss:
        """The loss of a training batch; `inputs` retains what the Trainer and the model take."""
        trainer = self._trainer()
        loss, name = self._batch_loss(inputs)
        labels = inputs[name]
        if self._divides is None:
            plain = trainer.label_smoother is None and loss.own is None and loss.head is None
            if plain and takes(loss.model, name) and not self._is_sft:
                expected = partial(loss.of_one_batch, labels=labels)
                self._divides = divides_by_items(model, inputs, expected, trainer)
            else:
                self._divides = True
        loss.divides = self._divides is not False
        inputs["labels"] = labels  # the Trainer passes them to the loss and not to the model
        return loss

    def _labels_name(self, inputs: Mapping[str, Any]) -> str:
        """The name of a batch's labels, of the several that the Trainer accepts."""
        names: list[str] = self._trainer().label_names
        found = ["labels"] if "labels" in inputs else [name for name in names if name in inputs]
        if len(found) != 1:
            raise ValueError(
                "EMPTrainerMixin: a training batch must hold 'labels', or one of label_names, got "
                f"{sorted(inputs)} and label_names={names}"
            )
        return found[0]
