"""Launching the kernels: what they get, and in what memory they answer."""

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch

from . import remember as remembering
from . import rows as whole_rows
from . import select_large as large
from . import select_small as small
from . import stream
from .gradient import gradient_rows
from .launching import Kernel
from .plan import (
    BLOCK_OF_A_WARP,
    CHUNK,
    FEW,
    FUSED,
    PLAN_SIZE,
    WORK_SIZE,
    Plan,
    layout_of,
    parts_of,
    plan_of,
    power_of_two,
    sample_of,
    tile_of,
)

score_rows, score_stream = Kernel(whole_rows.score_rows), Kernel(stream.score_stream)
finish_rows, select_few = Kernel(small.finish_rows), Kernel(small.select_few)
remember_rows = Kernel(remembering.remember_rows)
bracket, split, narrow = Kernel(large.bracket), Kernel(large.split), Kernel(large.narrow)
count, compact = Kernel(large.count), Kernel(large.compact)

STATE_FIELDS = ("score", "loss", "entropy", "updates", "selections", "seen_at", "clock", "claims")
OPTIONS = {"enable_fp_fusion": False}  # where a product and a sum round once, the kernels say so


@functools.cache
def processors(device: torch.device) -> int:
    """Multiprocessors of the device; the interpreter is one."""
    if device.type == "cpu":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _on(device: torch.device) -> AbstractContextManager:
    """Kernels run on the current device: make it the tensors'."""
    if device.type == "cpu" or device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(device)


class Rows(NamedTuple):
    """Logits as `count` rows of unit inner stride, in groups of `per_group` equally spaced."""

    logits: torch.Tensor
    count: int
    classes: int
    per_group: int
    group_stride: int
    row_stride: int

    @property
    def grouped(self) -> bool:
        """Whether there is more than one group; their distance may be 0."""
        return self.per_group != self.count


def rows_of(logits: torch.Tensor) -> Rows:
    """Rows of logits (..., C); copied only where the inner stride is not 1 or the leading
    dimensions do not collapse to two."""
    logits, classes = logits.detach(), logits.shape[-1]
    if logits.dim() > 3:
        try:
            logits = logits.view(-1, *logits.shape[-2:])
        except RuntimeError:
            logits = logits.flatten(0, -2)
    if classes > 1 and logits.stride(-1) != 1:
        logits = logits.contiguous()
    *groups, per_group, _ = logits.shape
    *group_strides, row_stride, _ = logits.stride()
    count = per_group * groups[0] if groups else per_group
    group_stride = group_strides[0] if groups else 0
    if not groups or groups[0] == 1 or group_stride == per_group * row_stride:
        per_group, group_stride = count, 0
    return Rows(logits, count, classes, per_group, group_stride, row_stride)


class Scored(NamedTuple):
    """What a scoring launch leaves: values (4 or 6, N), correct and prediction (N,) of statistics,
    work memory, and indices and threshold where the launch selected."""

    values: torch.Tensor
    correct: torch.Tensor | None
    prediction: torch.Tensor | None
    work: torch.Tensor
    indices: torch.Tensor | None
    threshold: torch.Tensor | None


