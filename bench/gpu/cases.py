"""The cases of the GPU benchmarks. A case allocates its tensors, checks the results, then times.

Its row's name and its peers are known before `measure` allocates anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

import emp_kernels as emp
from bench import bench_linear, bench_training, harness
from bench.gpu import peers, timing
from emp_kernels import backends

GIGABYTE = 2**30
KEEP = 0.3
ROUNDS = 15
SCORING_GOALS = {  # required and stretch value, for at least a gigabyte of logits
    "share": (0.85, 0.95),
    "torch.compile": (2.0, 3.0),
    "Liger cross-entropy": (1.1, 1.5),
}


class Case(NamedTuple):
    name: str
    measure: Callable[[float], dict[str, Any]]  # takes the copy bandwidth, returns the row
    peers: tuple[str, ...] = ()  # names in peers.SCORING that are timed as well

    def __str__(self) -> str:
        return f"{self.name}, against {', '.join(self.peers)}" if self.peers else self.name


def scoring(classes: int, dtype: torch.dtype, against: Sequence[str]) -> Case:
    """score_and_select of a gigabyte of logits."""
    kind = str(dtype).removeprefix("torch.")
    name = f"score_and_select C={classes} {kind}"

    def measure(copy: float) -> dict[str, Any]:
        n = GIGABYTE // (classes * dtype.itemsize) + 1
        logits = torch.randn(n, classes, device="cuda", dtype=dtype)
        labels = torch.randint(classes, (n,), device="cuda")
        state, count = emp.EMPState(n, device="cuda"), max(1, round(KEEP * n))

        def ours() -> emp.Selection:
            return emp.score_and_select(logits, labels, state, KEEP, backend="triton")

        result = ours()
        harness.check_scores(logits, labels, result.scores.loss, result.scores.entropy)
        harness.check_selection(result.scores.score, result.indices, count)
        others, missing = peers.made(against, logits, labels, count)
        with torch.no_grad():
            seconds = timing.seconds_of({"ours": ours} | others, ROUNDS)
        return timing.row(
            name,
            seconds.pop("ours"),
            moved=logits.nbytes + 16 * n,
            copy=copy,
            peers=seconds,
            not_measured=missing,
            goals={k: goal for k, goal in SCORING_GOALS.items() if k in ("share", *against)},
            fields={"n": n, "c": classes, "dtype": kind, "peer_versions": peers.versions()},
        )

    return Case(name, measure, tuple(against))


def small_batch(graph: bool) -> Case:
    """The cost of one call: device time of a CUDA graph's replay, or host time of an eager call."""
    name = f"score_and_select 256×1000 float32, {'CUDA graph' if graph else 'host'}"

    def measure(copy: float) -> dict[str, Any]:
        logits = torch.randn(256, 1000, device="cuda")
        labels = torch.randint(1000, (256,), device="cuda")
        state = emp.EMPState(256, device="cuda")

        def call() -> emp.Selection:
            return emp.score_and_select(logits, labels, state, KEEP)

        result = call()
        harness.check_scores(logits, labels, result.scores.loss, result.scores.entropy)
        seconds = replays(call) if graph else timing.host_seconds(call)
        goals = {"microseconds": (8.0, 4.0) if graph else (25.0, 12.0)}
        fields = {"n": 256, "c": 1000, "dtype": "float32"}
        return timing.row(name, seconds, goals=goals, fields=fields)

    return Case(name, measure)


def replays(call: timing.Call, calls: int = 100) -> list[float]:
    """Device seconds of one replay, averaged over `calls` so that the events' overhead is
    negligible."""
    replay = timing.captured(call)

    def replay_all() -> None:
        for _ in range(calls):
            replay()

    return [t / calls for t in timing.seconds_of({"ours": replay_all}, ROUNDS)["ours"]]


def selecting(backend: str) -> Case:
    name = f"select 0.3 of 1e+08, {backend}"

    def measure(copy: float) -> dict[str, Any]:
        backends.load(backend)
        scores = torch.randn(10**8, device="cuda")
        count = round(KEEP * len(scores))
        harness.check_selection(scores, emp.select(scores, KEEP, backend=backend), count)
        others, missing = peers.select_peers(scores, count)
        calls = {"ours": lambda: emp.select(scores, KEEP, backend=backend)}
        seconds = timing.seconds_of(calls | others, 7)
        return timing.row(
            name,
            seconds.pop("ours"),
            moved=2 * scores.nbytes + 8 * count,
            copy=copy,
            peers=seconds,
            not_measured=missing,
            goals={"topk + sort": (10.0, 20.0), "floor": (2.5, 1.5)},
            fields={"n": len(scores), "k": count},
        )

    return Case(name, measure)


