"""Each public function that takes tensors, as a call with named tensors, for the tests of every
argument. Add new functions here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import emp_kernels as emp

N, C, D, SAMPLES = 6, 5, 4, 9
Tensors = dict[str, torch.Tensor]


class Call(NamedTuple):
    """A public function with all its tensors, and whether it takes a backend.

    `run` gets fresh copies of the tensors by name, and other arguments of the function; it returns
    every tensor that the call made or wrote.
    """

    tensors: Callable[[], Tensors]
    run: Callable[..., Any]
    by_backend: bool = True


def rows(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensors:
    """Logits (N, C), labels, sample ids with a duplicate, and rows to train on."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return {
        "logits": torch.randn(N, C, generator=generator, device="cpu").to(dtype),
        "labels": torch.tensor([0, 4, 2, 1, 2, 3], device="cpu"),
        "indices": torch.tensor([8, 3, 5, 3, 0, 1], device="cpu"),
        "rows": torch.tensor([1, 4, 4, 0], device="cpu"),
        "gradient": torch.randn(N, generator=generator, device="cpu"),
    }


def product(seed: int = 1) -> Tensors:
    """hidden (N, D), weight (C, D), bias and labels."""
    generator = torch.Generator("cpu").manual_seed(seed)
    made = {
        name: torch.randn(shape, generator=generator, device="cpu")
        for name, shape in {"hidden": (N, D), "weight": (C, D), "bias": (C,)}.items()
    }
    return made | {name: rows()[name] for name in ("labels", "rows", "gradient")}


def views(seed: int = 2) -> Tensors:
    """Two views' projections and hidden features."""
    generator = torch.Generator("cpu").manual_seed(seed)
    return {
        name: torch.randn(N, D, generator=generator, device="cpu")
        for name in ("z1", "z2", "h1", "h2")
    }


def tokens() -> Tensors:
    """Logits (2, 3, C) and labels (2, 3)."""
    made = rows(3)
    return {
        "logits": made["logits"].view(2, 3, C),
        "labels": made["labels"].view(2, 3),
        "indices": made["indices"].view(2, 3),
    }


def batch() -> Tensors:
    generator = torch.Generator("cpu").manual_seed(4)
    return {
        "x": torch.randn(N, 3, 2, generator=generator, device="cpu"),
        "y": torch.arange(N, device="cpu") - 2,
        "indices": torch.tensor([5, 0, 0, 3], device="cpu"),
    }


def kept(**chosen: str) -> Callable[[Callable[[], Tensors]], Callable[[], Tensors]]:
    """The tensors of `make` that are named, under the names of the function's own."""
    return lambda make: lambda: {name: make()[source] for name, source in chosen.items()}


def only(make: Callable[[], Tensors], *names: str) -> Callable[[], Tensors]:
    return lambda: {name: make()[name] for name in names}


def _state() -> emp.EMPState:
    return emp.EMPState(SAMPLES, beta=0.5, device="cpu")


def _of(state: emp.EMPState) -> list[torch.Tensor]:
    return [x for x in state.state_dict().values() if isinstance(x, torch.Tensor)]


def _pruned(logits, labels, indices, **options):
    state = _state()
    found = emp.score_and_select(logits, labels, state, 0.5, indices=indices, **options)
    return [found.indices, *found.scores, found.threshold, found.num_invalid, *_of(state)]


def _updated(indices, score, loss, entropy, lse, **options):
    state = _state()
    state.update(indices, emp.Scores(score, loss, entropy, lse), **options)
    return _of(state)


def _trained(function, inputs, gradient, *arguments, **options):
    """The loss of each row and its gradients for the upstream `gradient`."""
    if torch._C._functorch.peek_interpreter_stack() is None:  # where it is forbidden
        for x in inputs:
            if x.is_leaf and not x.is_nested and x.layout is torch.strided:
                x.requires_grad_()
    with torch.enable_grad():
        loss = function(*arguments, reduction="none", **options)
        if not loss.requires_grad:
            return [loss]
        upstream = gradient[: loss.numel()].view(loss.shape)
        return [loss.detach(), *torch.autograd.grad(loss, inputs, upstream)]


def _cross_entropy(logits, labels, gradient, indices=None, rows=None, **options):
    state = None if indices is None else _state()
    options |= {"indices": indices, "rows": rows}
    found = _trained(emp.cross_entropy, [logits], gradient, logits, labels, state, **options)
    return found + ([] if state is None else _of(state))


def _linear_cross_entropy(hidden, weight, bias, labels, gradient, rows=None, **options):
    options |= {"bias": bias, "rows": rows}
    inputs = [hidden, weight, bias]
    return _trained(emp.linear_cross_entropy, inputs, gradient, hidden, weight, labels, **options)


def _contrasted(form):
    def run(z1, z2, h1, h2, **options):
        return emp.score_contrastive(z1, z2, hidden=(h1, h2), form=form, **options)

    return run


_SCORES = dict.fromkeys(("score", "loss", "entropy", "lse"), "gradient")

CALLS = {
    "score": Call(only(rows, "logits", "labels"), emp.score),
    "score, ignoring": Call(
        only(rows, "logits", "labels"), lambda **x: emp.score(ignore_index=2, **x)
    ),
    "sample_statistics": Call(only(rows, "logits", "labels"), emp.sample_statistics),
    "select": Call(
        kept(scores="gradient")(rows), lambda scores, **x: [emp.select(scores, 0.5, **x)]
    ),
    "rank": Call(only(rows, "logits", "labels"), lambda **x: emp.rank(keep=0.5, **x)),
    "gather": Call(
        batch, lambda x, y, indices: list(emp.gather({"x": x, "y": y}, indices).values()), False
    ),
    "score_and_select": Call(only(rows, "logits", "labels", "indices"), _pruned),
    "score_and_select, ignoring": Call(
        only(rows, "logits", "labels", "indices"), lambda **x: _pruned(ignore_index=2, **x)
    ),
    **{
        f"score_and_select per {per}": Call(
            tokens,
            lambda per=per, **x: _pruned(per=per, ignore_index=2, **x),
        )
        for per in ("all", "row")
    },
    "EMPState.update": Call(kept(indices="indices", **_SCORES)(rows), _updated, False),
    "cross_entropy": Call(only(rows, "logits", "labels", "gradient", "indices"), _cross_entropy),
    "cross_entropy of rows": Call(
        only(rows, "logits", "labels", "gradient", "rows"),
        lambda **x: _cross_entropy(ignore_index=2, **x),
    ),
    "score_linear": Call(only(product, "hidden", "weight", "bias", "labels"), emp.score_linear),
    "score_linear, ignoring": Call(
        only(product, "hidden", "weight", "bias", "labels"),
        lambda **x: emp.score_linear(ignore_index=2, **x),
    ),
    "linear_cross_entropy": Call(
        only(product, "hidden", "weight", "bias", "labels", "gradient"), _linear_cross_entropy
    ),
    "linear_cross_entropy of rows": Call(
        product, lambda **x: _linear_cross_entropy(ignore_index=2, **x)
    ),
    **{
        f"score_contrastive, {form}": Call(views, _contrasted(form))
        for form in ("infonce", "ntxent", "clip")
    },
}


def run(name: str, tensors: Tensors, backend: str) -> list[torch.Tensor]:
    """The results of the named call; functions without the argument `backend` use the fixture
    as_default."""
    call = CALLS[name]
    options = {"backend": backend} if call.by_backend else {}
    return list(call.run(**tensors, **options))
