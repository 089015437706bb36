"""Scoring of logits whose columns are shared out among ranks: sums here, merged everywhere."""

from __future__ import annotations

import math
import sys
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from .. import backends
from ..results import Scores
from ..validation import (
    as_int64,
    check_beta,
    check_ignore_index,
    check_label_range,
    check_labels,
    check_logits,
    check_size,
)
from .group import check_group, gather_equal, per_rank

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def score_vocab_parallel(
    local_logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    vocab_start: int | None = None,
    group: dist.ProcessGroup | None = None,
    beta: float = 1.0,
    ignore_index: int | None = None,
    check: bool = False,
) -> Scores:
    """:func:`emp_kernels.score` of logits (..., C) of which each rank holds some columns.

    Each rank reads its columns once, for their maximum m and, with one maximal element left out,
    u = sum exp(z_j - m) and t = sum exp(z_j - m) (z_j - m). These, with z_y from the rank that
    holds it, are the one collective: 16 bytes a row and rank. Then every rank merges them in the
    order of the ranks, so that all of them, being alike, return the same bits in every run; one
    global maximal element stays out, so that losses keep their accuracy near zero.

    Args:
        local_logits: (..., C_local) float32, float16 or bfloat16 (float64: reference backend):
            columns [vocab_start, vocab_start + C_local). C_local may differ between ranks and be
            0. Or a DTensor (..., C) sharded on its last dimension.
        labels: (...) of any integer dtype, the same on all ranks, in [0, C) or equal to
            `ignore_index`.
        vocab_start: which column of the whole rows is the first of local_logits. The ranks'
            columns follow one another without gaps, in any order of the ranks. None for a DTensor.
        group: the process group, all of whose ranks must call; None is the default one, or that
            of the DTensor's mesh.
        beta, ignore_index: as in :func:`emp_kernels.score`, the same on all ranks.
        check: first compare over the ranks what must be the same, for one more small collective
            (on CUDA also one synchronisation with the host).

    Returns:
        Scores(score, loss, entropy, lse) as :func:`emp_kernels.score`, the same on all ranks.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape; a label out of range, or columns that overlap or leave a gap
            (on CPU, and with `check` anywhere), on all ranks; with `check`, rows, dtype, labels,
            beta or ignore_index that differ between ranks: on all ranks, naming them.
        RuntimeError: torch.distributed is not initialised; a rank died, did not call within the
            group's timeout, or called with another number of rows.
    """
    function = "distributed.score_vocab_parallel"
    shard = shard_of(function, local_logits, labels, vocab_start, group)
    check_logits(function, shard.logits, "local_logits")
    check_labels(function, shard.labels, shard.logits)
    beta, ignore_index = check_beta(function, beta), check_ignore_index(function, ignore_index)
    if check:
        _compare(function, shard, beta, ignore_index)
    chosen = backends.resolve(function, None, shard.logits)
    return score_shard(function, chosen, shard, beta, ignore_index).scores


class Shard(NamedTuple):
    """This rank's columns [start, start + C_local) of logits (..., C), and labels (...)."""

    logits: torch.Tensor
    labels: torch.Tensor
    start: int
    group: dist.ProcessGroup | None


class Scored(NamedTuple):
    """Scores of whole rows, and what the gradient of a shard is made of besides the loss: the
    rows' maximum and log-sum-exp above it, (N,)."""

    scores: Scores
    maximum: torch.Tensor
    above: torch.Tensor


