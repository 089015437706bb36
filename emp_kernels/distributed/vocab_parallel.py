"""Scoring of logits whose columns are sharded among ranks: local sums, merged on every rank."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from .. import backends
from ..options import LossOptions, check_adjustment
from ..results import Scores
from ..terms import Adjustment, scores_of
from ..validation import (
    as_int64,
    check_beta,
    check_ignore_index,
    check_label_range,
    check_labels,
    check_logits,
)
from .columns import Shard, classes_of, exchange, found, merged, shard_of
from .group import gather_equal, per_rank
from .term_shards import whole_terms

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def score_vocab_parallel(
    local_logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    vocab_start: int | None = None,
    group: dist.ProcessGroup | None = None,
    beta: float = 1.0,
    temperature: float | torch.Tensor = 1.0,
    softcap: float | None = None,
    ignore_index: int | None = None,
    check: bool = False,
) -> Scores:
    """:func:`emp_kernels.score` for vocabulary-parallel logits (..., C): each rank holds some
    columns.

    Each rank reads its columns once, for their maximum m and, with one maximal element left out,
    u = sum exp(z_j - m) and t = sum exp(z_j - m) (z_j - m). One collective exchanges these and z_y,
    16 bytes per row and rank. Every rank then merges them in rank order, so all ranks return the
    same bits in every run. One global maximal element stays left out, so that losses keep their
    accuracy near zero.

    Args:
        local_logits: (..., C_local) float32, float16 or bfloat16 (float64: reference backend):
            columns [vocab_start, vocab_start + C_local). C_local may differ between ranks and be
            0. Or a DTensor (..., C) sharded on its last dimension.
        labels: (...) of any integer dtype, the same on all ranks, in [0, C) or equal to
            `ignore_index`.
        vocab_start: index of the first local column in the whole rows. The ranks' columns must
            cover all columns without gaps or overlap, in any order of the ranks. None for a
            DTensor.
        group: the process group, all of whose ranks must call; None is the default one, or that
            of the DTensor's mesh.
        beta, temperature, softcap, ignore_index: as in :func:`emp_kernels.score`, the same on all
            ranks.
        check: first check that the ranks agree on what must be equal, which costs one more small
            collective (and on CUDA a synchronisation with the host).

    Returns:
        Scores(score, loss, entropy, lse) as :func:`emp_kernels.score`, the same on all ranks.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape; a label out of range, or columns that overlap or leave a gap
            (on CPU, and with `check` anywhere), on all ranks; with `check`, rows, dtype, labels,
            beta, temperature, softcap or ignore_index that differ between ranks: on all ranks,
            naming them.
        RuntimeError: torch.distributed is not initialised; a rank died, did not call within the
            group's timeout, or called with another number of rows.
    """
    function = "distributed.score_vocab_parallel"
    shard = shard_of(function, local_logits, labels, vocab_start, group)
    check_logits(function, shard.logits, "local_logits")
    check_labels(function, shard.labels, shard.logits)
    beta, ignore_index = check_beta(function, beta), check_ignore_index(function, ignore_index)
    adjustment = check_adjustment(function, temperature, softcap, shard.labels)
    if check:
        _compare(function, shard, beta, adjustment, ignore_index)
    chosen = backends.resolve(function, None, shard.logits)
    if adjustment.changes_nothing:
        return score_shard(function, chosen, shard, beta, ignore_index).scores
    logits, labels, columns = shard.logits.detach(), shard.labels, shard.columns
    options = LossOptions(adjustment)
    whole = whole_terms(function, chosen, (logits,), labels, columns, options, ignore_index)
    return scores_of(whole.terms, beta, labels, ignore_index)


class Scored(NamedTuple):
    """Scores of whole rows, and what the gradient of a shard needs besides the loss: the rows'
    maximum and the log-sum-exp relative to it, (N,)."""

    scores: Scores
    maximum: torch.Tensor
    above: torch.Tensor


def _compare(
    function: str, shard: Shard, beta: float, adjustment: Adjustment, ignore_index: int | None
) -> None:
    """Raise unless all ranks were called with matching arguments."""
    labels = as_int64(shard.labels).reshape(-1)
    temperature, of_rows = adjustment.temperature, isinstance(adjustment.temperature, torch.Tensor)
    if isinstance(temperature, torch.Tensor):
        bits = _checksum(temperature.view(torch.int32).to(torch.int64))
    else:
        bits = _bits(temperature)
    fields = {
        "rows": len(labels),
        "dtypes": _DTYPES.index(shard.logits.dtype),
        "labels": _checksum(labels),
        "beta": _bits(beta),
        "of_rows": of_rows,
        "temperature": bits,
        "softcap": _bits(adjustment.softcap or 0.0),
        "ignored": ignore_index is not None,
        "ignore_index": ignore_index or 0,
        "start": shard.columns.start,
        "classes": shard.columns.width,
    }
    told = torch.tensor(list(map(int, fields.values())), device=labels.device)
    heard = [part.tolist() for part in gather_equal(function, told, shard.columns.group)]
    of_rank = [dict(zip(fields, facts, strict=True)) for facts in heard]

    def agree(rule: str, values: list[Any]) -> None:
        if len(set(values)) > 1:
            raise ValueError(f"{function}: {rule} on all ranks, got {per_rank(values)}")

    def checksum(of: str, value: int) -> str:
        return f"{of} of checksum {value & (2**64 - 1):016x}"

    agree("local_logits must have the same number of rows", [f["rows"] for f in of_rank])
    agree("local_logits must have one dtype", [_DTYPES[f["dtypes"]] for f in of_rank])
    agree("beta must be the same", [_number(f["beta"]) for f in of_rank])
    temperatures = [
        checksum("one of each row", f["temperature"]) if f["of_rows"] else _number(f["temperature"])
        for f in of_rank
    ]
    agree("temperature must be the same", temperatures)
    agree("softcap must be the same", [_number(f["softcap"]) or None for f in of_rank])
    ignored = [f["ignore_index"] if f["ignored"] else None for f in of_rank]
    agree("ignore_index must be the same", ignored)
    agree("labels must be the same", [checksum("labels", f["labels"]) for f in of_rank])
    classes_of(function, [(f["start"], f["classes"]) for f in of_rank])


def _checksum(values: torch.Tensor) -> int:
    """An order-dependent checksum of values (N,) int64."""
    places = torch.arange(1, len(values) + 1, device=values.device)
    return int((values * places + (values ^ places)).sum())


def _bits(value: float) -> int:
    return int(torch.tensor(value, dtype=torch.float64, device="cpu").view(torch.int64))


def _number(bits: int) -> float:
    return torch.tensor(bits, device="cpu").view(torch.float64).item()


def score_shard(
    function: str, chosen: ModuleType, shard: Shard, beta: float, ignore_index: int | None
) -> Scored:
    """Scores of whole rows, shaped as the labels, from backend `chosen`'s sums over the shard and
    one collective."""
    logits, n, start = shard.logits.detach(), shard.labels.numel(), shard.columns.start
    labels = as_int64(shard.labels)
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    if shard.columns.width:
        ignored_here = None
        if ignore_index is not None:  # wraps like the labels' int64 arithmetic
            ignored_here = (ignore_index - start + 2**63) % 2**64 - 2**63
        sums = chosen.row_sums(logits, labels - start, ignored_here)
    else:
        nothing = [-math.inf, 0.0, 0.0, math.nan]
        sums = torch.tensor(nothing, dtype=wide, device=logits.device)[:, None].expand(4, n)
    # On other devices the check would require a synchronisation.
    (m, u, t, z_y), classes = exchange(function, sums, shard.columns, tell=logits.is_cpu)
    ignored = None if ignore_index is None else labels.reshape(-1) == ignore_index
    if classes is not None:
        check_label_range(function, labels, classes, ignore_index)
    return _scored((*merged(m, u, t), found(z_y)), ignored, beta, wide, labels.shape)


def _scored(
    sums: tuple[torch.Tensor, ...],
    ignored: torch.Tensor | None,
    beta: float,
    dtype: torch.dtype,
    shape: torch.Size,
) -> Scored:
    """Scores from m, u, t and z_y of whole rows (N,); float64 until the final rounding."""
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
