"""Terms of losses with options as operators of ``torch.ops.emp_kernels``, with their gradient: what
``torch.compile`` sees of the losses.

Each answers with all of RowTerms' fields, those that there are not as zeros: an operator's results
must not depend on the backend that serves it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import backends
from .ops import NAMESPACE, _owned
from .terms import Adjustment, Coefficients, RowTerms, Targets, coefficients_of

_library = torch.library.Library(NAMESPACE, "FRAGMENT")
_OPTIONS = (
    "float temperature, Tensor? temperatures, float? softcap, bool weighs, Tensor? weight, "
    "Tensor? probabilities, float share, float uniform"
)
_FIELDS = len(RowTerms._fields)
for _schema in (
    f"row_terms(Tensor logits, Tensor labels, {_OPTIONS}, int? ignore_index, str? backend) -> "
    f"({', '.join(['Tensor'] * _FIELDS)})",
    f"row_terms_backward(Tensor logits, Tensor labels, Tensor[] terms, Tensor probability, "
    f"Tensor entropy, Tensor target, Tensor rest, {_OPTIONS}, str? backend) -> Tensor",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


def _packed(adjustment: Adjustment, targets: Targets | None) -> tuple[Any, ...]:
    """The operators' _OPTIONS."""
    temperature, softcap = adjustment
    weights = (False, None, None, 0.0, 0.0) if targets is None else (True, *targets)
    if isinstance(temperature, Tensor):
        return 1.0, temperature, softcap, *weights
    return temperature, None, softcap, *weights


def _unpacked(options: tuple[Any, ...]) -> tuple[Adjustment, Targets | None]:
    temperature, temperatures, softcap, weighs, *weights = options
    adjustment = Adjustment(temperature if temperatures is None else temperatures, softcap)
    return adjustment, Targets(*weights) if weighs else None


def _row_terms(logits: Tensor, labels: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *options, ignore_index, backend = rest
    adjustment, targets = _unpacked(tuple(options))
    chosen = backends.resolve("cross_entropy", backend, logits)
    found = chosen.row_terms(logits, labels, adjustment, targets, ignore_index, "cross_entropy")
    return _owned(torch.zeros_like(found.loss) if x is None else x for x in found)


def _row_terms_backward(logits: Tensor, labels: Tensor, terms: list[Tensor], *rest: Any) -> Tensor:
    probability, entropy, target, at_label, *options, backend = rest
    adjustment, targets = _unpacked(tuple(options))
    chosen = backends.resolve("cross_entropy", backend, logits)
    coefficients = Coefficients(probability, entropy, None if targets is None else target, at_label)
    found: Tensor = chosen.row_terms_backward(
        logits, labels, RowTerms(*terms), coefficients, adjustment, targets
    )
    return found


def _fake_row_terms(logits: Tensor, labels: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return tuple(labels.new_empty(labels.numel(), dtype=dtype) for _ in range(_FIELDS))


def _fake_row_terms_backward(logits: Tensor, *rest: Any) -> Tensor:
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


for _name in ("row_terms", "row_terms_backward"):
    _library.impl(_name, globals()[f"_{_name}"], "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{_name}", globals()[f"_fake_{_name}"], lib=_library)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits, labels, temperature, temperatures, softcap, weighs, weight, probabilities = inputs[:8]
    ctx.numbers = temperature, softcap, weighs, *inputs[8:]
    ctx.save_for_backward(logits, labels, temperatures, weight, probabilities, *output)
    ctx.mark_non_differentiable(*output[4:])


def _gradient(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    logits, labels, temperatures, weight, probabilities, *saved = ctx.saved_tensors
    temperature, softcap, weighs, share, uniform, ignore_index, backend = ctx.numbers
    options = (
        temperature, temperatures, softcap, weighs, weight, probabilities, share, uniform
    )  # fmt: skip
    _, targets = _unpacked(options)
    by = coefficients_of(RowTerms(*saved), targets, labels, ignore_index, *gradients[:4])
    assert by is not None
    nothing = torch.zeros_like(by.probability)
    found = torch.ops.emp_kernels.row_terms_backward(
        logits, labels, saved, *(nothing if x is None else x for x in by), *options, backend
    )
    return found, *[None] * 11


torch.library.register_autograd(
    f"{NAMESPACE}::row_terms", _gradient, setup_context=_keep, lib=_library
)


def differentiable_terms(
    logits: Tensor,
    labels: Tensor,
    adjustment: Adjustment,
    targets: Targets | None,
    ignore_index: int | None,
    backend: str | None,
) -> tuple[RowTerms, tuple[Tensor, ...]]:
    """Terms of rows, and those of them that are differentiable by the logits."""
    options = _packed(adjustment, targets)
    found = torch.ops.emp_kernels.row_terms(logits, labels, *options, ignore_index, backend)
    return RowTerms(*found), tuple(found[:4])
