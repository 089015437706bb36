"""Scores and the training loss of hidden @ weightᵀ + bias, whose logits are never materialised."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from . import backends, term_ops
from .compiling import outside_compiler_where
from .distributed.columns import is_sharded, local_part, product_shard_of
from .distributed.term_shards import whole_terms
from .gradient import NotTwice, SomeRows
from .options import LossOptions, check_adjustment, check_options
from .products import check_product
from .results import LogProbs, Scores, Selection
from .terms import scores_of
from .tiles import KeptTiles
from .tracing import records
from .trained_rows import check_reduction, check_rows, lent_scores, only
from .validation import (
    check_beta,
    check_ignore_index,
    check_labels,
)
from .weighted_loss import Rows, differentiable_terms, loss_with_options


def _is_shard(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    *_: Any,
    group: dist.ProcessGroup | None = None,
    vocab_start: int | None = None,
    **__: Any,
) -> bool:
    return is_sharded(weight, vocab_start, group)


@outside_compiler_where(_is_shard)
def score_linear(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    beta: float = 1.0,
    temperature: float | torch.Tensor = 1.0,
    softcap: float | None = None,
    ignore_index: int | None = None,
    group: dist.ProcessGroup | None = None,
    vocab_start: int | None = None,
    backend: str | None = None,
) -> Scores:
    """:func:`emp_kernels.score` of logits = hidden @ weightᵀ + bias, which are never materialised.

    A tile of the product is made at a time and reduced at once, with the accuracy of `score` on
    what the tile holds: what a call needs beside its arguments is O(N) and a few megabytes. The
    products are torch's on the CPU (16-bit tiles are rounded as torch's result would be; float32
    where the processor has no such product), and float32 sums of exact products in Triton.

    Autocast changes nothing: tensors are taken in the dtype that they have.
    ``torch.compile`` takes the call as an operator; with shards it is a graph break.

    Args:
        hidden: (..., D) float32, float16 or bfloat16 (float64: reference backend). Rows that are
            ignored take no part in the product.
        weight: (C, D) of the same dtype.
        labels: (...) of any integer dtype, in [0, C) or equal to `ignore_index`.
        bias: (C,) of the same dtype, or None.
        beta, temperature, softcap, ignore_index, backend: as in :func:`emp_kernels.score`.
        group, vocab_start: weight and bias are this rank's rows [vocab_start, vocab_start +
            C_local) of the vocabulary, and so is a DTensor sharded on dimension 0, for which both
            are None. The ranks' rows follow one another without gaps, in any order of the ranks;
            C_local may differ and be 0. All ranks of `group` (None: the default one, or that of the
            DTensor's mesh) must call, with hidden and everything else alike; with one collective,
            each gets the scores of whole rows, the same bits.

    Returns:
        Scores(score, loss, entropy, lse), float32 of the labels' shape, without autograd
        (:func:`linear_cross_entropy` is the loss that carries a gradient).

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`emp_kernels.score`, and with shards as
            :func:`emp_kernels.distributed.score_vocab_parallel`.
    """
    function = "score_linear"
    columns = None
    if is_sharded(weight, vocab_start, group):
        hidden, weight, bias, labels, columns = product_shard_of(
            function, hidden, weight, bias, labels, vocab_start, group
        )
    check_product(function, hidden, weight, bias)
    check_labels(function, labels, hidden, "hidden")
    beta = check_beta(function, beta)
    ignore_index = check_ignore_index(function, ignore_index)
    adjustment = check_adjustment(function, temperature, softcap, labels)
    if columns is None and records(function):
        inputs = tuple(None if x is None else x.detach() for x in (hidden, weight, bias))
        terms, _ = term_ops.differentiable_terms(
            inputs, labels, adjustment, None, None, ignore_index, function, backend
        )
        return scores_of(terms, beta, labels, ignore_index)
    chosen = backends.resolve(function, backend, hidden)
    if columns is not None:
        product, options = (hidden, weight, bias), LossOptions(adjustment)
        whole = whole_terms(function, chosen, product, labels, columns, options, ignore_index)
        return scores_of(whole.terms, beta, labels, ignore_index)
    if not adjustment.changes_nothing:
        with torch.no_grad():
            terms = chosen.linear_terms(
                hidden, weight, labels, bias, adjustment, None, ignore_index, function
            )
        return scores_of(terms, beta, labels, ignore_index)
    scores: Scores = chosen.score_linear(hidden, weight, labels, bias, beta, ignore_index)
    return scores


@outside_compiler_where(_is_shard)
def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    rows: torch.Tensor | Selection | None = None,
    class_weight: torch.Tensor | None = None,
    sample_weight: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    temperature: float | torch.Tensor = 1.0,
    softcap: float | None = None,
    ignore_index: int | None = None,
    reduction: str = "mean",
    group: dist.ProcessGroup | None = None,
    vocab_start: int | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    """:func:`emp_kernels.cross_entropy` of logits = hidden @ weightᵀ + bias, never materialised.

    Equals ``torch.nn.functional.cross_entropy`` (of the logits at `rows` when they are given).
    Only rows that are trained on take part in a product, forward and backward, which makes each
    tile of the logits once more (on the CPU, tiles of no more rows than the weight's gradient has
    columns wait in that gradient's memory instead): with G = (softmax - onehot) / rows that count,
    a tile at a time::

        d loss / d hidden = G @ weight,   d loss / d weight = Gᵀ @ hidden,   d loss / d bias = Σ G

    Beside the gradients themselves that takes K * D float32 sums for K trained rows, and a few
    tiles. Differentiable once. ``torch.compile`` takes the call as an operator; with shards it is a
    graph break.

    Args:
        hidden: (..., D) float32, float16 or bfloat16 (float64: reference backend).
        weight: (C, D) of the same dtype.
        labels: (...) of any integer dtype, in [0, C) or equal to `ignore_index`.
        bias: (C,) of the same dtype, or None.
        rows: (K,) integer positions, in the flattened leading dimensions, of the rows that are
            trained on; None trains on all. Of a Selection, its rows are trained on and
            its losses are reused, so that the forward pass multiplies nothing (with
            label_smoothing it multiplies those rows).
        class_weight, sample_weight, label_smoothing, z_loss, temperature, softcap: as `weight` and
            the others in :func:`emp_kernels.cross_entropy`.
        ignore_index: rows with this label take no part and do not count. None ignores nothing.
        reduction: "mean" over the rows that count (NaN when there are none), "sum", or "none".
        group, vocab_start: as in :func:`score_linear`: weight, bias and class_weight, (C_local,),
            are this rank's rows of the vocabulary. Each rank gets the loss of whole rows with one
            collective, and the gradients of its weight and bias; that of hidden, the same on all
            ranks, is one reduction in the backward pass, of the trained rows in float32.
        backend: None for the fastest, or "reference", "cpu" or "triton".

    Returns:
        () float32 nats, or, for "none", the loss of each row: (K,) when rows are given, else of
        the labels' shape, 0 where ignored.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, a label or row out of range (on CPU), different devices.
        RuntimeError: the named backend is not available; differentiated twice; a rank of `group`
            died or did not call.
    """
    function = "linear_cross_entropy"
    columns = None
    if is_sharded(weight, vocab_start, group):
        class_weight = local_part(class_weight)
        hidden, weight, bias, labels, columns = product_shard_of(
            function, hidden, weight, bias, labels, vocab_start, group
        )
    check_product(function, hidden, weight, bias)
    check_labels(function, labels, hidden, "hidden")
    ignore_index = check_ignore_index(function, ignore_index)
    adjustment = check_adjustment(function, temperature, softcap, labels)
    options = check_options(
        function,
        labels,
        weight.shape[0],
        adjustment=adjustment,
        weight=class_weight,
        sample_weight=sample_weight,
        label_smoothing=label_smoothing,
        z_loss=z_loss,
        weight_name="class_weight",
    )
    check_reduction(function, reduction)
    recorded = columns is None and records(function)
    chosen = None if recorded else backends.resolve(function, backend, hidden)
    if options is not None or columns is not None or chosen is None:
        return loss_with_options(
            function,
            chosen,
            (hidden, weight, bias),
            labels,
            weight.shape[0],
            options or LossOptions(adjustment),
            rows=rows,
            ignore_index=ignore_index,
            reduction=reduction,
            columns=columns,
            backend=backend,
        )
    inputs = (hidden, weight) if bias is None else (hidden, weight, bias)
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    kept = None
    if isinstance(rows, Selection):
        positions = check_rows(function, rows.indices, labels.numel(), hidden)
        scores = lent_scores(function, rows, labels, hidden.dtype)
    else:
        positions, read, skipped = None, labels, ignore_index
        if rows is not None:
            positions = check_rows(function, rows, labels.numel(), hidden)
            read, skipped = only(labels, positions, ignore_index)
        if wanted and weight.requires_grad:
            kept = KeptTiles()
        scores = chosen.score_linear(hidden, weight, read, bias, 1.0, skipped, function, kept)
        scores = Scores(*(field.reshape(-1) for field in scores))
    trained = SomeRows.of(chosen, scores, labels, positions, ignore_index, reduction)
    if wanted or backends.forward_mode():
        loss: torch.Tensor = _LinearCrossEntropy.apply(hidden, weight, bias, labels, trained, kept)
        return loss
    return trained.forward(hidden, labels)[0]


@outside_compiler_where(_is_shard)
def linear_log_prob_and_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    temperature: float | torch.Tensor = 1.0,
    softcap: float | None = None,
    ignore_index: int | None = None,
    group: dist.ProcessGroup | None = None,
    vocab_start: int | None = None,
    backend: str | None = None,
) -> LogProbs:
    """:func:`emp_kernels.log_prob_and_entropy` of logits = hidden @ weightᵀ + bias, which are never
    materialised; differentiable once by hidden, weight and bias, as
    :func:`emp_kernels.linear_cross_entropy` is.

    Args:
        hidden: (..., D) float32, float16 or bfloat16 (float64: reference backend).
        weight: (C, D) of the same dtype.
        labels: (...) of any integer dtype, in [0, C) or equal to `ignore_index`.
        bias: (C,) of the same dtype, or None.
        temperature, softcap, ignore_index, backend: as in
            :func:`emp_kernels.log_prob_and_entropy`. Ignored rows take no part in a product.
        group, vocab_start: as in :func:`linear_cross_entropy`.

    Returns:
        LogProbs(log_prob, entropy, lse), float32 nats of the labels' shape.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`emp_kernels.log_prob_and_entropy`.
    """
    function = "linear_log_prob_and_entropy"
    columns = None
    if is_sharded(weight, vocab_start, group):
        hidden, weight, bias, labels, columns = product_shard_of(
            function, hidden, weight, bias, labels, vocab_start, group
        )
    check_product(function, hidden, weight, bias)
    check_labels(function, labels, hidden, "hidden")
    ignore_index = check_ignore_index(function, ignore_index)
    adjustment = check_adjustment(function, temperature, softcap, labels)
    recorded = columns is None and records(function)
    chosen = None if recorded else backends.resolve(function, backend, hidden)
    rows = Rows(function, chosen, labels, ignore_index, adjustment, product=True, backend=backend)
    rows = rows.over(columns, (hidden, weight, bias))
    _, (loss, entropy, lse, _) = differentiable_terms(rows, hidden, weight, bias)
    return LogProbs(*(x.reshape(labels.shape) for x in (-loss, entropy, lse)))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        labels: torch.Tensor,
        trained: SomeRows,
        kept: KeptTiles | None,
    ) -> torch.Tensor:
        result, loss, lse, _ = trained.forward(hidden, labels)
        ctx.save_for_backward(hidden, weight, bias, labels, loss, lse)
        ctx.trained, ctx.kept = trained, kept
        return result

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, labels, loss, lse = ctx.saved_tensors
        trained: SomeRows = ctx.trained
        kept, ctx.kept = ctx.kept, None  # the gradient is written over them
        with torch.no_grad():
            found = trained.chosen.linear_cross_entropy_backward(
                hidden, weight, labels, bias, loss, lse, trained.scales(gradient, len(loss)),
                ctx.needs_input_grad[:3], kept,
            )  # fmt: skip
        if torch.is_grad_enabled():  # create_graph=True
            name, inputs = "linear_cross_entropy", (hidden, weight, bias, gradient)
            found = [x if x is None else NotTwice.apply(name, x, *inputs) for x in found]
        return (*found, None, None, None)