def score(
    rows: Rows,
    labels: torch.Tensor,
    beta: float,
    ignore_index: int | None,
    *,
    statistics: bool = False,
    sums: bool = False,
    keep: int | None = None,
    state: Any = None,
    ids: torch.Tensor | None = None,
    plan: Plan | None = None,
) -> Scored:
    """Scores N > 0 rows in one launch.

    Args:
        labels: N of them, of any integer dtype.
        statistics: for all the statistics instead of score, loss, entropy and lse.
        sums: for m, u, t and z_y instead, without selecting.
        keep: how many the launch's last program selects, after it wrote the state, of at most
            FUSED rows; None leaves both to later launches.
        state, ids: an id out of range makes its row invalid.
        plan: None for the one of `plan_of`.

    Both scoring kernels take, after pointers: the rows' layout, `vectors` of V elements a row (of
    SPREAD rows, as many as it takes to cover it) and `keep`.
    """
    logits, n, classes = rows.logits, rows.count, rows.classes
    device, itemsize = logits.device, logits.element_size()
    if labels.dtype == torch.uint64 and ignore_index is not None and ignore_index < 0:
        ignore_index = None  # labels from 2^63 on would wrap to it
    vector, spread = layout_of(
        logits.data_ptr(), rows.group_stride, rows.row_stride, classes, itemsize
    )
    if plan is None:
        plan = plan_of(classes, itemsize, vector, statistics)
    programs = parts_of(plan, n, processors(device))  # a row
    finish = keep is not None
    values = torch.empty((6 if statistics else 4, n), dtype=torch.float32, device=device)
    correct = torch.empty(n, dtype=torch.bool, device=device) if statistics else None
    prediction = torch.empty(n, dtype=torch.int64, device=device) if statistics else None
    tickets = n if programs > 1 else 0
    work = torch.zeros(WORK_SIZE + tickets, dtype=torch.int32, device=device)
    indices, threshold = selection(keep, device) if keep is not None else (None, None)
    select = tile_of(n).rows if finish else 0
    pointers = _state_fields(state if finish else None)
    cut = {"TILES": plan.tiles, "COMPENSATED": plan.compensated}
    if plan.stream:
        kernel, grid, parts = score_stream, n * programs, None
        lanes = plan.width // vector
        cut |= {"PIECES": plan.pieces, "PARTS": programs, "LANES": lanes}
        cut |= {"TAIL": max(1, plan.tiles // 2)}
        if programs > 1:
            size = n * programs * lanes * stream.values_of_a_lane(vector, statistics)
            parts = torch.empty(size, dtype=torch.float32, device=device)
        pointers.append(parts)
    else:
        kernel, grid = score_rows, -(-n // plan.rows)
        cut |= {"ROWS": plan.rows, "WIDTH": plan.width}
    with _on(device):
        kernel[(grid,)](
            logits, labels.reshape(-1).contiguous(), ids, values, correct, prediction, work,
            indices, threshold, *pointers, n, rows.per_group, rows.group_stride, rows.row_stride,
            -(-classes // vector), classes, float(beta), ignore_index or 0,
            0 if state is None else state.num_samples, keep or 0,
            V=vector, SPREAD=spread, GROUPED=rows.grouped,
            IGNORE=ignore_index is not None, STATISTICS=statistics, SUMS=sums,
            HAS_IDS=ids is not None, HAS_STATE=finish and state is not None,
            SELECT=select, BLOCK=min(select, BLOCK_OF_A_WARP * plan.warps), **cut,
            num_warps=plan.warps, **OPTIONS,
        )  # fmt: skip
    return Scored(values, correct, prediction, work, indices, threshold)


def gradient(
    rows: Rows, labels: torch.Tensor, loss: torch.Tensor, lse: torch.Tensor, scales: torch.Tensor,
    maximum: torch.Tensor | None = None,
) -> torch.Tensor:  # fmt: skip
    """The cross-entropy's gradient (N, C) of N * C > 0 logits, in their dtype; with the `maximum`
    of rows that have columns elsewhere, `lse` stands above it."""
    logits, n, classes = rows.logits, rows.count, rows.classes
    out = torch.empty((n, classes), dtype=logits.dtype, device=logits.device)
    vector, spread = layout_of(
        logits.data_ptr(), rows.group_stride, rows.row_stride, classes, logits.element_size()
    )
    vector = 1 if spread else vector
    width = min(4096, max(vector, power_of_two(classes)))
    several = max(1, 4096 // width)
    with _on(logits.device):
        gradient_rows[(-(-n // several), -(-classes // width))](
            logits, labels.reshape(-1).contiguous(), loss.contiguous(), lse.contiguous(),
            None if maximum is None else maximum.contiguous(),
            scales.to(torch.float32).contiguous(), out, n, rows.per_group, rows.group_stride,
            rows.row_stride, classes // vector, classes, V=vector,
            GROUPED=rows.grouped, SHARD=maximum is not None, ROWS=several, WIDTH=width,
            num_warps=8, **OPTIONS,
        )  # fmt: skip
    return out


def selection(count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Uninitialised indices (count,) and threshold ()."""
    return (
        torch.empty(count, dtype=torch.int64, device=device),
        torch.empty((), dtype=torch.float32, device=device),
    )


def _state_fields(state: Any) -> list[torch.Tensor | None]:
    if state is not None and len(state.claims) < state.num_samples:  # a CPU's state, interpreted
        state.claims = torch.empty_like(state.seen_at)
    return [getattr(state, name, None) for name in STATE_FIELDS]


def fused(n: int) -> bool:
    """Whether the last program of a scoring launch on n rows has room to select among them."""
    return n <= FUSED


def finish_few(
    values: torch.Tensor, keep: int, ids: torch.Tensor | None, state: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Writes the state and selects `keep` of values (4, N), N <= FEW."""
    n, device = values.shape[1], values.device
    indices, threshold = selection(keep, device)
    tile = tile_of(n)
    with _on(device):
        finish_rows[(1,)](
            values, ids, indices, threshold, *_state_fields(state),
            0 if state is None else state.num_samples, n, keep,
            HAS_IDS=ids is not None, HAS_STATE=state is not None,
            TILE=tile.rows, BLOCK=tile.block, num_warps=tile.warps, **OPTIONS,
        )  # fmt: skip
    return indices, threshold


def select(scores: torch.Tensor, keep: int) -> torch.Tensor:
    """Positions of the `keep` highest of scores (N,), N > 0."""
    if scores.shape[0] > FEW:
        return select_many(scores, keep, None, None, None)[0]
    n = scores.shape[0]
    tile = tile_of(n)
    indices = torch.empty(keep, dtype=torch.int64, device=scores.device)
    with _on(scores.device):
        select_few[(1,)](
            scores, indices, keep, n,
            TILE=tile.rows, BLOCK=tile.block, num_warps=tile.warps, **OPTIONS,
        )  # fmt: skip
    return indices


def select_many(
    scores: torch.Tensor,
    keep: int,
    work: torch.Tensor | None,
    ids: torch.Tensor | None,
    state: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Selects `keep` of scores (N,): of the valid ones, where a scoring launch's `work` counts the
    invalid ones, or of all where it is None, and then there is no threshold."""
    n, device, valid = scores.shape[0], scores.device, work is not None
    chunks = -(-n // CHUNK)
    programs = min(chunks, 4 * processors(device))
    sample = sample_of(n)
    variant = {"VALID_ONLY": valid, "SLOT": sample.slot, **OPTIONS}
    plan = torch.zeros(PLAN_SIZE, dtype=torch.int64, device=device)
    slots = torch.empty(chunks * sample.slot, dtype=torch.uint32, device=device)
    above, inside = torch.empty((2, chunks), dtype=torch.int32, device=device).unbind()
    taken, ties = torch.empty((2, chunks), dtype=torch.int64, device=device).unbind()
    indices, threshold = selection(keep, device)
    with _on(device):
        bracket[(1,)](
            scores, plan, work, keep, n,
            VALID_ONLY=valid, SAMPLE=sample.draws, num_warps=sample.warps, **OPTIONS,
        )  # fmt: skip
        split[(programs,)](scores, slots, above, inside, plan, n, chunks, num_warps=16, **variant)
        for step in range(4):  # 8 bits each
            narrow[(programs,)](
                scores, slots, inside, plan, n, chunks, step, num_warps=8, **variant
            )
        count[(programs,)](
            scores, slots, above, inside, taken, ties, plan, threshold, n, chunks,
            TILE=1024, num_warps=8, **variant,
        )  # fmt: skip
        compact[(chunks,)](
            scores, taken, ties, plan, indices, ids, getattr(state, "selections", None),
            0 if state is None else state.num_samples, n, keep,
            VALID_ONLY=valid, HAS_IDS=ids is not None, HAS_STATE=state is not None,
            num_warps=16, **OPTIONS,
        )  # fmt: skip
    return indices, threshold


def remember(state: Any, ids: torch.Tensor | None, scores: Sequence[torch.Tensor]) -> None:
    """Writes the valid rows of score, loss and entropy (N,); the clock advances if any is."""
    n = scores[0].shape[0]
    if n == 0 or state.num_samples == 0:
        return
    score, loss, entropy, updates, _, seen_at, clock, claims = _state_fields(state)
    before = state.clock.clone()
    with _on(scores[0].device):
        for step in range(3) if ids is not None else (2,):  # clear, claim, write
            remember_rows[(-(-n // 1024),)](
                *scores[:3], ids, score, loss, entropy, updates, seen_at, clock, claims, before,
                n, state.num_samples,
                STEP=step, HAS_IDS=ids is not None, TILE=1024, **OPTIONS,
            )  # fmt: skip
