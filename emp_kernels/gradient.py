"""The rows of a training loss, and its gradient."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import torch

from .results import Scores
from .validation import as_int64

if TYPE_CHECKING:
    from .state import EMPState

# What the forward pass saves for the backward pass: result, loss (N,), lse (N,), rows that count.
Forward = tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]


class EveryRow(NamedTuple):
    """All rows, on a backend that scores, stores and reduces them in one call: few operations,
    because a small batch's loss is dominated by operations whose code is not cached in a training
    step."""

    chosen: ModuleType
    state: EMPState | None
    indices: torch.Tensor | None
    ignore_index: int | None
    reduction: str
    function: str

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> Forward:
        chosen, state, indices, ignore_index, reduction, function = self
        found: Forward = chosen.cross_entropy(
            logits, labels, state, indices, ignore_index, reduction, function
        )
        return found

    def backward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        loss: torch.Tensor,
        lse: torch.Tensor,
        counted: int,
        gradient: torch.Tensor,
    ) -> torch.Tensor:
        divisor = counted if self.reduction == "mean" else 1
        result: torch.Tensor = self.chosen.cross_entropy_backward(
            logits, labels, loss, lse, gradient, divisor, self.ignore_index
        )
        return result


class Sharded(NamedTuple):
    """For rows of which only the columns from `start` on are local: the whole rows' maximum and the
    log-sum-exp relative to it, (N,)."""

    start: int
    maximum: torch.Tensor
    above: torch.Tensor


class SomeRows(NamedTuple):
    """Rows whose scores are already computed.

    Attributes:
        chosen: the backend.
        scores: of all N rows, flattened.
        shape: of the losses.
        positions: (K,) int64 in [0, N), or None for all rows in their order.
        counted: bool for the positions (or for all rows), False for rows that do not count; None if
            all count.
        reduction: "mean", "sum" or "none".
        sharded: for rows with sharded columns.
    """

    chosen: ModuleType
    scores: Scores
    shape: torch.Size
    positions: torch.Tensor | None
    counted: torch.Tensor | None
    reduction: str
    sharded: Sharded | None = None

    @staticmethod
    def of(
        chosen: ModuleType,
        scores: Any,
        labels: torch.Tensor,
        positions: torch.Tensor | None,
        ignore_index: int | None,
        reduction: str,
        sharded: Sharded | None = None,
    ) -> SomeRows:
        size, shape = labels.numel(), labels.shape
        counted = None
        if positions is not None:
            shape = positions.shape
            if positions.device.type != "cpu":  # a Selection may be padded with -1
                counted = (positions >= 0) & (positions < size)
                positions = positions.clamp(0, max(0, size - 1))
        if ignore_index is not None:
            read = (as_int64(labels) != ignore_index).reshape(-1)
            read = read if positions is None else read[positions]
            counted = read if counted is None else counted & read
        return SomeRows(chosen, scores, shape, positions, counted, reduction, sharded)

    def forward(self, logits: torch.Tensor, labels: torch.Tensor) -> Forward:
        loss, lse = self.scores.loss, self.scores.lse
        return self._reduced(loss + (lse - lse)), loss, lse, 0  # NaN if a logit is +inf

    def _reduced(self, loss: torch.Tensor) -> torch.Tensor:
        if self.positions is not None:
            loss = loss[self.positions]
        if self.counted is not None:
            loss = loss.masked_fill(~self.counted, 0.0)
        if self.reduction == "none":
            return loss.reshape(self.shape).clone()  # a copy, so that it can be modified in place
        if self.reduction == "sum":
            return loss.sum()
        return loss.mean() if self.counted is None else loss.sum() / self.counted.sum()

    def backward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        loss: torch.Tensor,
        lse: torch.Tensor,
        _: int,
        gradient: torch.Tensor,
    ) -> torch.Tensor:
        scales = self.scales(gradient, len(loss))
        maximum = None
        if self.sharded is not None:
            start, maximum, lse = self.sharded
            labels = as_int64(labels) - start
        result: torch.Tensor = self.chosen.cross_entropy_backward(
            logits, labels, loss, lse, scales, maximum=maximum
        )
        return result

    def scales(self, gradient: torch.Tensor, size: int) -> torch.Tensor:
        """The scale of each row's (p - onehot), (N,); 0 for rows that are not trained."""
        rows = size if self.positions is None else self.shape.numel()
        if self.reduction == "mean":
            gradient = gradient / (rows if self.counted is None else self.counted.sum())
        scales = gradient.reshape(-1).expand(rows)
        if self.counted is not None:
            scales = scales.masked_fill(~self.counted, 0.0)
        if self.positions is None:
            return scales.contiguous()
        return scales.new_zeros(size).index_add_(0, self.positions, scales)


def differentiable(
    logits: torch.Tensor,
    labels: torch.Tensor,
    plan: EveryRow | SomeRows,
    found: Forward | None = None,
    ready: torch.Tensor | None = None,
) -> torch.Tensor:
    """The plan's result, differentiable once with respect to `logits`. `found` is what its forward
    pass gave, if it was made already, and `ready` the result's gradient, if that was too."""
    loss: torch.Tensor = _CrossEntropy.apply(logits, labels, plan, found, ready)
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        labels: torch.Tensor,
        plan: EveryRow | SomeRows,
        found: Forward | None,
        ready: torch.Tensor | None,
    ) -> torch.Tensor:
        result, loss, lse, ctx.counted = found or plan.forward(logits, labels)
        ctx.plan, ctx.ready = plan, ready
        ctx.save_for_backward(logits, labels, loss, lse)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        saved = ctx.saved_tensors
        result, ctx.ready = ctx.ready, None  # who gets it may change it
        if result is None or gradient.item() != 1.0:
            with torch.no_grad():
                result = ctx.plan.backward(*saved, ctx.counted, gradient)
        if torch.is_grad_enabled():  # create_graph=True
            result = NotTwice.apply("cross_entropy", result, saved[0], gradient)
        return result, None, None, None, None


class NotTwice(torch.autograd.Function):
    """The identity on a gradient that must not be differentiated."""

    @staticmethod
    def forward(
        ctx: Any, function: str, result: torch.Tensor, *inputs: torch.Tensor | None
    ) -> torch.Tensor:
        ctx.function = function
        return result.view_as(result)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> NoReturn:
        raise RuntimeError(
            f"{ctx.function}: the gradient must not be differentiated again (its kernels compute "
            "first derivatives only); use torch.nn.functional.cross_entropy for second ones"
        )
