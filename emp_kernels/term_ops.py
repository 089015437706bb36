"""Terms of losses (terms.py) as differentiable operators of ``torch.ops.emp_kernels``, for
``torch.compile`` and tracers; of logits and of products.

Each returns all fields of RowTerms, with zeros for None, because an operator's outputs must not
depend on the backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import backends
from .ops import NAMESPACE, _owned
from .options import check_temperatures
from .terms import Adjustment, Coefficients, RowTerms, Targets, coefficients_of

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_INPUTS = {"row_terms": 1, "linear_terms": 3}  # differentiable arguments, before labels
_ROWS, _PRODUCT = "Tensor logits", "Tensor hidden, Tensor weight, Tensor? bias"
_OPTIONS = (
    "float temperature, Tensor? temperatures, float? softcap, bool weighs, Tensor? weights, "
    "Tensor? probabilities, float share, float uniform"
)
_OPTION_COUNT, _FIELD_COUNT = 8, len(RowTerms._fields)
# `reused`: a Selection's loss, entropy and lse, reused instead of a read. `plain`: only the loss of
# unadjusted logits is differentiated, by the kernels without options.
_FORWARD = (
    f"Tensor labels, {_OPTIONS}, Tensor[] reused, bool plain, int? ignore_index, str function, "
    "str? backend) -> "
    f"({', '.join(['Tensor'] * _FIELD_COUNT)})"
)
_BACKWARD = (
    "Tensor labels, Tensor[] terms, Tensor probability, Tensor? entropy, Tensor? target, "
    f"Tensor rest, {_OPTIONS}, bool[] wanted, str function, str? backend) -> "
)
for _schema in (
    f"row_terms({_ROWS}, {_FORWARD}",
    f"row_terms_backward({_ROWS}, {_BACKWARD} Tensor",
    f"linear_terms({_PRODUCT}, {_FORWARD}",
    f"linear_terms_backward({_PRODUCT}, {_BACKWARD} (Tensor, Tensor, Tensor)",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


def _packed(adjustment: Adjustment, targets: Targets | None) -> tuple[Any, ...]:
    """The operators' _OPTIONS."""
    temperature, softcap = adjustment
    weights = (False, None, None, 0.0, 0.0) if targets is None else (True, *targets)
    if isinstance(temperature, Tensor):
        return 1.0, temperature, softcap, *weights
    return temperature, None, softcap, *weights


def _unpacked(options: Sequence[Any]) -> tuple[Adjustment, Targets | None]:
    temperature, temperatures, softcap, weighs, *weights = options
    adjustment = Adjustment(temperature if temperatures is None else temperatures, softcap)
    return adjustment, Targets(*weights) if weighs else None


