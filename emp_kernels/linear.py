"""Scores and the training loss of logits hidden @ weightᵀ + bias that are never materialised."""

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
from .trained_rows import check_reduction, check_rows, only, reused_scores
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

    The product is computed one tile at a time and each tile is reduced immediately, with the
    accuracy of `score` on the tile's values; a call needs O(N) memory and a few megabytes besides
    its arguments. On the CPU products are torch's (16-bit tiles are rounded as torch's result would
    be; float32 if the processor has no 16-bit product), in Triton float32 sums of exact products.

    Autocast has no effect: tensors are used in their own dtype.
    ``torch.compile`` takes the call as an operator; with shards it is a graph break.

    Args:
        hidden: (..., D) float32, float16 or bfloat16 (float64: reference backend). Ignored rows are
            not multiplied.
        weight: (C, D) of the same dtype.
        labels: (...) of any integer dtype, in [0, C) or equal to `ignore_index`.
        bias: (C,) of the same dtype, or None.
        beta, temperature, softcap, ignore_index, backend: as in :func:`emp_kernels.score`.
        group, vocab_start: weight and bias are this rank's rows [vocab_start, vocab_start +
            C_local) of the vocabulary; or they are DTensors sharded on dimension 0, for which both
            are None. The ranks' rows must cover the vocabulary without gaps or overlap, in any
            order of the ranks; C_local may differ and be 0. All ranks of `group` (None: the default
            one, or that of the DTensor's mesh) must call with equal hidden and other arguments;
            with one collective, each gets bitwise equal scores of whole rows.

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

    Equals ``torch.nn.functional.cross_entropy`` (of the logits at `rows` if given). Only trained
    rows are multiplied, forward and backward. The backward pass recomputes each tile of the logits
    (on the CPU, if there are no more rows than D, the tiles are stored in the weight gradient's
    memory instead): with G = (softmax - onehot) / number of rows that count, one tile at a time::

        d loss / d hidden = G @ weight,   d loss / d weight = Gᵀ @ hidden,   d loss / d bias = Σ G

    Besides the gradients this takes K * D float32 sums for K trained rows, and a few tiles.
    Differentiable once. ``torch.compile`` takes the call as an operator; with shards it is a graph
    break.

    Args:
        hidden: (..., D) float32, float16 or bfloat16 (float64: reference backend).
        weight: (C, D) of the same dtype.
        labels: (...) of any integer dtype, in [0, C) or equal to `ignore_index`.
        bias: (C,) of the same dtype, or None.
        rows: (K,) integer positions, in the flattened leading dimensions, of the rows to train on;
            None trains on all. A Selection trains on its rows and reuses its losses, so that the
            forward pass computes no product (with label_smoothing it does, for those rows); its
            temperature and softcap must be those of the loss, as in
            :func:`emp_kernels.cross_entropy`.
        class_weight, sample_weight, label_smoothing, z_loss, temperature, softcap: as `weight` and
            the others in :func:`emp_kernels.cross_entropy`.
        ignore_index: rows with this label are skipped and do not count. None ignores nothing.
        reduction: "mean" over the rows that count (NaN if there are none), "sum", or "none".
        group, vocab_start: as in :func:`score_linear`: weight, bias and class_weight, (C_local,),
            are this rank's rows of the vocabulary. Each rank gets the loss of whole rows with one
            collective, and the gradients of its weight and bias; hidden's gradient, the same on all
            ranks, takes one reduction in the backward pass, of the trained rows in float32.
        backend: None for the fastest, or "reference", "cpu" or "triton".

    Returns:
        () float32 nats, or, for "none", the loss of each row: (K,) if rows are given, else of the
        labels' shape, 0 for ignored rows.

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
        scores = reused_scores(function, rows, labels, hidden.dtype)
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
    materialised; differentiable once with respect to hidden, weight and bias, like
    :func:`emp_kernels.linear_cross_entropy`.

    Args:
        hidden: (..., D) float32, float16 or bfloat16 (float64: reference backend).
        weight: (C, D) of the same dtype.
        labels: (...) of any integer dtype, in [0, C) or equal to `ignore_index`.
        bias: (C,) of the same dtype, or None.
        temperature, softcap, ignore_index, backend: as in
            :func:`emp_kernels.log_prob_and_entropy`. Ignored rows are not multiplied.
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
        kept, ctx.kept = ctx.kept, None  # the gradient overwrites them
        with torch.no_grad():
            found = trained.chosen.linear_cross_entropy_backward(
                hidden, weight, labels, bias, loss, lse, trained.scales(gradient, len(loss)),
                ctx.needs_input_grad[:3], kept,
            )  # fmt: skip
        if torch.is_grad_enabled():  # create_graph=True
            name, inputs = "linear_cross_entropy", (hidden, weight, bias, gradient)
            found = [x if x is None else NotTwice.apply(name, x, *inputs) for x in found]
        return (*found, None, None, None)
