"""Launching the kernels: their arguments and output memory."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from . import remember as remembering
from . import rows as whole_rows
from . import select_large as large
from . import select_small as small
from . import stream
from .launching import OPTIONS, Kernel, Known, on_device, processors, stream_of
from .layout import Rows, rows_of
from .memory import Outcome, addresses, counts, outcome
from .plan import (
    BLOCK_OF_A_WARP,
    CHUNK,
    FEW,
    FUSED,
    PLAN_SIZE,
    VECTOR_BYTES,
    WORK_SIZE,
    Plan,
    layout_of,
    parts_of,
    plan_of,
    sample_of,
    tile_of,
)

score_rows, score_stream = Kernel(whole_rows.score_rows), Kernel(stream.score_stream)
finish_rows, select_few = Kernel(small.finish_rows), Kernel(small.select_few)
remember_rows = Kernel(remembering.remember_rows)
bracket, split, narrow = Kernel(large.bracket), Kernel(large.split), Kernel(large.narrow)
count, compact = Kernel(large.count), Kernel(large.compact)

STATE_FIELDS = ("score", "loss", "entropy", "updates", "selections", "seen_at", "clock", "claims")


class Scored(NamedTuple):
    """What a scoring launch leaves: values (4 or 6, N), correct and prediction (N,) of statistics,
    work memory that counts, or where it selected the outcome and how to launch it again."""

    values: torch.Tensor | None
    correct: torch.Tensor | None = None
    prediction: torch.Tensor | None = None
    work: torch.Tensor | None = None
    outcome: Outcome | None = None
    known: Known | None = None


def score(
    rows: Rows,
    labels: torch.Tensor,
    beta: float,
    ignore_index: int | None,
    *,
    statistics: bool = False,
    sums: bool = False,
    count: bool = False,
    keep: int | None = None,
    state: Any = None,
    ids: torch.Tensor | None = None,
    plan: Plan | None = None,
) -> Scored:
    """Scores N > 0 rows in one launch.

    Args:
        labels: N of them, of any integer dtype.
        statistics: compute all statistics instead of score, loss, entropy and lse.
        sums: compute m, u, t and z_y instead, without selecting.
        count: whether later launches need `work` to count rows that nobody selects.
        keep: how many of at most FUSED rows the launch's last program selects after writing the
            state; None leaves both to later launches.
        state, ids: an id out of range makes its row invalid.
        plan: by default that of `plan_of`.

    Both scoring kernels take, after pointers: the rows' layout, `vectors` of V elements a row (of
    SPREAD rows, as many as it takes to cover it) and `keep`.
    """
    logits, n, classes = rows.logits, rows.count, rows.classes
    device, itemsize = logits.device, logits.element_size()
    if labels.dtype == torch.uint64 and ignore_index is not None and ignore_index < 0:
        ignore_index = None  # labels from 2^63 on would wrap around to it
    vector, spread = layout_of(
        logits.data_ptr(), rows.group_stride, rows.row_stride, classes, itemsize
    )
    if plan is None:
        plan = plan_of(classes, itemsize, vector, statistics)
    programs = parts_of(plan, n, processors(device))  # a row
    needed = WORK_SIZE + (n if programs > 1 else 0)
    finish = keep is not None
    values = correct = prediction = work = found = None
    if statistics:
        correct = torch.empty(n, dtype=torch.bool, device=device)
        prediction = torch.empty(n, dtype=torch.int64, device=device)
    if keep is not None:
        found = outcome(n, keep, device)
    else:
        values = torch.empty((6 if statistics else 4, n), dtype=torch.float32, device=device)
    if count:
        work = torch.zeros(needed, dtype=torch.int32, device=device)
    elif finish or programs > 1:
        work = counts(needed, device)
    results = (None, None, None) if found is None else found[1:4]
    select = tile_of(n).rows if finish else 0
    pointers = _state_fields(state if finish else None)
    cut = {"TILES": plan.tiles, "COMPENSATED": plan.compensated}
    size = 0
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
    shape = (n, rows.per_group, rows.group_stride, rows.row_stride, -(-classes // vector), classes)
    with on_device(device):
        again = kernel[(grid,)](
            logits, labels.reshape(-1).contiguous(), ids, values if found is None else found[0][0],
            correct, prediction, work, *results, *pointers, *shape, float(beta), ignore_index or 0,
            0 if state is None else state.num_samples, keep or 0,
            V=vector, SPREAD=spread, GROUPED=rows.grouped,
            IGNORE=ignore_index is not None, STATISTICS=statistics, SUMS=sums,
            COUNT=count or finish, HAS_IDS=ids is not None, HAS_STATE=finish and state is not None,
            SELECT=select, BLOCK=min(select, BLOCK_OF_A_WARP * plan.warps), **cut,
            num_warps=plan.warps, **OPTIONS,
        )  # fmt: skip
    known = None if again is None else Known(again, grid, shape, needed, plan.stream, size)
    return Scored(values, correct, prediction, work, found, known)


_known: dict[Any, Known] = {}


def score_and_select(
    logits: torch.Tensor, labels: torch.Tensor, beta: float, keep: int, state: Any,
    ids: torch.Tensor | None,
) -> Outcome:  # fmt: skip
    """Scores logits (N, C), 0 < N <= FUSED, writes the state and selects, in one launch.

    The host's time is most of what it takes. So what a call finds out is kept for the next one of
    the same shape, dtypes and alignment, and that one hands over addresses.
    """
    n, classes = logits.shape
    row_stride, column_stride = logits.stride()
    device, address = logits.device, logits.data_ptr()
    samples = 0 if state is None else state.num_samples
    key = (
        device, logits.dtype, n, classes, row_stride, column_stride, address % VECTOR_BYTES,
        labels.dtype, None if ids is None else ids.dtype, state is None, samples >> 31, keep,
    )  # fmt: skip
    known = _known.get(key)
    if known is None:
        scored = score(rows_of(logits), labels, beta, None, keep=keep, state=state, ids=ids)
        if scored.known is not None and (column_stride == 1 or classes == 1):
            if len(_known) >= 4096:
                _known.clear()
            _known[key] = scored.known
        assert scored.outcome is not None
        return scored.outcome
    found = outcome(n, keep, device)
    labels = labels.contiguous()
    work = counts(known.counts, device)
    pointers = [None if x is None else x.data_ptr() for x in _state_fields(state)]
    if known.stream:
        parts = torch.empty(known.parts, dtype=torch.float32, device=device)
        pointers.append(parts.data_ptr())
    values, *results = addresses(found, n, keep)
    with on_device(device):
        known.again(
            known.grid, stream_of(device),
            (
                address, labels.data_ptr(), None if ids is None else ids.data_ptr(), values, None,
                None, work.data_ptr(), *results, *pointers, *known.shape, beta, 0, samples, keep,
            ),
        )  # fmt: skip
    return found


def selection(count: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Uninitialised indices (count,) and threshold ()."""
    return (
        torch.empty(count, dtype=torch.int64, device=device),
        torch.empty((), dtype=torch.float32, device=device),
    )


