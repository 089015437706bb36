"""Training batches of the Hugging Face Trainer with sample ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from ..dataset import IndexedDataset

IDS = "sample_ids"  # the batch's key of the sample ids
_COUNTS = ("_total_train_tokens", "_tp_size", "_metrics")  # SFTTrainer's, of its num_tokens
LENGTHS = "sample_lengths"  # the samples' lengths, if a collator packs them into one row


class IdCollator:
    """A data collator that keeps sample ids: it collates the features of items ``(id, features)``
    of an :class:`emp_kernels.IndexedDataset` with `collator` and adds their ids (B,) int64 as
    ``sample_ids``. If `collator` packs the B samples into one row (padding-free attention), their
    lengths (a list of B ints) are added as ``sample_lengths``. Other items, as in evaluation, are
    passed to `collator` unchanged."""

    def __init__(self, collator: Callable[[list[Any]], Any]) -> None:
        self.collator = collator

    def __call__(self, items: Sequence[Any]) -> Any:
        if not items or not isinstance(items[0], tuple):
            return self.collator(list(items))
        lengths = [_length(features) for _, features in items]  # collators may change features
        batch = self.collator([features for _, features in items])
        batch[IDS] = torch.tensor([i for i, _ in items], dtype=torch.int64)
        tokens = batch.get("input_ids")
        if isinstance(tokens, torch.Tensor) and len(tokens) == 1 < len(items):
            batch[LENGTHS] = lengths
        return batch


def _length(features: Any) -> int:
    tokens = features.get("input_ids", ()) if isinstance(features, Mapping) else ()
    return len(tokens) if hasattr(tokens, "__len__") else 0


def count_tokens(trainer: Any, inputs: Mapping[str, Any]) -> None:
    """Add the tokens of a training batch to the `num_tokens` that TRL's SFTTrainer logs, as its own
    compute_loss does."""
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    if mask is not None:
        tokens = mask.sum()
    elif positions is not None:  # without padding, B sequences in one row
        tokens = torch.tensor(positions.shape[1], device=positions.device)
    else:
        return
    if not all(hasattr(trainer, name) for name in _COUNTS):  # another version of TRL
        return
    total = trainer.accelerator.gather_for_metrics(tokens).sum().item()
    trainer._total_train_tokens += total // trainer._tp_size
    trainer._metrics["train"]["num_tokens"] = [trainer._total_train_tokens]


def with_ids(loader: Any, sampler: Sampler[int], drop_last: bool, times: int) -> DataLoader:
    """The Trainer's training loader, drawing from `sampler` and with ids in its batches.

    The data set and the collator (both without the columns that the Trainer's options remove) and
    the workers are kept; the batch size is multiplied by `times`.
    """
    names = (
        *("num_workers", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context"),
        *("generator", "prefetch_factor", "persistent_workers", "pin_memory_device", "in_order"),
    )
    return DataLoader(
        IndexedDataset(loader.dataset),
        batch_size=times * loader.batch_sampler.batch_size,
        sampler=sampler,
        collate_fn=IdCollator(loader.collate_fn),
        drop_last=drop_last,
        **{name: getattr(loader, name) for name in names},
    )
