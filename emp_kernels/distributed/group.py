"""Process groups: who takes part, which device their messages travel from, and how a collective
that fails is worded."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ..tracing import check_no_tracing
from ..validation import check_size

if TYPE_CHECKING:
    from ..state import EMPState

_NAMED = 8  # ranks that an error lists
_PATIENCE = 60.0  # seconds that others have to say that a call failed for them, too,
_GRACE = 2.0  # and so many behind the group's timeout
_failures: dict[str, int] = {}  # of a group's calls, by its name,
_lost: dict[str, set[int]] = {}  # and the ranks that were missing in one: nobody waits again


def initialised() -> bool:
    """Whether there is a default process group."""
    return dist.is_available() and dist.is_initialized()


def ranks(
    function: str,
    num_replicas: int | None,
    rank: int | None,
    group: dist.ProcessGroup | None = None,
) -> tuple[int, int]:
    """(num_replicas, rank) as given, else of `group` or the default process group, else (1, 0).

    Raises:
        TypeError: one is no int.
        ValueError: num_replicas is below 1, or rank is outside [0, num_replicas).
    """
    together = initialised()
    if num_replicas is None:
        num_replicas = dist.get_world_size(group) if together else 1
    if check_size(function, "num_replicas", num_replicas) < 1:
        raise ValueError(f"{function}: num_replicas must be at least 1, got {num_replicas}")
    if rank is None:
        rank = dist.get_rank(group) if together else 0
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
    started = time.monotonic()
    try:
        yield
    except RuntimeError as error:
        missing = missing_ranks(group, started)
        got = (
            f"nothing from rank {', '.join(map(str, missing))} (it died, raised before the call, "
            "or did not come)"
            if missing
            else "none or a different one from another rank (it died, raised before the call, or "
            "its tensors have another size)"
        )
        raise RuntimeError(
            f"{function}: all {dist.get_world_size(group)} ranks of the group must make this call "
            f"alike, got {got}, as rank {dist.get_rank(group)} sees it: {error}"
        ) from error


def named(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """The group, of None the default one."""
    whole = dist.group.WORLD if group is None else group
    assert whole is not None
    return whole


def missing_ranks(group: dist.ProcessGroup | None, started: float) -> list[int] | None:
    """Which ranks of the group have not failed in a call that failed here, begun at `started`: they
    died or are elsewhere. None where nobody can tell.

    gloo's errors name an address. But those that are in the call all fail within the group's
    timeout, and each then says so in the store by which the ranks found one another; a call that
    succeeds costs nothing.
    """
    whole = named(group)
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    number = _failures[whole.group_name] = _failures.get(whole.group_name, 0) + 1
    lost = _lost.setdefault(whole.group_name, set())
    keys = [f"emp_kernels/{whole.group_name}/failed/{number}/{other}" for other in range(size)]
    patience = min(_timeout(whole), _PATIENCE)
    deadline = max(started + patience, time.monotonic()) + _GRACE
    missing = set(range(size))
    try:
        store = dist.distributed_c10d._get_default_store()  # nothing public gives it
        store.set(keys[rank], "")
        while True:
            missing = {other for other in missing if not store.check([keys[other]])}
            if missing <= lost or time.monotonic() > deadline:
                lost |= missing
                return sorted(missing)
            time.sleep(0.05)
    except (AttributeError, RuntimeError):  # it is the first rank's, unless a launcher keeps it
        if rank == 0:
            return None
        return [0] if 0 in missing else sorted(missing)  # or that rank has said so, and has gone


def _timeout(group: dist.ProcessGroup) -> float:
    """Seconds that the group's ranks wait for one another."""
    try:
        backend = group._get_backend(torch.device("cpu"))
        return float(backend.options._timeout.total_seconds())
    except (AttributeError, RuntimeError):
        return _PATIENCE


def gather_equal(
    function: str, tensor: torch.Tensor, group: dist.ProcessGroup | None
) -> list[torch.Tensor]:
    """`tensor`, of one shape and dtype on all ranks, of every rank; on the tensor's device."""
    sent = tensor.resolve_neg().to(message_device(tensor, group)).contiguous()
    received = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
    with _collective(function, group):
        dist.all_gather(received, sent, group=group)
        return [part.to(tensor.device) for part in received]


def agreed(
    function: str, state: EMPState, group: dist.ProcessGroup | None, rounds: int = 0
) -> tuple[int, int, int, int]:
    """Of all ranks' states, which must be of one size and beta: (largest clock, largest epoch, the
    clock up to which all are equal, largest of `rounds`)."""
    beta = torch.tensor([state.beta], dtype=torch.float64, device="cpu").view(torch.int64)
    own = [state.num_samples, int(beta), int(state.clock), state.epoch, state.synced_at, rounds]
    facts = torch.stack(gather_equal(function, torch.tensor(own, device=state.device), group)).cpu()
    sizes, betas = facts[:, 0].tolist(), facts[:, 1].contiguous().view(torch.float64).tolist()
    for name, values in (("num_samples", sizes), ("beta", betas)):
        if len(set(values)) > 1:
            raise ValueError(
                f"{function}: state must have one {name} on all ranks, got {per_rank(values)}"
            )
    clocks, epochs, bases, turns = facts[:, 2:].T
    return int(clocks.max()), int(epochs.max()), int(bases.min()), int(turns.max())


def sum_equal(function: str, tensor: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The ranks' tensors, of one shape and dtype, added up; on the tensor's device."""
    total = tensor.to(message_device(tensor, group), copy=True).contiguous()
    with _collective(function, group):
        dist.all_reduce(total, group=group)
        return total.to(tensor.device)


def max_equal(function: str, tensor: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The largest of the ranks' tensors, of one shape and dtype, at each place; a new tensor."""
    largest = tensor.to(message_device(tensor, group), copy=True).contiguous()
    with _collective(function, group):
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=group)
        return largest.to(tensor.device)


def exchange(
    function: str,
    tensor: torch.Tensor,
    sent: list[int],
    received: list[int],
    group: dist.ProcessGroup | None,
) -> torch.Tensor:
    """Of `tensor`, (sum(sent), ...), the first sent[0] rows go to rank 0, and so on; what the ranks
    send here, of rank r received[r] rows, one behind the other, on the tensor's device."""
    here = tensor.to(message_device(tensor, group)).contiguous()
    there = here.new_empty((sum(received), *tensor.shape[1:]))
    with _collective(function, group):
        dist.all_to_all_single(there, here, received, sent, group=group)
        return there.to(tensor.device)


def exchange_counts(
    function: str, counts: torch.Tensor, group: dist.ProcessGroup | None
) -> torch.Tensor:
    """Row r of `counts` (ranks, M) goes to rank r; what the ranks send here, in the same way."""
    ones = [1] * dist.get_world_size(group)
    return exchange(function, counts, ones, ones, group)


def per_rank(values: Sequence[Any]) -> str:
    """The ranks' values for an error, those first that differ from rank 0's:
    "0.5 on rank 0, 0.3 on rank 2, 0.5 on rank 1"."""
    order = sorted(range(len(values)), key=lambda rank: (rank > 0, values[rank] == values[0], rank))
    shown = [f"{values[rank]} on rank {rank}" for rank in order[:_NAMED]]
    return ", ".join(shown + ["..."] * (len(order) > _NAMED))
