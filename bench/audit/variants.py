"""The variants to compile: every launch to check, as the call that makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

from emp_kernels.kernels import contrastive, launch, launch_linear, launch_loss, launch_terms, plan
from emp_kernels.terms import Adjustment, Coefficients, RowTerms, Targets


def variants() -> Iterator[tuple[str, Callable[[], Any]]]:
    """Every launch to check: its name, and a call that makes it."""
    f32, f16, bf16 = torch.float32, torch.float16, torch.bfloat16
    many, few = 100_000, 256
    for classes, dtype in (
        (10, f32), (100, bf16), (1000, f32), (1000, f16), (1000, bf16), (8192, bf16),
        (32000, f32), (32000, bf16),
    ):  # fmt: skip
        yield f"score C={classes} {name_of(dtype)}", scoring(many, classes, dtype)
    for classes in (1000, 32000):
        for dtype in (f32, bf16):
            name = f"sample_statistics C={classes} {name_of(dtype)}"
            yield name, scoring(many, classes, dtype, statistics=True)
    for classes in (1001, 50257):
        yield f"score C={classes} bfloat16 spread", scoring(many, classes, bf16)
    yield "score C=50257 float32 spread", scoring(many, 50257, f32)
    for rows in (8, few):  # a piece each, or a row each
        yield f"score N={rows} C=128256 bfloat16", scoring(rows, 128256, bf16)
    yield "sample_statistics N=8 C=50257 bfloat16 spread", scoring(8, 50257, bf16, statistics=True)
    for classes in (1000, 32000):
        yield f"row_sums C={classes} bfloat16", scoring(many, classes, bf16, sums=True)
    yield "score C=1000 grouped ignore", scoring(many, 1000, bf16, group=7, ignore=-100)
    state = fields_of_state(few)
    ids = torch.empty(few, dtype=torch.int64)
    for classes, rows in ((1000, few), (128256, 8)):
        yield (
            f"score_and_select N={rows} C={classes}",
            scoring(rows, classes, f32, keep=77 if rows == few else 2, state=state, ids=ids),
        )
    for classes in (1000, 8192, 128256):
        yield (
            f"score_and_select N={plan.FUSED} C={classes}",
            scoring(plan.FUSED, classes, bf16, keep=1000),
        )
    for classes in (10, 32000):
        yield f"cross_entropy_backward C={classes}", gradient(1000, classes, bf16)
    yield "cross_entropy_backward of a shard C=32000", gradient(1000, 32000, bf16, shard=True)
    for name, adjustment, kinds in (
        ("z_loss", Adjustment(), ""),
        ("temperature and entropy", Adjustment(torch.empty(1000)), "entropy"),
        ("softcap, smoothing, class weights", Adjustment(1.0, 30.0), "weight"),
        ("probabilities", Adjustment(), "probabilities"),
    ):
        for classes, dtype in ((1000, f32), (32000, bf16)):
            title = f"terms C={classes} {name_of(dtype)} {name}"
            yield title, terms(1000, classes, dtype, adjustment, kinds)
    for dtype in (bf16, f16, f32):
        yield f"score_linear D=4096 {name_of(dtype)}", product(4096, 4096, dtype)
    yield "score_linear D=1024 bias ignore", product(4096, 1024, bf16, bias=True, ignore=-100)
    yield "score_linear N=16", product(16, 1024, bf16)
    for depth in (1000, 1001):
        yield f"score_linear D={depth}", product(4096, depth, bf16)
    scores = torch.empty(many)
    for rows in (1024, plan.FEW, many, 2**22):
        yield f"select N={rows}", lambda rows=rows: launch.select(torch.empty(rows), 300)
    work = torch.empty(plan.WORK_SIZE, dtype=torch.int32)
    yield "selection after scoring", lambda: launch.select_many(scores, 9, work, ids, state)
    yield "state", lambda: launch.remember(state, ids, [scores[:few]] * 3)
    for width, dtype in ((128, f32), (512, f32), (128, bf16), (2048, f16)):
        for itself in (False, True):
            name = f"similarities D={width} {name_of(dtype)}{' itself' if itself else ''}"
            yield name, similarities(16384, width, dtype, itself)
    for rows in (few, plan.FEW):
        yield (
            f"state and selection, N={rows}",
            lambda rows=rows: launch.finish_few(torch.empty(4, rows), 9, ids, state),
        )


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def fields_of_state(size: int) -> SimpleNamespace:
    """A state's tensors, uninitialised: nothing runs."""
    integers = {name: torch.empty(size, dtype=torch.int32) for name in ("updates", "selections")}
    integers |= {name: torch.empty(size, dtype=torch.int32) for name in ("seen_at", "claims")}
    values = {name: torch.empty(size) for name in ("score", "loss", "entropy")}
    clock = torch.zeros((), dtype=torch.int32)
    return SimpleNamespace(**values, **integers, clock=clock, num_samples=size)


def scoring(n, classes, dtype, *, group=0, ignore=None, **options) -> Callable[[], Any]:
    """A scoring launch on n rows, without allocating them."""
    logits = torch.empty(64, dtype=dtype)
    per_group, stride = (group, group * classes + 64) if group else (n, 0)
    rows = launch.Rows(logits, n, classes, per_group, stride, classes)
    labels = torch.empty(n, dtype=torch.int64)
    return lambda: launch.score(rows, labels, 1.0, ignore, **options)


def gradient(n, classes, dtype, shard=False) -> Callable[[], Any]:
    """A backward launch; its output is allocated but not touched."""
    rows = launch.Rows(torch.empty(64, dtype=dtype), n, classes, n, 0, classes)
    values = torch.empty(n)
    labels = torch.empty(n, dtype=torch.int64)
    maximum = values if shard else None
    return lambda: launch_loss.gradient(rows, labels, values, values, values, maximum)


def terms(n, classes, dtype, adjustment, kinds) -> Callable[[], Any]:
    """A forward and a backward launch with options; one row of probabilities is used for all."""
    rows = launch.Rows(torch.empty(64, dtype=dtype), n, classes, n, 0, classes)
    labels, values = torch.empty(n, dtype=torch.int64), torch.empty(n)
    targets = None
    if kinds == "weight":
        targets = Targets(torch.empty(classes), None, 0.0, 0.1)
    elif kinds == "probabilities":
        targets = Targets(None, torch.empty(1, classes, dtype=dtype).expand(n, classes), 1.0, 0.0)
    found = RowTerms(*[values] * 9)
    entropy = values if kinds == "entropy" else None
    by = Coefficients(values, entropy, None if targets is None else values, values)

    def both() -> None:
        launch_terms.terms(rows, labels, adjustment, targets, None)
        launch_terms.gradient(rows, labels, found, by, adjustment, targets)

    return both


def product(n, depth, dtype, *, bias=False, ignore=None) -> Callable[[], Any]:
    """A launch of the scores of a product with 128256 classes; one row is used for all."""
    classes = 128256
    hidden = torch.empty(1, depth, dtype=dtype).expand(n, depth)
    weight = torch.empty(1, depth, dtype=dtype).expand(classes, depth)
    added = torch.empty(classes, dtype=dtype) if bias else None
    labels = torch.zeros(n, dtype=torch.int64)
    return lambda: launch_linear.score_linear(hidden, weight, added, labels, 1.0, ignore)


def similarities(n, width, dtype, itself) -> Callable[[], Any]:
    """A launch on two views of n rows; their memory is not touched."""
    side = torch.empty(n, width, dtype=dtype), torch.empty(n)
    return lambda: contrastive.similarity_sums(side, side, 0, itself)
