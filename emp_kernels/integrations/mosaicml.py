"""EMP pruning for MosaicML's StreamingDataset: shards without kept samples are not fetched."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import numpy as np
import torch
from streaming import StreamingDataset

import emp_kernels as emp

UNITS = ("sample", "shard")
_MASK = "emp_mask"  # the mask's key in a checkpoint of the data set


class PrunedStreamingDataset(StreamingDataset):
    """A StreamingDataset of ``(id, sample)`` that reads only what a mask keeps.

    Its arguments are StreamingDataset's. A sample's id is its position in the data set, from 0 to
    ``num_samples - 1``. Set the mask with :meth:`prune` before making a loader, and call
    ``mask.set_epoch(epoch)`` before each epoch; persistent workers follow. StreamingDataset orders
    and shards the kept samples as usual, repeating a few if their number is not divisible by its
    canonical nodes and ranks.

    ``state_dict`` and ``load_state_dict``, which StreamingDataLoader calls, include the mask: a
    resumed epoch continues with the samples that it began with. Save the EMPState as well.

    It overrides the library's public ``resample_streams`` and ``get_item``, sets ``epoch_size`` and
    reads ``_parallel_rank_world``, the number of ranks.
    """

    mask: emp.EpochMask | None = None
    unit = "sample"

    def prune(self, mask: emp.EpochMask, unit: str = "sample") -> None:
        """Read what `mask` keeps, from the next epoch on.

        Args:
            mask: over the samples or, with the unit "shard", over the shards, each of which is read
                whole or not at all.
            unit: "sample" or "shard".

        Raises:
            TypeError: `mask` is no EpochMask.
            ValueError: its state has another number of samples, or of shards, than the data set;
                an unknown unit; a batching method other than "random", or weighted streams, which
                choose samples themselves.
        """
        function = "PrunedStreamingDataset.prune"
        if not isinstance(mask, emp.EpochMask) or mask.state is None:
            raise TypeError(
                f"{function}: mask must be an EpochMask of this process, got {type(mask).__name__}"
            )
        if unit not in UNITS:
            raise ValueError(f"{function}: unit must be {' or '.join(UNITS)}, got {unit!r}")
        units = self.num_samples if unit == "sample" else self.num_shards
        if mask.state.num_samples != units:
            raise ValueError(
                f"{function}: mask must have a state of the {units} {unit}s, got one of "
                f"{mask.state.num_samples}"
            )
        if self.batching_method != "random":
            raise ValueError(
                f"{function}: batching_method must be 'random', got {self.batching_method!r}"
            )
        if self.mask is None and self.epoch_size != self.num_samples:
            raise ValueError(
                f"{function}: an epoch must have all {self.num_samples} samples (no epoch_size, "
                f"proportion, repeat or choose), got {self.epoch_size}"
            )
        self.mask, self.unit = mask, unit

    def kept(self) -> torch.Tensor:
        """The ids (K,) int64 that the epoch reads, ascending."""
        if self.mask is None or self.mask.epoch is None:
            return torch.arange(self.num_samples)
        ids = self.mask.ids()
        return ids if self.unit == "sample" else torch.arange(self.num_samples)[self._in(ids)]

    def _in(self, shards: torch.Tensor) -> torch.Tensor:
        """Mask (num_samples,) bool of the samples in the shards (K,)."""
        chosen = torch.zeros(self.num_shards, dtype=torch.bool)
        chosen[shards] = True
        return chosen.repeat_interleave(torch.from_numpy(self.samples_per_shard))

    def shard_scores(self, state: emp.EMPState) -> emp.Scores:
        """Mean scores of the shards (num_shards,) over their seen samples, from a state of all
        samples; a shard without any is NaN, which a state ignores.

        For the unit "shard", before each ``mask.set_epoch``:
        ``shards.update(torch.arange(len(shards)), dataset.shard_scores(state))``.
        """
        shard = torch.arange(self.num_shards).repeat_interleave(
            torch.from_numpy(self.samples_per_shard)
        )
        seen = (state.updates > 0).cpu()
        shard, number = shard[seen], torch.bincount(shard[seen], minlength=self.num_shards)
        fields = [
            torch.bincount(shard, field.cpu()[seen].double(), self.num_shards).div(number).float()
            for field in (state.score, state.loss, state.entropy)
        ]
        score, loss, entropy = fields
        return emp.Scores(score, loss, entropy, torch.zeros(self.num_shards))

    def __len__(self) -> int:
        """How many samples this rank reads in the epoch."""
        if self.mask is None:
            return super().__len__()
        return ceil(len(self.kept()) / self._parallel_rank_world.num_ranks)

    def resample_streams(
        self, epoch: int, stream_id: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The kept samples: how many per shard, and which. StreamingDataset calls it in a worker at
        the start of an epoch, before it reads ``epoch_size``."""
        if self.mask is None:
            return super().resample_streams(epoch, stream_id)
        ids = self.kept().numpy()
        shards = np.searchsorted(self.sample_offset_per_shard, ids, side="right") - 1
        self.epoch_size = len(ids)
        return np.bincount(shards, minlength=self.num_shards).astype(np.int64), ids

    def get_item(self, sample_id: int, retry: int = 7) -> tuple[int, Any]:
        return int(sample_id), super().get_item(sample_id, retry)

    def state_dict(self, num_samples: int, from_beginning: bool) -> dict[str, Any]:
        saved = super().state_dict(num_samples, from_beginning)
        return saved if self.mask is None else saved | {_MASK: self.mask.state_dict()}

    def load_state_dict(self, obj: Mapping[str, Any]) -> None:
        """Continue from a checkpoint; call it after :meth:`prune`.

        Raises:
            ValueError: it has a mask and the data set has none, or vice versa.
        """
        function = "PrunedStreamingDataset.load_state_dict"
        if (self.mask is None) != (obj.get(_MASK) is None):
            saved, own = (
                "no mask" if mask is None else "one" for mask in (obj.get(_MASK), self.mask)
            )
            raise ValueError(
                f"{function}: obj must have a mask where prune() gave the data set one, got "
                f"{saved} for a data set with {own}"
            )
        if self.mask is not None:
            self.mask.load_state_dict(obj[_MASK])
        super().load_state_dict({name: obj[name] for name in obj if name != _MASK})