def _state_fields(state: Any) -> list[torch.Tensor | None]:
    if (
        state is not None and state.claims.shape[0] < state.num_samples
    ):  # a CPU state, under the interpreter
        state.claims = torch.empty_like(state.seen_at)
    return [getattr(state, name, None) for name in STATE_FIELDS]


def fused(n: int) -> bool:
    """Whether the last program of a scoring launch on n rows can select among them."""
    return n <= FUSED


def finish_few(
    values: torch.Tensor, keep: int, ids: torch.Tensor | None, state: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write the state and select `keep` of values (4, N), N <= FEW."""
    n, device = values.shape[1], values.device
    indices, threshold = selection(keep, device)
    tile = tile_of(n)
    with on_device(device):
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
    with on_device(scores.device):
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
    """Select `keep` of scores (N,): among the valid ones, if a scoring launch's `work` holds the
    number of invalid ones, or among all if it is None, without a threshold."""
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
    with on_device(device):
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
    """Write the valid rows of score, loss and entropy (N,); the clock advances if there are any."""
    n = scores[0].shape[0]
    if n == 0 or state.num_samples == 0:
        return
    score, loss, entropy, updates, _, seen_at, clock, claims = _state_fields(state)
    before = state.clock.clone()
    with on_device(scores[0].device):
        for step in range(3) if ids is not None else (2,):  # clear, claim, write
            remember_rows[(-(-n // 1024),)](
                *scores[:3], ids, score, loss, entropy, updates, seen_at, clock, claims, before,
                n, state.num_samples,
                STEP=step, HAS_IDS=ids is not None, TILE=1024, **OPTIONS,
            )  # fmt: skip
