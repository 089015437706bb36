"""Losses with options, computed from the rows' terms, and the terms' gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from . import ops, term_ops
from .distributed.columns import Columns
from .distributed.term_shards import IGNORED, WholeRows, whole_terms
from .gradient import NotTwice, SomeRows
from .options import LossOptions
from .results import Selection
from .state import EMPState
from .terms import Adjustment, Coefficients, RowTerms, Targets, coefficients_of, scores_of
from .trained_rows import (
    check_reused_adjustment,
    check_rows,
    check_unremembered,
    only,
    reused_scores,
)
from .validation import as_int64


class Rows(NamedTuple):
    """Rows of logits (..., C) and labels (...), read by a backend in one forward and one backward
    pass; or, for a `product`, of hidden (..., D), weight (C, D) and bias (C,) or None.

    Attributes:
        chosen: the backend; None if the call is traced, where the operator chooses it.
        labels: of the rows to read; the others are `ignore_index`.
        reused: terms to reuse, in which case the forward pass reads nothing.
        whole: further information on rows with sharded columns.
        expected: the derivative of the result by each row's `target`, if it alone is
            differentiated and the forward pass is to make the gradient with the terms.
    """

    function: str
    chosen: Any
    labels: torch.Tensor
    ignore_index: int | None
    adjustment: Adjustment
    targets: Targets | None = None
    reused: RowTerms | None = None
    product: bool = False
    backend: str | None = None  # as requested, for the operator to resolve
    weighted_only: bool = False  # only the loss of unadjusted logits is differentiated
    whole: WholeRows | None = None
    expected: float | None = None

    def over(
        self,
        columns: Columns | None,
        inputs: Sequence[torch.Tensor | None],
        options: LossOptions | None = None,
    ) -> Rows:
        """These rows if only `columns` of them are local: their terms are computed and
        exchanged."""
        if columns is None:
            return self
        whole = whole_terms(
            self.function, self.chosen, inputs, self.labels, columns,
            options or LossOptions(self.adjustment), self.ignore_index, self.reused,
        )  # fmt: skip
        return self._replace(
            labels=whole.labels, ignore_index=IGNORED, targets=whole.targets, reused=whole.terms,
            whole=whole, weighted_only=False, expected=None,
        )  # fmt: skip

    def terms(self, *inputs: torch.Tensor | None) -> RowTerms:
        if self.reused is not None:
            return self.reused
        if self.weighted_only:
            scores = self.chosen.score(*inputs, self.labels, 1.0, self.ignore_index, self.function)
            return RowTerms(*(x.reshape(-1) for x in scores[1:4]))
        options = self.adjustment, self.targets, self.ignore_index, self.function
        found: RowTerms
        if self.product:
            hidden, weight, bias = inputs
            found = self.chosen.linear_terms(hidden, weight, self.labels, bias, *options)
        else:
            found = self.chosen.row_terms(*inputs, self.labels, *options)
        return found

    def gradients(
        self,
        inputs: Sequence[torch.Tensor | None],
        terms: RowTerms,
        coefficients: Coefficients,
        wanted: Sequence[bool],
    ) -> Sequence[torch.Tensor | None]:
        if self.weighted_only:  # the scale of each row's p - onehot
            made = terms.loss, terms.lse, coefficients.probability
            return (self.chosen.cross_entropy_backward(*inputs, self.labels, *made),)
        options = self.adjustment, self.targets
        found: Sequence[torch.Tensor | None]
        if self.product:
            hidden, weight, bias = inputs
            add_up = None if self.whole is None else self.whole.add_up
            found = self.chosen.linear_terms_backward(
                hidden, weight, self.labels, bias, terms, coefficients, *options, wanted, add_up
            )
        else:
            logits, labels = inputs[0], self.labels
            found = (self.chosen.row_terms_backward(logits, labels, terms, coefficients, *options),)
        return found


def differentiable_terms(
    rows: Rows, *inputs: torch.Tensor | None
) -> tuple[RowTerms, tuple[torch.Tensor, ...]]:
    """The rows' terms, and their loss, entropy, lse and target (0 without Targets), (N,),
    differentiable once with respect to the inputs; with probabilities the loss is not."""
    if rows.chosen is None:  # traced
        return term_ops.differentiable_terms(
            inputs, rows.labels, rows.adjustment, rows.targets, rows.reused, rows.ignore_index,
            rows.function, rows.backend, rows.weighted_only,
        )  # fmt: skip
    ready = None
    with torch.no_grad():
        if rows.expected is None:
            terms = rows.terms(*inputs)
        else:
            terms, ready = rows.chosen.row_terms_with_gradient(
                *inputs, rows.labels, rows.adjustment, rows.targets, rows.expected
            )
    return terms, _Terms.apply(rows, terms, ready, *inputs)


# A larger gradient, in bytes, is not held between the forward and the backward pass.
_READY_BYTES = 64 << 20


def _expected(
    chosen: Any, logits: torch.Tensor, options: LossOptions, rows: int, reduction: str
) -> float | None:
    """See Rows: where labels are probabilities, whose read costs more than the arithmetic."""
    if options.probabilities is None or options.z_loss or options.sample_weight is not None:
        return None
    if not (logits.requires_grad and torch.is_grad_enabled()) or not rows:
        return None
    if not hasattr(chosen, "row_terms_with_gradient") or logits.nbytes > _READY_BYTES:
        return None
    share = torch.ones(()).div(rows).item()  # as rounded by autograd
    return {"mean": share, "sum": 1.0}.get(reduction)


class _Terms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Rows,
        terms: RowTerms,
        ready: torch.Tensor | None,
        *inputs: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...]:
        ctx.rows, ctx.ready = rows, ready
        ctx.inputs = len(inputs)
        ctx.save_for_backward(*inputs, *terms)
        ctx.set_materialize_grads(False)
        target = torch.zeros_like(terms.loss) if terms.target is None else terms.target.clone()
        return terms.loss.clone(), terms.entropy.clone(), terms.lse.clone(), target

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        saved, rows = ctx.saved_tensors, ctx.rows
        inputs, terms = saved[: ctx.inputs], RowTerms(*saved[ctx.inputs :])
        found: Sequence[torch.Tensor | None] = [None] * ctx.inputs
        with torch.no_grad():
            by_loss, by_entropy, by_lse, by_target = gradients
            ready, ctx.ready = ctx.ready, None  # who gets it may change it
            if ready is not None and by_loss is by_entropy is by_lse is None:
                ready = _scaled(ready, by_target, rows.expected)
            else:
                ready = None
            elsewhere = None if rows.whole is None else rows.whole.elsewhere
            coefficients = None
            if ready is None:
                coefficients = coefficients_of(
                    terms, rows.targets, rows.labels, rows.ignore_index,
                    by_loss, by_entropy, by_lse, by_target, elsewhere,
                )  # fmt: skip
            if ready is not None:
                found = (ready,)
            elif coefficients is not None:
                found = rows.gradients(inputs, terms, coefficients, ctx.needs_input_grad[3:])
        if torch.is_grad_enabled():  # create_graph=True
            origins = [x for x in (*inputs, *gradients) if x is not None]
            found = [x if x is None else NotTwice.apply(rows.function, x, *origins) for x in found]
        return (None, None, None, *found)


def _scaled(
    ready: torch.Tensor, by_target: torch.Tensor | None, expected: float | None
) -> torch.Tensor | None:
    """The gradient for `by_target` from `ready`, which was made for `expected` in all rows; None if
    it has to be computed again, as in 16 bits, which would be rounded twice."""
    if by_target is None or not len(by_target):
        return None
    lowest, highest = (float(x) for x in by_target.aminmax())
    if lowest == highest == expected:
        return ready
    if not lowest == highest != 0.0 or expected is None or ready.dtype is not torch.float32:
        return None
    return ready.mul_(highest / expected)


def losses_of(rows: Rows, options: LossOptions, values: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Each row's loss with `options`, (N,), from the differentiable terms; NaN if a logit is
    +inf."""
    loss, _, lse, target = values
    invalid = (lse - lse).detach()
    if options.probabilities is not None:
        found = target
    else:
        found = loss
        if options.weight is not None:
            found = found * class_weights(rows, options).to(found.dtype)
        if options.label_smoothing:
            found = found * (1 - options.label_smoothing) + target
    found = found + invalid
    if options.z_loss:
        found = found + options.z_loss * lse * lse
    if options.sample_weight is not None:
        found = found * options.sample_weight.to(found.dtype)
    return found


