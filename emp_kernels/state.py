"""The state: each sample's scores and counts, kept over epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from . import backends, diagnostics, growth, ops
from .holding import Whole
from .keep import Keep
from .results import Scores
from .selection import select as select_scores
from .snapshot import check_counters, check_same, check_tensors, check_values, whole_tensors
from .tracing import records
from .validation import (
    check_beta,
    check_ids,
    check_same_device,
    check_size,
    check_snapshot,
    check_strided,
    describe,
)

_VERSION = 2
_PUBLIC = ("score", "loss", "entropy", "updates", "selections", "seen_at", "clock")
# Each tensor of a snapshot and the attribute that it is. `diagnostics` keeps the last three:
# selections when the last window was closed (N,) int32, whether that window drew each sample (N,)
# bool, and (256, 4) float64, the latest last and unused rows -1, what `Diagnostics` reports.
_FIELDS = {name: name for name in _PUBLIC} | {x: f"_{x}" for x in ("counted", "drawn", "windows")}
_COUNTERS = ("epoch", "warned", "synced_at")


class EMPState(Whole):
    """The last scores of each of `num_samples` samples, and how often it was used.

    A sample that was never scored has score +inf, so that it is selected before all others.
    Hard top-k on scores refreshed only when a sample is trained (the *stale* protocol) is the
    intended use.

    Args:
        num_samples: size of the data set.
        beta: weight of the memory term in ``score = loss + beta * entropy``, from -1e29 to 1e29.
        device: the state's device; torch's default device if None.

    Attributes:
        score, loss, entropy: (num_samples,) float32 nats, of the sample's last valid row.
        updates: (num_samples,) int32, the number of calls that wrote the sample.
        selections: (num_samples,) int32, how often the sample was returned by score_and_select
            or drawn by a sampler.
        clock: () int32, the number of calls that wrote into the state.
        seen_at: (num_samples,) int32, the clock at the call that last wrote the sample; 0 = never.
        epoch: int, the number of completed epochs.
        beta: float. num_samples: int.
    """

    score: torch.Tensor
    loss: torch.Tensor
    entropy: torch.Tensor
    updates: torch.Tensor
    selections: torch.Tensor
    seen_at: torch.Tensor
    clock: torch.Tensor
    _counted: torch.Tensor
    _drawn: torch.Tensor
    _windows: torch.Tensor

    def __init__(
        self,
        num_samples: int,
        *,
        beta: float = 1.0,
        device: torch.device | str | int | None = None,
    ) -> None:
        self.num_samples = check_size("EMPState", "num_samples", num_samples)
        self.beta = check_beta("EMPState", beta)
        self.epoch = 0
        size = (self.num_samples,)
        with torch.inference_mode(False):  # inference tensors could not be written outside
            self.score = torch.full(size, torch.inf, dtype=torch.float32, device=device)
            self.loss = torch.zeros(size, dtype=torch.float32, device=device)
            self.entropy = torch.zeros(size, dtype=torch.float32, device=device)
            self.updates = torch.zeros(size, dtype=torch.int32, device=device)
            self.selections = torch.zeros(size, dtype=torch.int32, device=device)
            self.seen_at = torch.zeros(size, dtype=torch.int32, device=device)
            # A tensor, so that a captured CUDA graph advances it.
            self.clock = torch.zeros((), dtype=torch.int32, device=device)
            self._counted = torch.zeros(size, dtype=torch.int32, device=device)
            self._drawn = torch.zeros(size, dtype=torch.bool, device=device)
            windows = (diagnostics.WINDOWS, len(diagnostics.COLUMNS))
            self._windows = torch.full(windows, -1.0, dtype=torch.float64, device=device)
            self._make_claims()
        self.warned = False  # of a collapse, once per state
        self.synced_at = 0  # the clock up to which all ranks' states are equal
        self._buffers: dict[str, torch.Tensor] = {}  # longer tensors of fields that have grown

    @property
    def device(self) -> torch.device:
        return self.score.device

    def _make_claims(self) -> None:
        """Scratch memory in which GPU programs agree on the row that writes a sample."""
        size = self.num_samples if self.device.type == "cuda" else 0
        self.claims = torch.empty(size, dtype=torch.int32, device=self.device)

    def __len__(self) -> int:
        return self.num_samples

    def __repr__(self) -> str:
        return (
            f"EMPState(num_samples={self.num_samples}, beta={self.beta}, epoch={self.epoch}, "
            f"device='{self.device}')"
        )

    def update(self, indices: torch.Tensor, scores: Scores) -> None:
        """Write the valid rows of `scores` at the sample ids `indices`.

        Each written id counts one update per call, however often it occurs in `indices`; a
        duplicate id keeps its last valid row. Invalid and ignored rows write nothing, nor does a
        call within a backward pass (:func:`recomputing`).

        Args:
            indices: (N,) sample ids of any integer dtype, in [0, num_samples); moved to the
                state's device.
            scores: what :func:`emp_kernels.score` returned for these N rows.

        Raises:
            TypeError: a wrong type or dtype.
            ValueError: a wrong shape, an id out of range (on CPU), different devices; raised
                before anything is written.
        """
        function = f"{type(self).__name__}.update"
        if not isinstance(scores, Scores):
            raise TypeError(f"{function}: scores must be Scores, got {type(scores).__name__}")
        check_ids(function, "indices", indices)
        for name, field in zip(Scores._fields, scores, strict=True):
            if not isinstance(field, torch.Tensor) or not field.is_floating_point():
                raise TypeError(f"{function}: scores.{name} must be a floating tensor")
            check_strided(function, f"scores.{name}", field)
            if field.shape != indices.shape:
                raise ValueError(
                    f"{function}: scores.{name} must have the shape {tuple(indices.shape)} of "
                    f"indices, got {tuple(field.shape)}"
                )
            check_same_device(function, f"scores.{name}", field, "the state", self.score)
        if recomputing():
            return
        score, loss, entropy = (field.detach().to(torch.float32) for field in scores[:3])
        scores = Scores(score, loss, entropy, scores.lse)  # no state stores lse
        rows, ids = self.rows_of(function, indices.to(self.device), len(indices))
        recorded = records(function)
        chosen = ops if recorded else backends.resolve("EMPState.update", None, self.score)
        chosen.update_state(rows, ids, scores, function)

    def grow(self, num_samples: int) -> EMPState:
        """Grow to `num_samples` samples, in place, and return the state.

        Existing samples keep their entries; new ones have never been seen.

        Repeated growth in small steps is amortised. The fields are replaced by new tensors; a
        captured CUDA graph would continue to write to the old ones.

        Raises:
            TypeError: `num_samples` is no int.
            ValueError: it is less than the current number of samples.
        """
        growth.grow(self, num_samples)
        self._make_claims()
        self.fields_moved()
        return self

    def select(self, keep: Keep) -> torch.Tensor:
        """Ascending ids of the samples to train on: never-seen ones first, then by score.

        Pure: nothing is counted. `keep` is that of :func:`emp_kernels.select`.
        """
        return select_scores(self.score, keep)

    def age(self) -> torch.Tensor:
        """Number of calls since each sample's scores were written: (num_samples,) int32, -1 =
        never.

        A call is one of `update`, `score_and_select` or `cross_entropy` that wrote into this state.
        """
        return (self.clock - self.seen_at).masked_fill(self.seen_at == 0, -1)

    def close_window(self) -> None:
        """Record which samples were selected since the last call, for :meth:`diagnostics`.

        :class:`emp_kernels.EMPSampler` calls it at the start of each epoch. Nothing happens if
        nothing was selected.
        """
        diagnostics.close_window(self)

    def diagnostics(self) -> diagnostics.Diagnostics:
        """How stale the scores are and how selections follow one another; meant for once per epoch.

        Closes the window, reads the state back to the host, and warns, once per state, if hard
        selection is collapsing.

        Returns:
            :class:`emp_kernels.Diagnostics`.
        """
        return diagnostics.diagnose(self)

    def to(self, device: torch.device | str | int) -> EMPState:
        """Move the state to `device`, in place, and return it.

        Raises:
            TypeError: `device` is no device; a state's dtypes are fixed.
        """
        if isinstance(device, bool) or not isinstance(device, torch.device | str | int):
            raise TypeError(
                "EMPState.to: device must be a torch.device, str or int (a state's dtypes are "
                f"fixed), got {device if isinstance(device, torch.dtype) else describe(device)}"
            )
        with torch.inference_mode(False):
            moved = {name: getattr(self, name).to(device) for name in _FIELDS.values()}
            vars(self).update(moved | {"_buffers": {}})
            self._make_claims()
        self.fields_moved()
        return self

    def state_dict(self) -> dict[str, Any]:
        """A snapshot (copies) of everything that :meth:`load_state_dict` restores. Warns if several
        ranks' states were written since :func:`emp_kernels.distributed.sync`."""
        self.check_synced()
        snapshot: dict[str, Any] = {
            name: getattr(self, field).clone() for name, field in _FIELDS.items()
        }
        snapshot |= {"num_samples": self.num_samples, "beta": self.beta}
        snapshot |= {name: getattr(self, name) for name in _COUNTERS}
        return snapshot | {"version": _VERSION}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore a snapshot, bit for bit, from any device onto this state's device.

        Raises:
            TypeError: `state_dict` is no mapping; an entry is of another type or dtype, or a
                tensor is sparse or not in memory.
            ValueError: it lacks an entry, is of another version, size or beta, or holds invalid
                values (a NaN score, a loss that is not finite, a negative count, a sample seen
                after the clock). Nothing has been written when an error is raised.
        """
        self._load("EMPState.load_state_dict", whole_tensors(state_dict))

    def _load(self, function: str, state_dict: Mapping[str, Any]) -> None:
        entries = (*_FIELDS, "num_samples", "beta", *_COUNTERS)
        check_snapshot(function, state_dict, _VERSION, entries)
        check_same(function, "num_samples", state_dict["num_samples"], self.num_samples)
        check_same(function, "beta", state_dict["beta"], self.beta)
        own = {name: getattr(self, field) for name, field in _FIELDS.items()}
        loaded = check_tensors(function, state_dict, own)
        counters = check_counters(function, state_dict)
        memory = {tensor.untyped_storage().data_ptr() for tensor in own.values()}
        check_values(function, loaded, counters["synced_at"])
        for name, tensor in loaded.items():  # all are copied here before the first is written
            here = tensor.to(self.device)
            loaded[name] = here.clone() if here.untyped_storage().data_ptr() in memory else here
        for name, tensor in loaded.items():
            own[name].copy_(tensor)
        vars(self).update(counters)

    def __setstate__(self, entries: dict[str, Any]) -> None:
        """For pickle, ``copy`` and ``torch.load``. The file may be untrusted, so types, dtypes and
        shapes are checked; memory shared between processes stays shared."""
        function = "EMPState.__setstate__"
        fields = tuple(_FIELDS.values())
        missing = [x for x in (*fields, "num_samples", "beta", *_COUNTERS) if x not in entries]
        if missing:
            raise ValueError(f"{function}: entries must hold {', '.join(missing)}, got none")
        like = EMPState(entries["num_samples"], beta=entries["beta"], device="meta")
        tensors = check_tensors(function, entries, {name: getattr(like, name) for name in fields})
        for name, tensor in tensors.items():
            check_same_device(function, name, tensor, "score", tensors["score"])
        with torch.inference_mode(False):
            for name, tensor in tensors.items():
                if tensor.is_inference() or not tensor.is_contiguous() or tensor.is_neg():
                    tensors[name] = tensor.clone(memory_format=torch.contiguous_format)
        # Without spare capacity: a copy would grow into the same memory.
        own = tensors | check_counters(function, entries) | {"_buffers": {}}
        vars(self).update(entries | own)


# Allows torch.load to read pickled states with its default weights_only=True.
torch.serialization.add_safe_globals([EMPState])


def recomputing() -> bool:
    """Whether a backward pass runs in this thread. The package is then called by the recomputation
    of activation checkpointing (``torch.utils.checkpoint``, reentrant or not), whose rows were
    written into the state before and must not be written again."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
