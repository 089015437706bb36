"""Launching the scores of a product: its tiling and output memory."""

import functools
from typing import NamedTuple

import torch

from .launching import OPTIONS, on_device
from .linear import finish_scores, score_tiles
from .plan import VECTOR_BYTES


class LinearPlan(NamedTuple):
    """Tiles of `rows` x `columns` with `depth` of the inner dimension at a time, pipelined in
    `stages`; `parts` programs share the classes of a row. All of it decides how a row is added up,
    so the number of rows is not asked for."""

    rows: int
    columns: int
    depth: int
    stages: int
    parts: int
    warps: int


@functools.lru_cache(maxsize=4096)
def plan_linear(classes: int, itemsize: int, vector: int) -> LinearPlan:
    """The tiles for logits of so many classes."""
    # Exact float32 products do not use tensor cores, and narrow loads need a register each, so
    # tiles are small enough for the registers.
    rows, columns, depth, stages, warps = 128, 128, 64, 3, 8
    if itemsize == 4 or vector * itemsize < 8:
        rows, columns, depth, warps = 64, 64, 32, 4
    parts = 1
    while parts < 256 and 4 * parts <= -(-classes // columns):
        parts *= 2
    return LinearPlan(rows, columns, depth, stages, parts, warps)


def _vector(depth: int, *matrices: torch.Tensor) -> int:
    """How many elements of a row can be read at a time: a power of two, up to 16 bytes."""
    size = matrices[0].element_size()
    vector = VECTOR_BYTES // size
    places = [depth, *(x.data_ptr() // size for x in matrices), *(x.stride(0) for x in matrices)]
    while any(place % vector for place in places):
        vector //= 2
    return vector


def score_linear(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    beta: float,
    ignore_index: int | None,
) -> torch.Tensor:
    """score, loss, entropy and lse (4, N) of hidden (N, D) @ weight (C, D)ᵀ + bias (C,), both of
    unit inner stride, N > 0."""
    (n, depth), classes, device = hidden.shape, weight.shape[0], hidden.device
    if labels.dtype == torch.uint64 and ignore_index is not None and ignore_index < 0:
        ignore_index = None  # labels from 2^63 on would wrap around to it
    labels = labels.reshape(-1).contiguous()
    order = counted = None
    if ignore_index is not None:  # rows that count come first; their number stays on the device
        ignored = (labels.to(torch.int64) == ignore_index).to(torch.uint8)
        order, counted = ignored.argsort(stable=True), n - ignored.sum(dtype=torch.int64)
    exact = hidden.element_size() == 4
    vector = _vector(depth, hidden, weight)
    plan = plan_linear(classes, hidden.element_size(), vector)
    parts = torch.empty((plan.parts, 4, n), dtype=torch.float32, device=device)
    values = torch.empty((4, n), dtype=torch.float32, device=device)
    options = {"num_warps": plan.warps, **OPTIONS}
    with on_device(device):
        score_tiles[(-(-n // plan.rows) * plan.parts,)](
            hidden, weight, bias, labels, order, counted, parts, n, depth // vector, classes,
            hidden.stride(0), weight.stride(0), ignore_index or 0, V=vector,
            IGNORE=ignore_index is not None, HAS_BIAS=bias is not None,
            EVEN=depth % plan.depth == 0, PRECISION="ieee" if exact else "tf32",
            WIDEN=device.type == "cpu", COMPENSATED=exact,
            ROWS=plan.rows, COLUMNS=plan.columns, DEPTH=plan.depth, STAGES=plan.stages,
            PARTS=plan.parts, **options,
        )  # fmt: skip
        rows = max(1, 1024 // plan.parts)
        finish_scores[(-(-n // rows),)](
            parts, labels, values, n, classes, beta, ignore_index or 0,
            IGNORE=ignore_index is not None, ROWS=rows, PARTS=plan.parts, **OPTIONS,
        )  # fmt: skip
    return values