def class_weights(rows: Rows, options: LossOptions) -> torch.Tensor:
    """weight[y] (N,), 0 for ignored rows."""
    assert options.weight is not None
    if rows.whole is not None and rows.whole.label_weight is not None:
        return rows.whole.label_weight
    y = as_int64(rows.labels).reshape(-1)
    weight = options.weight[y.clamp(0, max(0, len(options.weight) - 1))]
    return weight if rows.ignore_index is None else weight.masked_fill(y == rows.ignore_index, 0.0)


def reduced(
    losses: torch.Tensor,
    rows: Rows,
    options: LossOptions,
    labels: torch.Tensor,
    positions: torch.Tensor | None,
    counted: torch.Tensor | None,
    reduction: str,
) -> torch.Tensor:
    """The reduction of `losses` (N,) of all rows, or of those at `positions` (K,) that are
    `counted`."""
    divisors = None
    if reduction == "mean" and options.weight is not None and options.probabilities is None:
        divisors = class_weights(rows._replace(labels=labels), options)
    if positions is not None:
        losses = losses[positions]
        divisors = None if divisors is None else divisors[positions]
    if counted is not None:
        losses = losses.masked_fill(~counted, 0.0)
        divisors = None if divisors is None else divisors.masked_fill(~counted, 0.0)
    if reduction == "none":
        return losses
    if reduction == "sum":
        return losses.sum()
    if divisors is not None:
        return losses.sum() / divisors.sum().to(losses.dtype)
    return losses.mean() if counted is None else losses.sum() / counted.sum()


