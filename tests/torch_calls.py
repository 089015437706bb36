"""One call of every public function, with its gradient, on prepared inputs.

test_torch_switches.py runs each under torch's global switches. A public name without a call here
fails its first test.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import nn

import emp_kernels as emp

CALLS: dict[str, Callable[[], dict[str, Any]]] = {}
DATA = torch.Generator().manual_seed(20)


def public_names() -> list[str]:
    """The public functions and classes of emp_kernels and its public modules, except types of
    results and warnings."""
    names = []
    for name in emp.__all__:
        value = getattr(emp, name)
        if isinstance(value, ModuleType):
            names += [f"{name}.{function}" for function in value.__all__]
        elif not hasattr(value, "_fields") and name != "EMPWarning":
            names.append(name)
    return names


def call(name: str):
    """Makes the decorated function the call of `name`."""

    def remember(function: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
        CALLS[name] = function
        return function

    return remember


def _normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=DATA, dtype=torch.float32, device="cpu")


N, C, D = 24, 6, 5
LOGITS = 3 * _normal(N, C)
COLUMN = LOGITS[:, 0]
SCORES = emp.Scores(*(3 * _normal(N).abs() for _ in range(4)))
FEW = emp.Scores(*(field[:9] for field in SCORES))
LABELS = torch.randint(0, C, (N,), generator=DATA)
PADDED = LABELS.masked_fill(torch.arange(N) % 7 == 0, -100)
TOKENS, PADDED_TOKENS = LOGITS.view(4, 6, C), PADDED.view(4, 6)
IDS = torch.randperm(N, generator=DATA)
FEW_IDS = IDS[:9]
CLASS_WEIGHT = 1 + _normal(C).abs()
HIDDEN, WEIGHT, BIAS = _normal(N, D), _normal(C, D), _normal(C)
VIEWS = _normal(N, D), _normal(N, D)
# Ties, zeros of both signs and subnormal numbers about the places where a selection ends.
HARD = torch.tensor([0.0, 1e-45, -0.0, 1e-45, 3e-45, -1e-45, 1e-40, 0.0, 1.0, -1e-40])
ROWS = {"x": _normal(9, 3), "y": [torch.arange(9), torch.arange(18).view(9, 2).bool()]}
PLACES = torch.tensor([8, 0, 3, 3])


def _with_gradient(leaves: list[torch.Tensor], function: Callable[..., Any]) -> dict[str, Any]:
    """function(*leaves), and where torch records it the gradients of its sum."""
    leaves = [leaf.detach().requires_grad_(torch.is_grad_enabled()) for leaf in leaves]
    value = function(*leaves)
    found = {"value": value}
    if torch.is_grad_enabled():
        found["gradient"] = torch.autograd.grad((value * value).sum(), leaves)
    return found


def _state() -> emp.EMPState:
    return emp.EMPState(N, device="cpu")


def _held(state: emp.EMPState) -> dict[str, Any]:
    return dict(state.state_dict())


@call("score")
def score():
    return {
        "plain": emp.score(LOGITS, LABELS),
        "ignored": emp.score(TOKENS.half(), PADDED_TOKENS, ignore_index=-100),
    }


@call("sample_statistics")
def sample_statistics():
    return {"found": emp.sample_statistics(LOGITS, PADDED, ignore_index=-100)}


@call("rank")
def rank():
    return {
        by: emp.rank(LOGITS, PADDED, 0.5, by=by, ignore_index=-100, per_class=by == "margin")
        for by in ("emp", "el2n", "margin")
    }


@call("select")
def select():
    return {"found": emp.select(COLUMN, 0.3), "hard": emp.select(HARD, 4)}


@call("gather")
def gather():
    return {"batch": emp.gather(ROWS, PLACES)} | _with_gradient(
        [HIDDEN], lambda hidden: emp.gather(hidden, PLACES)
    )


@call("score_and_select")
def score_and_select():
    state = _state()
    found = emp.score_and_select(LOGITS, PADDED, state, 0.3, indices=IDS, ignore_index=-100)
    found = {"rows": found, "held": _held(state)}
    for per in ("all", "row", "sequence"):
        options = {"ignore_index": -100, "per": per}
        found[per] = emp.score_and_select(TOKENS, PADDED_TOKENS, None, 0.3, **options)
    return found


@call("score_contrastive")
def score_contrastive():
    return {
        form: emp.score_contrastive(*VIEWS, form=form, hidden=(HIDDEN, HIDDEN + 1))
        for form in ("infonce", "ntxent", "clip")
    }


@call("score_linear")
def score_linear():
    return {
        "found": emp.score_linear(HIDDEN, WEIGHT, PADDED, bias=BIAS, ignore_index=-100),
        "whole": emp.score_linear(HIDDEN, WEIGHT, LABELS),
    }


@call("cross_entropy")
def cross_entropy():
    state = _state()
    found = _with_gradient(
        [LOGITS],
        lambda logits: emp.cross_entropy(
            logits, PADDED, state, indices=IDS, ignore_index=-100, reduction="none"
        ),
    )
    rows = _with_gradient([LOGITS], lambda logits: emp.cross_entropy(logits, LABELS, rows=PLACES))
    options = {"label_smoothing": 0.1, "z_loss": 1e-3, "temperature": 2.0, "softcap": 30.0}
    optional = _with_gradient(
        [LOGITS], lambda logits: emp.cross_entropy(logits, LABELS, weight=CLASS_WEIGHT, **options)
    )
    return (
        found
        | {"held": _held(state)}
        | {f"{name} of rows": x for name, x in rows.items()}
        | {f"{name} with options": x for name, x in optional.items()}
    )


@call("log_prob_and_entropy")
def log_prob_and_entropy():
    def summed(logits: torch.Tensor) -> torch.Tensor:
        found = emp.log_prob_and_entropy(logits, PADDED, ignore_index=-100)
        return found.log_prob + found.entropy + found.lse

    return _with_gradient([LOGITS], summed)


@call("linear_cross_entropy")
def linear_cross_entropy():
    found = _with_gradient(
        [HIDDEN, WEIGHT, BIAS],
        lambda hidden, weight, bias: emp.linear_cross_entropy(
            hidden, weight, PADDED, bias=bias, ignore_index=-100
        ),
    )
    rows = _with_gradient(
        [HIDDEN, WEIGHT],
        lambda hidden, weight: emp.linear_cross_entropy(hidden, weight, LABELS, rows=PLACES),
    )
    options = {"label_smoothing": 0.1, "z_loss": 1e-3, "temperature": 2.0, "softcap": 30.0}
    optional = _with_gradient(
        [HIDDEN, WEIGHT],
        lambda hidden, weight: emp.linear_cross_entropy(
            hidden, weight, LABELS, class_weight=CLASS_WEIGHT, **options
        ),
    )
    return (
        found
        | {f"{name} of rows": x for name, x in rows.items()}
        | {f"{name} with options": x for name, x in optional.items()}
    )


@call("linear_log_prob_and_entropy")
def linear_log_prob_and_entropy():
    def summed(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        options = {"temperature": 8.0, "ignore_index": -100}
        found = emp.linear_log_prob_and_entropy(hidden, weight, PADDED, **options)
        return found.entropy - found.log_prob

    return _with_gradient([HIDDEN, WEIGHT], summed)


@call("EMPState")
def state():
    state, loaded = _state(), _state()
    state.update(FEW_IDS, FEW)
    loaded.load_state_dict(state.state_dict())
    return {
        "held": _held(state),
        "loaded": _held(loaded),
        "selected": state.select(0.7),
        "age": state.age(),
        "diagnostics": state.diagnostics(),
        "moved": _held(state.to("cpu")),
        "grown": _held(state.grow(N + 3)),
    }


@call("EMPSampler")
def sampler():
    state = _state()
    state.update(IDS, SCORES)
    sampler = emp.EMPSampler(state, 0.3, epochs=3, num_replicas=1, rank=0)
    found = {f"epoch {epoch}": list(sampler) for epoch in range(3)}
    return found | {"steps": sampler.total_steps(4), "held": _held(state)}


@call("EpochMask")
def epoch_mask():
    state = _state()
    state.update(IDS, SCORES)
    mask, resumed = (emp.EpochMask(state, 0.3, warmup_epochs=0) for _ in range(2))
    mask.set_epoch(1)
    resumed.load_state_dict(mask.state_dict())
    return {
        "ids": [mask.ids(), resumed.ids()],
        "asked": mask[IDS],
        "one": [i in mask for i in range(N + 2)],
        "length": len(mask),
        "held": _held(state),
    }


@call("KeyIds")
def key_ids():
    ids, resumed = emp.KeyIds(["a", "b"]), emp.KeyIds()
    resumed.load_state_dict(ids.state_dict())
    return {"given": [ids["b"], ids["c"], resumed["b"], resumed["d"]], "keys": list(ids)}


@call("IndexedDataset")
def indexed_dataset():
    dataset = emp.IndexedDataset([(x, int(y)) for x, y in zip(HIDDEN, LABELS, strict=True)])
    return {"items": [dataset[3], dataset[23]], "length": len(dataset)}


@call("HiddenFeatures")
def hidden_features():
    encoder = nn.Sequential(nn.Identity(), nn.Flatten())
    with emp.HiddenFeatures(encoder, "0") as features:
        encoder(VIEWS[0].view(N, D, 1, 1).expand(N, D, 2, 2))
        encoder(VIEWS[1])
        return {"taken": features.take()}


@call("distributed.initialised")
def distributed_initialised():
    return {"found": emp.distributed.initialised()}


@call("distributed.ranks")
def distributed_ranks():
    return {"found": emp.distributed.ranks("test", None, None)}


@call("distributed.select")
def distributed_select():
    return {
        name: emp.distributed.select(x, 4) for name, x in (("few", HARD), ("more", LOGITS[:, 0]))
    }


@call("distributed.sync")
def distributed_sync():
    state = _state()
    state.update(FEW_IDS, FEW)
    emp.distributed.sync(state)
    return {"held": _held(state)}


@call("distributed.ShardedState")
def distributed_sharded_state():
    state = emp.distributed.ShardedState(N, None, device="cpu")
    state.update(FEW_IDS, FEW)
    emp.cross_entropy(LOGITS, LABELS, state)
    emp.distributed.sync(state)
    names = "score", "loss", "entropy", "updates", "selections", "seen_at"
    return {name: getattr(state, name).clone() for name in names} | {"kept": state.select(0.4)}


@call("distributed.score_vocab_parallel")
def distributed_score_vocab_parallel():
    """And every loss of a shard, which is read as scores of adjusted logits are."""
    shard = {"vocab_start": 0, "ignore_index": -100}
    options = {"label_smoothing": 0.1, "z_loss": 1e-3, "temperature": 2.0, "softcap": 30.0}

    def of_logits(logits: torch.Tensor) -> torch.Tensor:
        found = emp.log_prob_and_entropy(logits, PADDED, temperature=2.0, **shard)
        return found.entropy.sum() + emp.cross_entropy(
            logits, PADDED, weight=CLASS_WEIGHT, **options, **shard
        )

    def of_product(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return emp.linear_cross_entropy(
            hidden, weight, PADDED, class_weight=CLASS_WEIGHT, **options, **shard
        )

    trained = _with_gradient([LOGITS], of_logits)
    product = _with_gradient([HIDDEN, WEIGHT], of_product)
    return {
        "found": emp.distributed.score_vocab_parallel(LOGITS, PADDED, check=True, **shard),
        "adjusted": emp.distributed.score_vocab_parallel(
            LOGITS, PADDED, check=True, temperature=2.0, softcap=30.0, **shard
        ),
        **{f"{name} of a loss": x for name, x in trained.items()},
        **{f"{name} of a product": x for name, x in product.items()},
    }
