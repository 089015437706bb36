"""The columns of whole rows that a rank holds, and the exchange of the ranks' partial sums."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from ..validation import check_size
from .group import check_group, gather_equal, per_rank


class Columns(NamedTuple):
    """This rank's columns [start, start + width) of whole rows, `rank` being its number in
    `group`."""

    start: int
    width: int
    rank: int
    group: dist.ProcessGroup | None


class Shard(NamedTuple):
    """This rank's `columns` of logits, (..., C_local), and labels (...)."""

    logits: torch.Tensor
    labels: torch.Tensor
    columns: Columns


class ProductShard(NamedTuple):
    """A product of which this rank computes `columns`: hidden (..., D), equal on all ranks, weight
    (C_local, D), bias (C_local,) or None, and labels (...)."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    labels: torch.Tensor
    columns: Columns


def is_dtensor(tensor: Any) -> bool:
    """Whether `tensor` is a DTensor. None is before torch's module for them is loaded, which takes
    longer than this package."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def is_sharded(tensor: Any, vocab_start: int | None, group: dist.ProcessGroup | None) -> bool:
    """Whether `tensor`, logits or the weight of a product, is one rank's shard."""
    return group is not None or vocab_start is not None or is_dtensor(tensor)


def local_part(tensor: Any) -> Any:
    """The local part of a tensor: a DTensor's shard, differentiable."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def shard_of(
    function: str,
    logits: torch.Tensor,
    labels: torch.Tensor,
    vocab_start: int | None,
    group: dist.ProcessGroup | None,
) -> Shard:
    """The shard given by the arguments, differentiable with respect to `logits`. Only the arguments
    that place the columns are checked here, not logits and labels."""
    labels = local_part(labels)
    if is_dtensor(logits):
        last = logits.dim() - 1
        name = f"a DTensor must be sharded once on its last dimension {last}"
        local, columns = _of_dtensor(function, name, logits, last, vocab_start, group)
        return Shard(local, labels, columns)
    columns = _given(function, vocab_start, group)
    if isinstance(logits, torch.Tensor) and logits.dim():
        columns = columns._replace(width=logits.shape[-1])
    return Shard(logits, labels, columns)


def product_shard_of(
    function: str,
    hidden: Any,
    weight: Any,
    bias: Any,
    labels: torch.Tensor,
    vocab_start: int | None,
    group: dist.ProcessGroup | None,
) -> ProductShard:
    """The shard of a product given by the arguments, differentiable with respect to hidden, weight
    and bias. Only the arguments that place the weight's rows are checked here, not the tensors."""
    labels = local_part(labels)
    if not is_dtensor(weight):
        columns = _given(function, vocab_start, group)
        if isinstance(weight, torch.Tensor) and weight.dim():
            columns = columns._replace(width=weight.shape[0])
        over = None
    else:
        rule = "weight, a DTensor, must be sharded once on its dimension 0"
        mesh, over = weight.device_mesh, _sharded_over(function, rule, weight, 0)
        weight, columns = _of_dtensor(function, rule, weight, 0, vocab_start, group)
        if is_dtensor(bias):
            rule = "bias, a DTensor, must be sharded as weight is"
            if bias.device_mesh != mesh or _sharded_over(function, rule, bias, 0) != over:
                raise ValueError(
                    f"{function}: {rule}, got placements {bias.placements} on {bias.device_mesh}"
                )
    if is_dtensor(hidden):
        if over is not None and hidden.device_mesh != mesh:
            over = None
        whole = [
            placement.is_replicate() or (over is not None and i != over and placement.is_shard())
            for i, placement in enumerate(hidden.placements)
        ]
        if not all(whole):
            raise ValueError(
                f"{function}: hidden, a DTensor, must be alike on all ranks that share out the "
                f"weight (redistribute it to Replicate()), got placements {hidden.placements}"
            )
    return ProductShard(local_part(hidden), weight, local_part(bias), labels, columns)


def _given(function: str, vocab_start: int | None, group: dist.ProcessGroup | None) -> Columns:
    _, rank = check_group(function, group)
    if vocab_start is None:
        raise ValueError(
            f"{function}: vocab_start must say which column is the first here, got None"
        )
    return Columns(check_size(function, "vocab_start", vocab_start), 0, rank, group)


