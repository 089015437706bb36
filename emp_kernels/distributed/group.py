"""Process groups: who takes part, which device their messages travel from, and how a collective
that fails is worded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from ..validation import check_no_tracing, check_size

_NAMED = 8  # ranks that an error lists


def initialised() -> bool:
    """Whether there is a default process group."""
    return dist.is_available() and dist.is_initialized()


def ranks(function: str, num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    """(num_replicas, rank) as given, else of the default process group, else (1, 0).

    Raises:
        TypeError: one is no int.
        ValueError: num_replicas is below 1, or rank is outside [0, num_replicas).
    """
    together = initialised()
    if num_replicas is None:
        num_replicas = dist.get_world_size() if together else 1
    if check_size(function, "num_replicas", num_replicas) < 1:
        raise ValueError(f"{function}: num_replicas must be at least 1, got {num_replicas}")
    if rank is None:
        rank = dist.get_rank() if together else 0
    if check_size(function, "rank", rank) >= num_replicas:
        raise ValueError(f"{function}: rank must be in [0, {num_replicas}), got {rank}")
    return int(num_replicas), int(rank)


def check_group(function: str, group: Any) -> tuple[int, int]:
    """(ranks, this process's rank) of `group`, None being the default one.

    Raises:
        TypeError: `group` is no process group.
        ValueError: this process is not in it.
        RuntimeError: torch.distributed is not initialised, or torch traces.
    """
    check_no_tracing(function)
    if not initialised():
        raise RuntimeError(
            f"{function}: a process group must be initialised; call "
            "torch.distributed.init_process_group first"
        )
    outsider = group is dist.GroupMember.NON_GROUP_MEMBER
    if not (group is None or outsider or isinstance(group, dist.ProcessGroup)):
        raise TypeError(
            f"{function}: group must be a torch.distributed.ProcessGroup or None, "
            f"got {type(group).__name__}"
        )
    rank = -1 if outsider else dist.get_rank(group)
    if rank < 0:
        raise ValueError(
            f"{function}: group must include this process, got one without rank {dist.get_rank()}"
        )
    return dist.get_world_size(group), rank


def message_device(tensor: torch.Tensor, group: dist.ProcessGroup | None) -> torch.device:
    """Where `tensor` must be for the group's backend: its own device where that serves it."""
    backends = str(dist.get_backend(group)).lower()
    if tensor.is_cuda:
        return tensor.device if "nccl" in backends else torch.device("cpu")
    if "gloo" in backends or "mpi" in backends:
        return tensor.device
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def _collective(function: str, group: dist.ProcessGroup | None) -> Iterator[None]:
    """Words the failure of a collective: a rank died, never came, or sent something else."""
    try:
        yield
    except RuntimeError as error:
        raise RuntimeError(
            f"{function}: all {dist.get_world_size(group)} ranks of the group must make this call "
            "alike, got none or a different one from another rank (it died, raised before the "
            f"call, or its tensors have another size), as rank {dist.get_rank(group)} sees it: "
            f"{error}"
        ) from error


def gather_equal(
    function: str, tensor: torch.Tensor, group: dist.ProcessGroup | None
) -> list[torch.Tensor]:
    """`tensor`, of one shape and dtype on all ranks, of every rank; on the tensor's device."""
    sent = tensor.resolve_neg().to(message_device(tensor, group)).contiguous()
    received = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
    with _collective(function, group):
        dist.all_gather(received, sent, group=group)
        return [part.to(tensor.device) for part in received]


def sum_equal(function: str, tensor: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The ranks' tensors, of one shape and dtype, added up; on the tensor's device."""
    total = tensor.to(message_device(tensor, group), copy=True).contiguous()
    with _collective(function, group):
        dist.all_reduce(total, group=group)
        return total.to(tensor.device)


def per_rank(values: Sequence[Any]) -> str:
    """The ranks' values for an error, those first that differ from rank 0's:
    "0.5 on rank 0, 0.3 on rank 2, 0.5 on rank 1"."""
    order = sorted(range(len(values)), key=lambda rank: (rank > 0, values[rank] == values[0], rank))
    shown = [f"{values[rank]} on rank {rank}" for rank in order[:_NAMED]]
    return ", ".join(shown + ["..."] * (len(order) > _NAMED))
