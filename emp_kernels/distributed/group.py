"""Process groups: who takes part, and which device their messages travel from."""

import torch
import torch.distributed as dist

from ..validation import check_size


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


def message_device(tensor: torch.Tensor, group: dist.ProcessGroup | None) -> torch.device:
    """Where `tensor` must be for the group's backend: its own device where that serves it."""
    backends = str(dist.get_backend(group)).lower()
    if tensor.is_cuda:
        return tensor.device if "nccl" in backends else torch.device("cpu")
    if "gloo" in backends or "mpi" in backends:
        return tensor.device
    return torch.device("cuda", torch.cuda.current_device())


def gather_equal(tensor: torch.Tensor, group: dist.ProcessGroup | None) -> list[torch.Tensor]:
    """`tensor`, of one shape and dtype on all ranks, of every rank; on the tensor's device."""
    sent = tensor.to(message_device(tensor, group)).contiguous()
    received = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
    dist.all_gather(received, sent, group=group)
    return [part.to(tensor.device) for part in received]
