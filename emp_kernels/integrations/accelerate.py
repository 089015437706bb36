"""EMP pruning with Hugging Face Accelerate.

    accelerator = Accelerator()
    state = emp.EMPState(len(data))
    sampler = emp.EMPSampler(state, 0.3)
    loader = DataLoader(emp.IndexedDataset(data), batch_size=128, sampler=sampler)
    model, optimizer = accelerator.prepare(model, optimizer)
    loader = prepare(accelerator, loader)

The loop computes ``emp.cross_entropy(model(x), y, state, indices=ids)``; ``accelerator.save_state``
and ``load_state`` also save and restore the scores and the epoch's order.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderAdapter, prepare_data_loader
from torch.utils.data import DataLoader

from .. import distributed
from ..drawing import stream_of
from ..sampler import EMPSampler


def prepare(accelerator: Accelerator, loader: DataLoader) -> _Prepared:
    """Replaces ``accelerator.prepare(loader)`` for a loader with an EMPSampler.

    The sampler gives each process its share (equal numbers of batches of the loader's size) and
    merges the scores at the start of each epoch, whether it was created before or after the
    Accelerator. The state moves to the Accelerator's device. The last batch yielded to the loop
    counts as trained, regardless of prefetching, so ``accelerator.save_state``, which all processes
    call, may come anywhere after a step. After ``accelerator.load_state`` the loader continues
    after that batch, on any number of processes: do not skip batches. ``sampler.epoch`` is then the
    resumed epoch.

    If the loader has no generator, the seeds of its worker processes are derived from the sampler's
    seed and the epoch, and torch's generator is not used.

    Args:
        accelerator: an Accelerator; the only supported parallelism is data parallelism.
        loader: a map-style DataLoader with ``batch_size`` and an :class:`emp_kernels.EMPSampler`.

    Returns:
        a loader like Accelerate's, with ``set_epoch``, ``state_dict`` and ``load_state_dict``.
        Do not pass it to ``accelerator.prepare`` again.

    Raises:
        TypeError: `loader` is no DataLoader.
        ValueError: it was prepared before or has another sampler, or the Accelerator's
            configuration would override the sampler's epochs.
    """
    function = "prepare"
    if not isinstance(loader, DataLoader):
        raise TypeError(f"{function}: loader must be a DataLoader, got {type(loader).__name__}")
    if isinstance(loader, DataLoaderAdapter):
        raise ValueError(
            f"{function}: loader must be a plain DataLoader, got one that Accelerate has prepared"
        )
    sampler = loader.sampler
    if not isinstance(sampler, EMPSampler):
        raise ValueError(
            f"{function}: loader must have an EMPSampler as its sampler, "
            f"got {type(sampler).__name__}"
        )
    if loader.batch_size is None:
        raise ValueError(f"{function}: loader must have a batch_size, got None")
    processes = accelerator.num_processes
    for name, taken in (
        ("split_batches", accelerator.split_batches and processes > 1),
        ("dispatch_batches", accelerator.dispatch_batches),
    ):
        if taken:
            raise ValueError(
                f"{function}: accelerator must leave each process its own batches, got {name}=True"
            )
    layout = accelerator.parallelism_config
    if layout is not None and layout.non_data_parallel_size > 1:
        raise ValueError(
            f"{function}: accelerator must have data parallel processes alone, got {layout}"
        )
    sampler.state.to(accelerator.device)
    _share_out(sampler, processes, accelerator.process_index)
    prepared = _Prepared(accelerator, loader, sampler)
    accelerator.register_for_checkpointing(prepared)
    return prepared


def _share_out(sampler: EMPSampler, processes: int, process: int) -> None:
    """Make `sampler` that of `process` among `processes`, at any position in its epochs."""
    if (sampler.num_replicas, sampler.rank) == (processes, process):
        return
    saved = sampler.state_dict()
    names = list(inspect.signature(EMPSampler).parameters)
    options = {name: getattr(sampler, name) for name in names}
    EMPSampler.__init__(sampler, **(options | {"num_replicas": processes, "rank": process}))
    sampler.load_state_dict(saved)


class _Count:
    """Number of batches that an iterator has yielded to its loop, and whether the loop still
    runs."""

    def __init__(self) -> None:
        self.batches, self.running = 0, True


class _Prepared:
    """Accelerate's loader, with the number of batches yielded in the epoch."""

    def __init__(self, accelerator: Accelerator, loader: DataLoader, sampler: EMPSampler) -> None:
        self.emp_sampler = sampler
        self._ranks, self._rank = accelerator.num_processes, accelerator.process_index
        # The sampler has already sharded the epoch, so Accelerate is told of a single process.
        self._loader = prepare_data_loader(
            loader,
            accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=accelerator.device_placement,
            rng_types=[name for name in accelerator.rng_types if name != "generator"] or None,
            dispatch_batches=False,
            non_blocking=accelerator.non_blocking,
        )
        self._batch_size = loader.batch_size or 1
        self._seeded = loader.generator is None
        if self._seeded:
            self._loader.base_dataloader.generator = torch.Generator()
        self._named = False  # whether set_epoch was called for the coming epoch
        self._count: _Count | None = None  # the running or last iterator's

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # not set yet, as in copy and pickle
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def set_epoch(self, epoch: int) -> None:
        """As :meth:`EMPSampler.set_epoch`."""
        self._loader.set_epoch(epoch)
        self._named = True

    def __iter__(self) -> Iterator[Any]:
        if not self._named:  # Accelerate's own counter ignores resumes and breaks
            self._loader.iteration = self.emp_sampler.epoch
        self._named = False
        if self._seeded:
            stream = stream_of(self.emp_sampler.seed, self.emp_sampler.epoch)
            self._loader.base_dataloader.generator.manual_seed(stream_of(stream, self._rank))
        before, mine = self._count, _Count()
        self._count = mine
        try:
            for batch in self._loader:
                if mine.batches == 0:
                    self._set_remainder()
                mine.batches += 1
                yield batch
        finally:
            over, mine.running = self._loader.end_of_dataloader, False
            if not over and before is not None and before.running:
                self._count = before  # a peek into the loader in mid-loop

    def _set_remainder(self) -> None:
        """Tell ``accelerator.gather_for_metrics`` how many rows of the last step are not
        padding."""
        saved = self.emp_sampler.state_dict(position=0)
        left = len(saved["order"][0]) - saved["start"]
        if self.emp_sampler.drop_last or self._loader.batch_sampler.drop_last:
            return
        share = -(-left // self._ranks)
        last = (share - 1) % self._batch_size + 1
        self._loader.remainder = last * self._ranks - (share * self._ranks - left)

    def state_dict(self) -> dict[str, Any]:
        """The scores, merged over the processes, and the rest of the epoch. Collective."""
        if distributed.initialised():
            distributed.sync(self.emp_sampler.state)
        position = None if self._count is None else self._count.batches * self._batch_size
        return {
            "state": self.emp_sampler.state.state_dict(),
            "sampler": self.emp_sampler.state_dict(position=position),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned, with the next iterator."""
        self.emp_sampler.state.load_state_dict(state_dict["state"])
        self.emp_sampler.load_state_dict(state_dict["sampler"])
        self._count, self._named = None, False