def _terms(inputs: Sequence[Any], labels: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *options, reused, plain, ignore_index, function, backend = rest
    adjustment, targets = _unpacked(options)
    check_temperatures(function, adjustment.temperature)
    asked = adjustment, targets, ignore_index, function
    if reused:
        found = RowTerms(*(x.clone() for x in reused))
    elif plain:
        chosen = backends.resolve(function, backend, inputs[0])
        scores = chosen.score(inputs[0], labels, 1.0, ignore_index, function)
        found = RowTerms(*(x.reshape(-1) for x in scores[1:4]))
    elif len(inputs) == 1:
        chosen = backends.resolve(function, backend, inputs[0])
        found = chosen.row_terms(inputs[0], labels, *asked)
    else:
        hidden, weight, bias = inputs
        chosen = backends.resolve(function, backend, hidden)
        found = chosen.linear_terms(hidden, weight, labels, bias, *asked)
    return _owned(torch.zeros_like(found.loss) if x is None else x for x in found)


def _gradients(inputs: Sequence[Any], labels: Tensor, terms: list[Tensor], *rest: Any) -> Any:
    *by, wanted, function, backend = rest
    coefficients, options = Coefficients(*by[:4]), _unpacked(by[4:])
    chosen = backends.resolve(function, backend, inputs[0])
    as_given = options[0].changes_nothing and options[1] is None
    if len(inputs) == 1 and len(terms) == 3 and as_given:  # plain or reused
        loss, _, lse = terms
        return chosen.cross_entropy_backward(inputs[0], labels, loss, lse, coefficients.probability)
    made = RowTerms(*terms), coefficients, *options
    if len(inputs) == 1:
        return chosen.row_terms_backward(inputs[0], labels, *made)
    hidden, weight, bias = inputs
    found = chosen.linear_terms_backward(hidden, weight, labels, bias, *made, wanted)
    return _owned(hidden.new_empty(0) if x is None else x for x in found)


def _fake_terms(inputs: Sequence[Any], labels: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    dtype = torch.float64 if inputs[0].dtype == torch.float64 else torch.float32
    return tuple(labels.new_empty(labels.numel(), dtype=dtype) for _ in range(_FIELD_COUNT))


def _fake_gradients(inputs: Sequence[Any], labels: Tensor, *rest: Any) -> Any:
    wanted = rest[-3]
    found = tuple(
        torch.empty(x.shape if asked and x is not None else (0,), dtype=x.dtype, device=x.device)
        if x is not None
        else inputs[0].new_empty(0)
        for x, asked in zip(inputs, wanted, strict=True)
    )
    return found[0] if len(inputs) == 1 else found


def _register(name: str, count: int) -> None:
    """Register the operators of `name`, which are differentiable by their first `count`
    arguments."""
    first_option = count + 1

    def split(function: Any) -> Any:
        return lambda *arguments: function(arguments[:count], *arguments[count:])

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        options = inputs[first_option : first_option + _OPTION_COUNT]
        reused, plain, *ctx.rest = inputs[first_option + _OPTION_COUNT :]
        few = plain or len(reused) > 0
        ctx.reused = len(reused)
        ctx.options = [None if isinstance(x, Tensor) else x for x in options]
        ctx.terms = 3 if few else _FIELD_COUNT
        tensors = [x if isinstance(x, Tensor) else None for x in options]
        ctx.save_for_backward(*inputs[:first_option], *tensors, *output[: ctx.terms])
        # An entropy's gradient needs more than loss and lse.
        ctx.mark_non_differentiable(*output[4:], *(output[1:4:2] if few else ()))
        ctx.set_materialize_grads(False)

    def gradient(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        inputs, labels, terms = saved[:count], saved[count], list(saved[-ctx.terms :])
        tensors = saved[first_option : first_option + _OPTION_COUNT]
        options = [x if y is None else y for x, y in zip(ctx.options, tensors, strict=True)]
        ignore_index, function, backend = ctx.rest
        targets = _unpacked(options)[1]
        by = coefficients_of(RowTerms(*terms), targets, labels, ignore_index, *gradients[:4])
        found: Any = [None] * count
        if by is not None:
            wanted = list(ctx.needs_input_grad[:count])
            operator = getattr(torch.ops.emp_kernels, f"{name}_backward")
            made = operator(*inputs, labels, terms, *by, *options, wanted, function, backend)
            made = (made,) if count == 1 else made
            found = [x if asked else None for x, asked in zip(made, wanted, strict=True)]
        return *found, None, *[None] * _OPTION_COUNT, [None] * ctx.reused, *[None] * 4

    for suffix, run, fake in (
        ("", _terms, _fake_terms),
        ("_backward", _gradients, _fake_gradients),
    ):
        _library.impl(name + suffix, split(run), "CompositeExplicitAutograd")
        torch.library.register_fake(f"{NAMESPACE}::{name}{suffix}", split(fake), lib=_library)
    torch.library.register_autograd(
        f"{NAMESPACE}::{name}", gradient, setup_context=keep, lib=_library
    )


for _name, _count in _INPUTS.items():
    _register(_name, _count)


def differentiable_terms(
    inputs: Sequence[Tensor | None],
    labels: Tensor,
    adjustment: Adjustment,
    targets: Targets | None,
    reused: RowTerms | None,
    ignore_index: int | None,
    function: str,
    backend: str | None,
    plain: bool = False,
) -> tuple[RowTerms, tuple[Tensor, ...]]:
    """Terms of rows of logits or of a product (hidden, weight, bias), and the differentiable ones
    among them; with `plain`, loss and lse as parts of one tensor."""
    operator = torch.ops.emp_kernels.row_terms
    if len(inputs) > 1:
        operator = torch.ops.emp_kernels.linear_terms
    known = [] if reused is None else list(reused[:3])
    options = _packed(adjustment, targets)
    found = operator(*inputs, labels, *options, known, plain, ignore_index, function, backend)
    return RowTerms(*found), tuple(found[:4])