def loss_with_options(
    function: str,
    chosen: Any,
    inputs: Sequence[torch.Tensor | None],
    labels: torch.Tensor,
    classes: int,
    options: LossOptions,
    *,
    state: EMPState | None = None,
    indices: torch.Tensor | None = None,
    rows: torch.Tensor | Selection | None = None,
    ignore_index: int | None,
    reduction: str,
    columns: Columns | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """The loss from checked arguments, including `indices`, by the terms of each row of logits or
    of a product of hidden, weight and bias; `columns` are the local ones if they are sharded."""
    first = inputs[0]
    assert first is not None
    n, reused, trained = labels.numel(), None, None
    if isinstance(rows, Selection):
        check_unremembered(function, state)
        scores = reused_scores(function, rows, labels, first.dtype)
        trained = check_rows(function, rows.indices, n, first)
        if options.reuses:
            reused = RowTerms(*scores[1:4])
            if chosen is not None and columns is None:
                check_reused_adjustment(function, inputs, scores, trained, options.adjustment)
    elif rows is not None:
        trained = check_rows(function, rows, n, first)
    read, skipped = labels, ignore_index
    if state is None and trained is not None and reused is None:
        read, skipped = only(labels, trained, ignore_index)
    targets, product = options.targets(classes), len(inputs) > 1
    plan = Rows(
        function, chosen, read, skipped, options.adjustment, targets, reused, product, backend
    )
    as_given = options.adjustment.changes_nothing and targets is None and options.z_loss == 0.0
    if as_given and not product:  # the plain loss's kernels
        plan = plan._replace(weighted_only=True)
    elif trained is None and columns is None:
        plan = plan._replace(expected=_expected(chosen, first, options, n, reduction))
    plan = plan.over(columns, inputs, options)
    terms, values = differentiable_terms(plan, *inputs)
    if state is not None:
        if indices is None:
            indices = torch.arange(n, device=labels.device)
        scores = scores_of(terms, state.beta, read, skipped)
        (chosen or ops).update_state(state, indices, scores, function)
    which = SomeRows.of(chosen, None, labels, trained, ignore_index, reduction)
    losses = losses_of(plan, options, values)
    found = reduced(losses, plan, options, labels, which.positions, which.counted, reduction)
    return found.reshape(which.shape) if reduction == "none" else found