def is_dtensor(logits: Any) -> bool:
    """Whether `logits` is a DTensor. No tensor is one before its module is loaded, which takes
    longer than this package."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(logits, module.DTensor)


def shard_of(
    function: str,
    logits: torch.Tensor,
    labels: torch.Tensor,
    vocab_start: int | None,
    group: dist.ProcessGroup | None,
) -> Shard:
    """The shard that is meant, differentiable with respect to `logits`. Checks what says where
    the columns belong, not yet logits and labels."""
    if is_dtensor(labels):
        labels = labels.to_local()  # type: ignore[attr-defined]
    if is_dtensor(logits):
        if vocab_start is not None or group is not None:
            raise ValueError(
                f"{function}: vocab_start and group must be None for a DTensor, whose mesh says "
                f"both, got {vocab_start} and {type(group).__name__}"
            )
        return _shard_of_dtensor(function, logits, labels)
    check_group(function, group)
    if vocab_start is None:
        raise ValueError(
            f"{function}: vocab_start must say which column is the first here, got None"
        )
    return Shard(logits, labels, check_size(function, "vocab_start", vocab_start), group)


def _shard_of_dtensor(function: str, logits: Any, labels: torch.Tensor) -> Shard:
    """Of torch's own sharding of the last dimension over one dimension of the mesh; the other
    dimensions may share out rows, as the labels' are."""
    from torch.distributed import tensor

    mesh, last = logits.device_mesh, logits.dim() - 1
    over = [i for i, placement in enumerate(logits.placements) if placement.is_shard(last)]
    partial = any(placement.is_partial() for placement in logits.placements)
    if len(over) != 1 or partial or type(logits.placements[over[0]]) is not tensor.Shard:
        raise ValueError(
            f"{function}: a DTensor must be sharded once on its last dimension {last} and not be "
            f"partial, got placements {logits.placements}"
        )
    local, classes = logits.to_local(), logits.shape[-1]
    if type(local) is not torch.Tensor:  # a collective that nobody waited for yet: no memory
        local = local.clone()
    width = -(-classes // mesh.size(over[0]))
    start = min(classes, width * mesh.get_local_rank(over[0]))
    if local.shape[-1] != min(width, classes - start):
        raise ValueError(
            f"{function}: a DTensor must be sharded evenly, as distribute_tensor does (else pass "
            f"its to_local() with vocab_start and group), got {local.shape[-1]} columns of "
            f"{classes} on rank {mesh.get_local_rank(over[0])} of {mesh.size(over[0])}"
        )
    return Shard(local, labels, start, mesh.get_group(over[0]))


def _compare(function: str, shard: Shard, beta: float, ignore_index: int | None) -> None:
    """That all ranks were called alike."""
    labels = as_int64(shard.labels).reshape(-1)
    places = torch.arange(1, len(labels) + 1, device=labels.device)
    fields = {
        "rows": len(labels),
        "dtypes": _DTYPES.index(shard.logits.dtype),
        "labels": int((labels * places + (labels ^ places)).sum()),
        "beta": int(torch.tensor(beta, dtype=torch.float64, device="cpu").view(torch.int64)),
        "ignored": ignore_index is not None,
        "ignore_index": ignore_index or 0,
        "start": shard.start,
        "classes": shard.logits.shape[-1],
    }
    told = torch.tensor(list(map(int, fields.values())), device=labels.device)
    heard = [part.tolist() for part in gather_equal(function, told, shard.group)]
    of_rank = [dict(zip(fields, facts, strict=True)) for facts in heard]

    def agree(rule: str, values: list[Any]) -> None:
        if len(set(values)) > 1:
            raise ValueError(f"{function}: {rule} on all ranks, got {per_rank(values)}")

    agree("local_logits must have the same number of rows", [f["rows"] for f in of_rank])
    agree("local_logits must have one dtype", [_DTYPES[f["dtypes"]] for f in of_rank])
    betas = [torch.tensor(f["beta"], device="cpu").view(torch.float64).item() for f in of_rank]
    agree("beta must be the same", betas)
    ignored = [f["ignore_index"] if f["ignored"] else None for f in of_rank]
    agree("ignore_index must be the same", ignored)
    sums = [f"labels of checksum {f['labels'] & (2**64 - 1):016x}" for f in of_rank]
    agree("labels must be the same", sums)
    _classes(function, [(f["start"], f["classes"]) for f in of_rank])


def _classes(function: str, shards: list[tuple[int, int]]) -> int:
    """C, of the ranks' (start, C_local), which must follow one another."""
    stop = 0
    for start, width in sorted(shard for shard in shards if shard[1] > 0):
        if start != stop:
            told = per_rank([f"[{a}, {a + n})" for a, n in shards])
            raise ValueError(
                f"{function}: vocab_start must make the ranks' columns follow one another from 0 "
                f"on, got {told}"
            )
        stop += width
    return stop


def score_shard(
    function: str, chosen: ModuleType, shard: Shard, beta: float, ignore_index: int | None
) -> Scored:
    """Scores of whole rows, shaped as the labels, from backend `chosen`'s sums over the shard and
    one collective."""
    logits, n, classes_here = shard.logits.detach(), shard.labels.numel(), shard.logits.shape[-1]
    labels = as_int64(shard.labels)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if classes_here:
        ignored_here = None
        if ignore_index is not None:  # in the int64 arithmetic of the labels, which wraps
            ignored_here = (ignore_index - shard.start + 2**63) % 2**64 - 2**63
        sums = chosen.row_sums(logits, labels - shard.start, ignored_here)
    else:
        nothing = [-math.inf, 0.0, 0.0, math.nan]
        sums = torch.tensor(nothing, dtype=wide, device=logits.device)[:, None].expand(4, n)
    packed = sums.reshape(-1)
    if logits.is_cpu:  # elsewhere, looking would wait for the device
        facts = torch.tensor([shard.start, classes_here], device="cpu")
        packed = torch.cat([packed, facts.view(wide)])
    parts = gather_equal(function, packed, shard.group)
    ignored = None if ignore_index is None else labels.reshape(-1) == ignore_index
    if logits.is_cpu:
        columns = [tuple(part[4 * n :].view(torch.int64).tolist()) for part in parts]
        check_label_range(function, labels, _classes(function, columns), ignore_index)
    m, u, t, z_y = torch.stack([part[: 4 * n].view(4, n) for part in parts], 1).double()
    return _scored((*_merged(m, u, t), _found(z_y)), ignored, beta, wide, labels.shape)


def _merged(
    m: torch.Tensor, u: torch.Tensor, t: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """m, u and t (N,) of whole rows from those of their parts (R, N), float64. The part that comes
    first of those with the largest m leaves out its maximal element, the others add theirs."""
    top = m.amax(0)
    first = (m == top) & ((m == top).cumsum(0) == 1)
    present = u + (~first).double()
    d = (m - top).clamp(min=-1e4)  # -inf would make t's 0 a NaN
    e = d.exp()
    whole_u, whole_t = (e * present).sum(0), (e * (t + d * present)).sum(0)
    finite = top.isfinite()
    broken = (m + u + t).isnan().any(0)  # a NaN among the logits
    whole_u = torch.where(finite, whole_u, 0.0).masked_fill(broken, torch.nan)
    return top, whole_u, torch.where(finite, whole_t, 0.0)


def _found(z_y: torch.Tensor) -> torch.Tensor:
    """(N,): of the parts' z_y (R, N) the one that is no NaN; NaN where there is none."""
    nowhere = z_y.isnan()
    return torch.where(nowhere, 0.0, z_y).sum(0).masked_fill(nowhere.all(0), torch.nan)


def _scored(
    sums: tuple[torch.Tensor, ...],
    ignored: torch.Tensor | None,
    beta: float,
    dtype: torch.dtype,
    shape: torch.Size,
) -> Scored:
    """What m, u, t and z_y of whole rows (N,) say; float64 until the last rounding."""
    m, u, t, z_y = sums
    above = u.log1p()
    loss, entropy, lse = (m - z_y) + above, above - t / (1 + u) + (m - m), m + above
    score = loss + beta * entropy
    loss, entropy = loss.to(dtype), entropy.to(dtype)
    score = torch.where(loss.isfinite() & entropy.isfinite(), score.to(dtype), torch.nan)
    fields = [score, loss, entropy, lse.to(dtype)]
    if ignored is not None:
        fields = [field.masked_fill(ignored, 0.0) for field in fields]
        fields[0] = fields[0].masked_fill(ignored, -math.inf)
    scores = Scores(*(field.reshape(shape) for field in fields))
    return Scored(scores, m.to(dtype), above.to(dtype))