def _sharded_over(function: str, rule: str, tensor: Any, dim: int) -> int:
    """The mesh dimension over which a DTensor's `dim` is sharded."""
    from torch.distributed import tensor as dtensor

    over = [i for i, placement in enumerate(tensor.placements) if placement.is_shard(dim)]
    partial = any(placement.is_partial() for placement in tensor.placements)
    if len(over) != 1 or partial or type(tensor.placements[over[0]]) is not dtensor.Shard:
        raise ValueError(
            f"{function}: {rule} and not be partial, got placements {tensor.placements}"
        )
    return over[0]


def _of_dtensor(
    function: str,
    rule: str,
    tensor: Any,
    dim: int,
    vocab_start: int | None,
    group: dist.ProcessGroup | None,
) -> tuple[torch.Tensor, Columns]:
    """For DTensors whose classes, `dim`, are sharded over one mesh dimension; the others may shard
    rows in the same way as the labels."""
    over, mesh = _sharded_over(function, rule, tensor, dim), tensor.device_mesh
    local, classes = tensor.to_local(), tensor.shape[dim]
    if type(local) is not torch.Tensor:  # an asynchronous collective's result
        local = local.clone()
    width = -(-classes // mesh.size(over))
    start = min(classes, width * mesh.get_local_rank(over))
    if local.shape[dim] != min(width, classes - start):
        raise ValueError(
            f"{function}: a DTensor must be sharded evenly, as distribute_tensor does (else pass "
            f"its to_local() with vocab_start and group), got {local.shape[dim]} columns of "
            f"{classes} on rank {mesh.get_local_rank(over)} of {mesh.size(over)}"
        )
    over_ranks = mesh.get_group(over)
    columns = Columns(start, local.shape[dim], dist.get_rank(over_ranks), over_ranks)
    same = vocab_start in (None, start)
    if group is not None and same:
        check_group(function, group)
        ranks = dist.get_process_group_ranks
        same = ranks(group) == ranks(columns.group)
    if not same:
        raise ValueError(
            f"{function}: vocab_start and group must be None for a DTensor, or what its mesh says, "
            f"{start} and ranks {dist.get_process_group_ranks(columns.group)}, got {vocab_start} "
            f"and {type(group).__name__}"
        )
    return local, columns


def exchange(
    function: str, sums: torch.Tensor, columns: Columns, *, tell: bool
) -> tuple[torch.Tensor, int | None]:
    """Gather `sums` (F, N), of equal shape and dtype on all ranks, as (F, R, N) float64 in one
    collective; and, if they `tell`, the total number of classes: this synchronises with the device,
    and columns that overlap or leave a gap are an error on all ranks."""
    packed, facts = sums.reshape(-1), 0
    if tell:  # first, so that they are aligned
        told = torch.tensor([columns.start, columns.width], device="cpu").view(sums.dtype)
        packed, facts = torch.cat([told.to(packed.device), packed]), len(told)
    parts = gather_equal(function, packed, columns.group)
    classes = None
    if tell:
        shards = [part[:facts].cpu().view(torch.int64).tolist() for part in parts]
        classes = classes_of(function, [(start, width) for start, width in shards])
    return torch.stack([part[facts:].view(sums.shape) for part in parts], 1).double(), classes


def merged(
    m: torch.Tensor, u: torch.Tensor, t: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """m, u and t (N,) of whole rows from those of their parts (R, N), float64. The first part with
    the largest m leaves out its maximal element, the others add theirs."""
    top = m.amax(0)
    first = (m == top) & ((m == top).cumsum(0) == 1)
    present = u + (~first).double()
    d = (m - top).clamp(min=-1e4)  # -inf * 0 would be NaN
    e = d.exp()
    whole_u, whole_t = (e * present).sum(0), (e * (t + d * present)).sum(0)
    finite = top.isfinite()
    broken = (m + u + t).isnan().any(0)  # a NaN logit
    whole_u = torch.where(finite, whole_u, 0.0).masked_fill(broken, torch.nan)
    return top, whole_u, torch.where(finite, whole_t, 0.0)


def found(z_y: torch.Tensor) -> torch.Tensor:
    """The one z_y of the parts' (R, N) that is not NaN, (N,); NaN if there is none."""
    nowhere = z_y.isnan()
    return torch.where(nowhere, 0.0, z_y).sum(0).masked_fill(nowhere.all(0), torch.nan)


def classes_of(function: str, shards: list[tuple[int, int]]) -> int:
    """C from the ranks' (start, C_local), which must be adjacent."""
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