def rows_of_4_kb() -> dict[str, torch.Tensor]:
    return {"row": torch.randn(2**18, 1024, device="cuda")}


def images_features_labels() -> dict[str, torch.Tensor]:
    """Rows of 12 KB, 512 B and 8 B, as in bench_gathering."""
    return {
        "image": torch.randn(80_000, 3, 32, 32, device="cuda"),
        "features": torch.randn(80_000, 128, device="cuda"),
        "label": torch.randint(1000, (80_000,), device="cuda"),
    }


def gathering(what: str, source: Callable[[], dict[str, torch.Tensor]]) -> Case:
    """One gather of a dict of tensors, against one index_select per tensor."""
    name = f"gather 0.3 of 1 GB, {what}"

    def measure(copy: float) -> dict[str, Any]:
        batch = source()
        n = len(next(iter(batch.values())))
        indices = emp.select(torch.rand(n, device="cuda"), KEEP)

        def each() -> dict[str, torch.Tensor]:
            return {key: tensor.index_select(0, indices) for key, tensor in batch.items()}

        found, expected = emp.gather(batch, indices), each()
        assert all(torch.equal(found[key], expected[key]) for key in batch)
        calls = {"ours": lambda: emp.gather(batch, indices), "index_select": each}
        seconds = timing.seconds_of(calls, ROUNDS)
        row_bytes = [tensor[0].nbytes for tensor in batch.values()]
        modules = {backends.resolve_gather(tensor, False).__name__ for tensor in batch.values()}
        return timing.row(
            name,
            seconds.pop("ours"),
            moved=len(indices) * (2 * sum(row_bytes) + 8),
            copy=copy,
            peers=seconds,
            fields={
                "n": n, "row_bytes": row_bytes,
                "taken": sorted(module.rpartition(".")[2] for module in modules),
            },
        )  # fmt: skip

    return Case(name, measure)


def loss_and_gradient(n: int = 8192, classes: int = 32000) -> Case:
    """Loss with a state update and gradient, against torch's loss and gradient. The bytes counted
    are two reads of the logits and one write of the gradient."""
    name = f"cross_entropy and gradient {n}×{classes} bfloat16"

    def measure(copy: float) -> dict[str, Any]:
        logits = torch.randn(n, classes, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        labels = torch.randint(classes, (n,), device="cuda")
        state = emp.EMPState(n, device="cuda")

        def ours() -> torch.Tensor:
            return bench_training.gradient_of(emp.cross_entropy(logits, labels, state), logits)

        def theirs() -> torch.Tensor:
            return bench_training.gradient_of(F.cross_entropy(logits, labels), logits)

        bench_training.check_gradients(logits, labels, ours(), theirs())
        harness.check_scores(logits.detach(), labels, state.loss, state.entropy)
        seconds = timing.seconds_of({"ours": ours, "torch": theirs}, ROUNDS)
        return timing.row(
            name,
            seconds.pop("ours"),
            moved=3 * logits.nbytes,
            copy=copy,
            peers=seconds,
            fields={"n": n, "c": classes, "dtype": "bfloat16"},
        )

    return Case(name, measure)


def linear(n: int = 4096, width: int = 4096, classes: int = 128256) -> Case:
    """score_linear with a language model's head, against torch's product."""
    name = f"score_linear {n}×{width}×{classes} bfloat16"

    def measure(copy: float) -> dict[str, Any]:
        options = {"device": "cuda", "dtype": torch.bfloat16}
        hidden = torch.randn(n, width, **options)
        weight = torch.randn(classes, width, **options).div_(width**0.5)
        labels = torch.randint(classes, (n,), device="cuda")
        bench_linear.check(hidden, weight, labels, emp.score_linear(hidden, weight, labels))
        calls = {
            "ours": lambda: emp.score_linear(hidden, weight, labels),
            "matmul, score": lambda: emp.score(hidden @ weight.t(), labels),
            "matmul": lambda: hidden @ weight.t(),
        }
        seconds = timing.seconds_of(calls, ROUNDS)
        return timing.row(
            name,
            seconds.pop("ours"),
            moved=weight.nbytes + hidden.nbytes,
            copy=copy,
            peers=seconds,
            fields={"n": n, "d": width, "c": classes, "dtype": "bfloat16"},
        )

    return Case(name, measure)
