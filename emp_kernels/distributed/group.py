"""Process groups: their ranks, the device of their messages, and the errors of failed
collectives."""

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

_NAMED = 8  # ranks listed in an error
_PATIENCE = 60.0  # seconds for other ranks to report that a call failed for them too,
_GRACE = 2.0  # and seconds after the group's timeout
_failures: dict[str, int] = {}  # failed calls of each group, by name,
_lost: dict[str, set[int]] = {}  # and the ranks that were missing, which are not waited for again


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
        TypeError: `group` is not a process group.
        ValueError: this process is not in it.
        RuntimeError: torch.distributed is not initialised, or the call is being traced.
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
    """The device that `tensor` must be on for the group's backend; its own if supported."""
    backends = str(dist.get_backend(group)).lower()
    if tensor.is_cuda:
        return tensor.device if "nccl" in backends else torch.device("cpu")
    if "gloo" in backends or "mpi" in backends:
        return tensor.device
    return torch.device("cuda", torch.cuda.current_device())


@contextmanager
def _collective(function: str, group: dist.ProcessGroup | None) -> Iterator[None]:
    """Explain the failure of a collective: a rank died, did not call, or sent something else."""
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
    """The group, or the default one for None."""
    whole = dist.group.WORLD if group is None else group
    assert whole is not None
    return whole


def missing_ranks(group: dist.ProcessGroup | None, started: float) -> list[int] | None:
    """The ranks that did not fail in a call that failed here, begun at `started`: they died or did
    not call. None if unknown.

    gloo's errors only name an address. All ranks in the call fail within the group's timeout, and
    each reports it in the store of the process group. A call that succeeds costs nothing. The first
    rank hosts the store unless a launcher does: it stays until the others have read it.
    """
    whole = named(group)
    size, rank = dist.get_world_size(group), dist.get_rank(group)
    number = _failures[whole.group_name] = _failures.get(whole.group_name, 0) + 1
    lost = _lost.setdefault(whole.group_name, set())
    keys = [f"emp_kernels/{whole.group_name}/failed/{number}/{other}" for other in range(size)]
    read = [f"{key}/read" for key in keys]
    patience = min(_timeout(whole), _PATIENCE)
    deadline = max(started + patience, time.monotonic()) + _GRACE
    missing = set(range(size))
    try:
        store = dist.distributed_c10d._get_default_store()  # there is no public accessor
        store.set(keys[rank], "")
        while True:
            for other in sorted(missing):
                if store.check([keys[other]]):
                    missing.remove(other)
            if missing <= lost or time.monotonic() > deadline:
                break
            time.sleep(0.05)
        lost |= missing
        store.set(read[rank], "")
        readers = [read[other] for other in range(size) if other not in missing]
        leave = time.monotonic() + _GRACE
        while rank == 0 and not store.check(readers) and time.monotonic() < leave:
            time.sleep(0.01)
        return sorted(missing)
    except (AttributeError, RuntimeError):  # the store is gone
        if rank == 0:
            return None
        return [0] if 0 in missing else sorted(missing)  # or its host has reported, and exited


def _timeout(group: dist.ProcessGroup) -> float:
    """The group's timeout in seconds."""
    try:
        backend = group._get_backend(torch.device("cpu"))
        return float(backend.options._timeout.total_seconds())
    except (AttributeError, RuntimeError):
        return _PATIENCE


def gather_equal(
    function: str, tensor: torch.Tensor, group: dist.ProcessGroup | None
) -> list[torch.Tensor]:
    """The tensors of all ranks, of equal shape and dtype, on this tensor's device."""
    sent = tensor.resolve_neg().to(message_device(tensor, group)).contiguous()
    received = [torch.empty_like(sent) for _ in range(dist.get_world_size(group))]
    with _collective(function, group):
        dist.all_gather(received, sent, group=group)
        return [part.to(tensor.device) for part in received]


def agreed(
    function: str, state: EMPState, group: dist.ProcessGroup | None, rounds: int = 0
) -> tuple[int, int, int, int]:
    """(largest clock, largest epoch, the clock up to which all states are equal, largest of
    `rounds`) over all ranks' states, whose sizes and betas must be equal."""
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
    """The sum of the ranks' tensors, of equal shape and dtype, on the tensor's device."""
    total = tensor.to(message_device(tensor, group), copy=True).contiguous()
    with _collective(function, group):
        dist.all_reduce(total, group=group)
        return total.to(tensor.device)


def max_equal(function: str, tensor: torch.Tensor, group: dist.ProcessGroup | None) -> torch.Tensor:
    """The elementwise maximum of the ranks' tensors, of equal shape and dtype; a new tensor."""
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
    """Send the first sent[0] rows of `tensor` (sum(sent), ...) to rank 0, and so on; return the
    concatenated rows received, received[r] from rank r, on the tensor's device."""
    here = tensor.to(message_device(tensor, group)).contiguous()
    there = here.new_empty((sum(received), *tensor.shape[1:]))
    with _collective(function, group):
        dist.all_to_all_single(there, here, received, sent, group=group)
        return there.to(tensor.device)


def exchange_counts(
    function: str, counts: torch.Tensor, group: dist.ProcessGroup | None
) -> torch.Tensor:
    """Send row r of `counts` (ranks, M) to rank r; return the rows received, in the same layout."""
    ones = [1] * dist.get_world_size(group)
    return exchange(function, counts, ones, ones, group)


def per_rank(values: Sequence[Any]) -> str:
    """The ranks' values for an error message, those that differ from rank 0's first:
    "0.5 on rank 0, 0.3 on rank 2, 0.5 on rank 1"."""
    order = sorted(range(len(values)), key=lambda rank: (rank > 0, values[rank] == values[0], rank))
    shown = [f"{values[rank]} on rank {rank}" for rank in order[:_NAMED]]
    return ", ".join(shown + ["..."] * (len(order) > _NAMED))
