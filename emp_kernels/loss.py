"""The training loss and the score of every row from one read of the logits."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch.compiler import is_compiling

from . import backends
from .compiling import outside_compiler_where
from .distributed import vocab_parallel
from .distributed.columns import Shard, is_sharded, local_part, shard_of
from .gradient import EveryRow, Sharded, SomeRows, differentiable
from .one_row import batched, is_one_row
from .options import LossOptions, all_defaults, check_adjustment, check_options, check_targets
from .results import Scores, Selection
from .row_ids import check_ids_of_rows
from .state import EMPState
from .terms import Adjustment
from .tracing import records, transforming
from .trained_rows import check_reduction, check_rows, check_unremembered, only, reused_scores
from .validation import check_ignore_index, check_logits, check_strided
from .weighted_loss import loss_with_options


def _is_shard(
    logits: torch.Tensor,
    *_: Any,
    group: dist.ProcessGroup | None = None,
    vocab_start: int | None = None,
    **__: Any,
) -> bool:
    return is_sharded(logits, vocab_start, group)


@outside_compiler_where(_is_shard)
def cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    state: EMPState | None = None,
    *,
    indices: torch.Tensor | None = None,
    rows: torch.Tensor | Selection | None = None,
    weight: torch.Tensor | None = None,
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
    """``torch.nn.functional.cross_entropy``, which also scores every row into `state`.

    With p = softmax(z) and L = -log p_y, of each row that counts::

        loss = mean L,   d loss / d z_j = (p_j - [j = y]) / rows that count

    The forward pass reads the logits once, for both the loss and the scores; the backward pass
    reads the rows that count once and writes the gradient once, zero for the others. Nothing is
    gathered and no argument is modified, except the state. A row's own loss (``reduction="none"``)
    and gradient by it are the same bits whatever rows stand beside it, and however many.

    With options, p is the softmax of the adjusted logits a = softcap * tanh(z / softcap) /
    temperature (without softcap z / temperature), computed in float32 inside the same read, and the
    loss of a row is, with e = label_smoothing, w = weight and s = sample_weight::

        s (sum_j q_j (-log p_j) + z_loss lse^2),   q_j = w_j ((1 - e) [j = y] + e / C)

    for labels that are probabilities t_j with t_j instead of [j = y]; a q_j of 0 contributes 0,
    even if p_j is 0. "mean" divides by the sum of w_y over the rows that count or, for
    probabilities, by their number, as in torch; `sample_weight` does not change that. Gradients are
    with respect to the given logits.

    Differentiable once with respect to `logits`, by ``backward``: a second derivative and those of
    forward mode raise RuntimeError, those of ``torch.func`` TypeError. ``torch.compile``,
    ``torch.export`` and ``make_fx`` take the call as operators, also one that writes to the state;
    with `group` it is a graph break. Autocast has no effect: logits are used in their own dtype.

    Args:
        logits: (..., C), also one row (C,), float32, float16 or bfloat16 (float64: reference
            backend).
        labels: (...) of any integer dtype, in [0, C) or equal to `ignore_index`; or probabilities
            (..., C) of a floating dtype, without `ignore_index`.
        state: where the scores of all N rows are written, with the state's beta, as by
            :meth:`emp_kernels.EMPState.update`; None writes nothing. The scores are those of the
            adjusted logits, without smoothing, weights or z_loss.
        indices: (N,) the rows' sample ids in the data set. Without them the state must hold
            exactly N samples, and row i is sample i.
        rows: (K,) integer positions, in the flattened leading dimensions, of the rows to train on;
            None trains on all. A Selection, made from these logits and labels, trains on its rows
            and reuses its losses, so that the forward pass reads no logits (with label_smoothing or
            probabilities it reads those rows); state must then be None, and temperature and softcap
            those of the Selection. :func:`emp_kernels.score_and_select` has neither: with them,
            pass ``rows=selection.indices``, or a Selection made of ``emp.score(..., softcap=...)``.
        weight: (C,) of a floating dtype, per class, or None for 1.
        sample_weight: (N,) of a floating dtype, per row of all N rows, or None for 1.
        label_smoothing: in [0, 1].
        z_loss: at least 0.
        temperature: a positive number, or float32 of the labels' shape, one per row; some models
            call 1 / temperature logit_scale.
        softcap: a positive number, or None for none.
        ignore_index: rows with this label are not read and do not count. None ignores nothing.
        reduction: "mean" over the rows that count (NaN if there are none), "sum", or "none".
        group, vocab_start: logits are this rank's columns [vocab_start, vocab_start + C_local) of
            the whole rows, as in :func:`emp_kernels.distributed.score_vocab_parallel`, or a DTensor
            sharded on its last dimension; `weight`, (C_local,), and labels that are probabilities,
            (..., C_local), are sharded in the same way. All ranks of `group` must call with
            otherwise equal arguments; with one collective, in the forward pass, each gets the loss
            and scores of whole rows, and the gradient of its columns. (Smoothed probabilities take
            one more read of the logits, and on CUDA smoothing synchronises.)
        backend: None for the fastest, or "reference", "cpu" or "triton".

    Returns:
        () float32 nats, or, for "none", the loss of each row: (K,) if rows are given, else of the
        labels' shape, 0 for ignored rows.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, a label, id or row out of range (on CPU), different devices, a
            Selection of other adjusted logits (on CPU, where its first row tells); raised before
            anything is written.
        RuntimeError: the named backend is not available; differentiated twice; a rank of `group`
            died or did not call.
    """
    function = "cross_entropy"
    unchanged = all_defaults(temperature, softcap, weight, sample_weight, label_smoothing, z_loss)
    ordinary = backend is None and (state is None or type(state) is EMPState)
    if unchanged and ordinary and rows is None and group is None and vocab_start is None:
        loss = _plain_loss(logits, labels, state, indices, ignore_index, reduction)
        if loss is not None:
            return loss
    if is_one_row(logits, labels):
        loss = cross_entropy(
            logits[None], labels[None], state, indices=batched(indices), rows=rows,
            weight=weight, sample_weight=batched(sample_weight),
            label_smoothing=label_smoothing, z_loss=z_loss,
            temperature=batched(temperature), softcap=softcap, ignore_index=ignore_index,
            reduction=reduction, group=group, vocab_start=vocab_start, backend=backend,
        )  # fmt: skip
        return loss[0] if reduction == "none" and rows is None else loss
    shard = None
    if is_sharded(logits, vocab_start, group):
        shard = shard_of(function, logits, labels, vocab_start, group)
        logits, labels, weight = shard.logits, shard.labels, local_part(weight)
    check_logits(function, logits)
    ignore_index = check_ignore_index(function, ignore_index)
    labels, probabilities = check_targets(
        function, labels, logits, ignore_index, all_columns=shard is None
    )
    options = None
    if probabilities is not None or not unchanged:
        options = check_options(
            function,
            labels,
            logits.shape[-1],
            adjustment=check_adjustment(function, temperature, softcap, labels),
            weight=weight,
            sample_weight=sample_weight,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            probabilities=probabilities,
        )
    check_reduction(function, reduction)
    n = labels.numel()
    leading = logits.shape[:-1]
    if len(leading) > 1 and isinstance(indices, torch.Tensor):
        check_strided(function, "indices", indices)
        indices = indices.reshape(-1) if indices.shape == leading else indices
    state, indices = check_ids_of_rows(function, state, indices, logits, n)
    if shard is None and records(function):
        return loss_with_options(
            function,
            None,
            (logits,),
            labels,
            logits.shape[-1],
            options or LossOptions(Adjustment()),
            state=state,
            indices=indices,
            rows=rows,
            ignore_index=ignore_index,
            reduction=reduction,
            backend=backend,
        )
    if options is not None:
        chosen = backends.resolve(function, backend, logits)
        return loss_with_options(
            function,
            chosen,
            (logits,),
            labels,
            logits.shape[-1],
            options,
            state=state,
            indices=indices,
            rows=rows,
            ignore_index=ignore_index,
            reduction=reduction,
            columns=None if shard is None else shard.columns,
        )
    chosen = backends.resolve(function, backend, logits)
    plan: EveryRow | SomeRows
    sharded = None
    if rows is None and shard is None and hasattr(chosen, "cross_entropy"):
        plan = EveryRow(chosen, state, indices, ignore_index, reduction, function)
    elif isinstance(rows, Selection):
        check_unremembered(function, state)
        scores = reused_scores(function, rows, labels, logits.dtype)
        if shard is not None:  # whose maxima cannot be reused
            sharded = Sharded(shard.columns.start, scores.lse, torch.zeros_like(scores.lse))
        positions = check_rows(function, rows.indices, n, logits)
        plan = SomeRows.of(chosen, scores, labels, positions, ignore_index, reduction, sharded)
    else:
        trained = None if rows is None else check_rows(function, rows, n, logits)
        scores, sharded = _score(
            function, chosen, logits, labels, shard, state, indices, trained, ignore_index
        )
        plan = SomeRows.of(chosen, scores, labels, trained, ignore_index, reduction, sharded)
    if (logits.requires_grad and torch.is_grad_enabled()) or backends.forward_mode():
        return differentiable(logits, labels, plan)
    return plan.forward(logits, labels)[0]


def _plain_loss(
    logits: Any,
    labels: Any,
    state: EMPState | None,
    indices: Any,
    ignore_index: int | None,
    reduction: str,
) -> torch.Tensor | None:
    """The loss where arguments are what most calls pass, see :func:`backends.plain`."""
    function = "cross_entropy"
    if is_compiling() or transforming() is not None or backends.forward_mode():
        return None
    plain = backends.plain(function)
    recorded = getattr(logits, "requires_grad", False) and torch.is_grad_enabled()
    found = plain and plain(logits, labels, state, indices, ignore_index, reduction, recorded)
    if found is None:
        return None
    if not recorded:
        result: torch.Tensor = found[0]
        return result
    chosen = backends.resolve(function, None, logits)
    plan = EveryRow(chosen, state, indices, ignore_index, reduction, function)
    return differentiable(logits, labels, plan, found[:4], found[4])


def _score(
    function: str,
    chosen: ModuleType,
    logits: torch.Tensor,
    labels: torch.Tensor,
    shard: Shard | None,
    state: EMPState | None,
    indices: torch.Tensor | None,
    positions: torch.Tensor | None,
    ignore_index: int | None,
) -> tuple[Scores, Sharded | None]:
    """Scores of all rows, flattened and written into the state; without a state, of the rows at
    `positions`. For sharded rows also what their gradient needs."""
    if state is None and positions is not None:
        labels, ignore_index = only(labels, positions, ignore_index)
    beta = 1.0 if state is None else state.beta
    sharded = None
    if shard is None:
        scores = chosen.score(logits, labels, beta, ignore_index, function)
    else:
        shard = shard._replace(labels=labels)
        whole = vocab_parallel.score_shard(function, chosen, shard, beta, ignore_index)
        scores, sharded = whole.scores, Sharded(shard.columns.start, whole.maximum, whole.above)
    scores = Scores(*(field.reshape(-1) for field in scores))
    if state is not None:
        if indices is None:
            indices = torch.arange(labels.numel(), device=labels.device)
        chosen.update_state(state, indices, scores, function)
    return scores, sharded
