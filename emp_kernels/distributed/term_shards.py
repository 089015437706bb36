"""Terms of losses with options (terms.py) of rows whose columns are sharded among ranks: each rank
computes those of its columns, and all ranks merge them.

Each rank reads its columns as if they were the whole row, and sends max a, lse - max a, the mean of
d and -log p_y, and for each set of weights Σ q_j (lse - a_j) and Σ q_j. For whole rows, with lse
that of all columns and lse_r that of rank r::

    sum q_j (lse - a_j) = sum over ranks of (its own + its sum of q * (lse - lse_r))

where nothing cancels, so that a nearly certain row keeps its accuracy. The uniform part of smoothed
targets depends on C, which is unknown before the collective, so it is sent separately.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from ..options import LossOptions
from ..terms import Adjustment, RowTerms, Targets
from ..validation import as_int64, check_label_range
from .columns import Columns, exchange, found, merged
from .group import sum_equal

IGNORED, ELSEWHERE = -1, -2  # labels of ignored rows, and of columns on other ranks


class WholeRows(NamedTuple):
    """What this rank knows of rows whose columns are sharded.

    Attributes:
        terms: of whole rows, the same bits on all ranks; only `others` is of the local columns.
        targets: weights of the local columns, or None.
        labels: (...) int64, the label's local column, or IGNORED or ELSEWHERE.
        elsewhere: sum q_j of the columns on other ranks, (N,); None without targets.
        label_weight: the weight of each row's label, (N,); None without class weights.
        add_up: sums a tensor of equal shape and dtype over the ranks.
    """

    terms: RowTerms
    targets: Targets | None
    labels: torch.Tensor
    elsewhere: torch.Tensor | None
    label_weight: torch.Tensor | None
    add_up: Callable[[torch.Tensor], torch.Tensor]


@torch.no_grad()
def whole_terms(
    function: str,
    chosen: Any,
    inputs: Sequence[torch.Tensor | None],
    labels: torch.Tensor,
    columns: Columns,
    options: LossOptions,
    ignore_index: int | None,
    reused: RowTerms | None = None,
) -> WholeRows:
    """Terms of rows with labels (...) and logits (..., C_local), or of a product of hidden, weight
    and bias, in one collective, which all ranks of the group must join. If loss, entropy and lse of
    whole rows are given in `reused`, they are reused and only the labels' weights are sent.

    Raises:
        ValueError: a label out of range, or columns that do not follow one another (on CPU): on
            all ranks.
    """
    local_labels = _local_labels_of(labels, columns, ignore_index)
    product, soft = len(inputs) > 1, options.probabilities is not None
    wide = _wide(inputs)
    pieces: list[Targets] = []
    fields: list[torch.Tensor] = []
    others: list[torch.Tensor] = []
    if reused is None:
        pieces = _pieces(options)
        read = []
        if columns.width:
            skipped = None if ignore_index is None else IGNORED
            wanted: Sequence[Targets | None] = pieces or [None]
            read = [
                _read(function, chosen, inputs, local_labels, options.adjustment, piece, skipped)
                for piece in wanted
            ]
        others = [x.others for x in read if x.others is not None]
        fields = _told(read, len(pieces), options, local_labels, product=product, wide=wide)
    weighted = options.weight is not None and not soft
    if options.weight is not None and weighted:
        fields.append(_weights_at(options.weight, local_labels))
    parts, classes = None, None
    if fields:
        packed = torch.stack([x.to(wide) for x in fields])
        # The uniform part of the smoothed targets depends on C.
        tell = labels.is_cpu or (reused is None and options.label_smoothing > 0.0)
        parts, classes = exchange(function, packed, columns, tell=tell)
        if classes is not None and not soft:
            check_label_range(function, labels, classes, ignore_index)
    label_weight = None
    if parts is not None and weighted:
        label_weight, parts = parts[-1].sum(0).to(wide), parts[:-1]

    def add_up(tensor: torch.Tensor) -> torch.Tensor:
        return sum_equal(function, tensor, columns.group)

    if reused is not None:
        terms = reused if product else _reused_terms(reused)
        return WholeRows(terms, None, local_labels, None, label_weight, add_up)
    assert parts is not None
    targets = options.targets(classes or 0)
    scales = []
    if targets is not None:
        scales = [targets.uniform if x.probabilities is None else targets.share for x in pieces]
    a = parts[0] if product else _adjusted(parts[0], options.adjustment)
    terms = _merged_terms(parts, a, scales, soft=soft)
    elsewhere = None
    if scales:
        totals = _weighted_sum(scales, [parts[5 + 2 * i] for i in range(len(scales))])
        totals[columns.rank] = 0.0
        elsewhere = totals.sum(0).to(wide)
    if others:
        terms = terms._replace(others=_weighted_sum(scales, others))
    ignored = local_labels.reshape(-1) == IGNORED
    kept = (x if x is None else x.to(wide).masked_fill(ignored, 0.0) for x in terms)
    return WholeRows(RowTerms(*kept), targets, local_labels, elsewhere, label_weight, add_up)  # type: ignore[arg-type]


def _wide(inputs: Sequence[torch.Tensor | None]) -> torch.dtype:
    assert inputs[0] is not None
    return torch.float64 if inputs[0].dtype == torch.float64 else torch.float32


def _local_labels_of(
    labels: torch.Tensor, columns: Columns, ignore_index: int | None
) -> torch.Tensor:
    """Labels (...) as in WholeRows."""
    y = as_int64(labels)
    here = (y >= columns.start) & (y < columns.start + columns.width)
    local_labels = torch.where(here, y - columns.start, ELSEWHERE)
    return (
        local_labels
        if ignore_index is None
        else local_labels.masked_fill(y == ignore_index, IGNORED)
    )


def _pieces(options: LossOptions) -> list[Targets]:
    """The sets of weights whose linear combination is the options' targets."""
    pieces = []
    if options.probabilities is not None:
        pieces.append(Targets(options.weight, options.probabilities, 1.0, 0.0))
    if options.label_smoothing > 0.0:
        pieces.append(Targets(options.weight, None, 0.0, 1.0))
    return pieces


def _read(
    function: str,
    chosen: Any,
    inputs: Sequence[torch.Tensor | None],
    local_labels: torch.Tensor,
    adjustment: Adjustment,
    piece: Targets | None,
    ignore_index: int | None,
) -> RowTerms:
    """Terms of the local columns as if they were whole rows; a label on another rank is replaced by
    the first column."""
    labels = local_labels.masked_fill(local_labels == ELSEWHERE, 0)
    options = adjustment, piece, ignore_index, function
    terms: RowTerms
    if len(inputs) > 1:
        hidden, weight, bias = inputs
        terms = chosen.linear_terms(hidden, weight, labels, bias, *options)
    else:
        terms = chosen.row_terms(inputs[0], labels, *options)
    return terms


def _told(
    read: list[RowTerms],
    pieces: int,
    options: LossOptions,
    local_labels: torch.Tensor,
    *,
    product: bool,
    wide: torch.dtype,
) -> list[torch.Tensor]:
    """What this rank sends, (N,) each: maximum, above, mean and loss (NaN if the label is on
    another rank) of its columns; target and total of each piece; the sum of the probabilities."""
    flat, soft = local_labels.reshape(-1), options.probabilities
    if not read:  # without columns there is no maximal element to leave out of u
        nothing = [-torch.inf, -torch.inf, 0.0, 0.0 if soft is not None else torch.nan]
        nothing += [0.0] * (2 * pieces + (soft is not None))
        return [torch.full(flat.shape, x, dtype=wide, device=flat.device) for x in nothing]
    first = read[0]
    loss, maximum = first.loss, first.maximum
    assert maximum is not None
    assert first.above is not None
    assert first.mean is not None
    if soft is None:
        if product or options.adjustment.softcap is None:  # a label at -inf, like all local columns
            loss = torch.where(maximum == -torch.inf, torch.inf, loss)
        loss = torch.where(flat >= 0, loss, torch.nan)
    fields = [maximum, first.above, first.mean, loss]
    for terms in read[:pieces]:
        assert terms.target is not None
        assert terms.total is not None
        fields += [terms.target, terms.total]
    return fields if soft is None else [*fields, soft.sum(1, dtype=wide)]


def _weights_at(weight: torch.Tensor, local_labels: torch.Tensor) -> torch.Tensor:
    """weight[y] (N,) if the label is local, else 0."""
    flat = local_labels.reshape(-1)
    if not len(weight):
        return torch.zeros(flat.shape, dtype=weight.dtype, device=weight.device)
    return weight[flat.clamp(min=0)].masked_fill(flat < 0, 0.0)


def _adjusted(z: torch.Tensor, adjustment: Adjustment) -> torch.Tensor:
    """Adjusted logits of z (..., N) float64, of N rows."""
    temperature, softcap = adjustment
    if isinstance(temperature, torch.Tensor):
        temperature = temperature.double()
    return (z if softcap is None else softcap * (z / softcap).tanh()) / temperature


def _weighted_sum(scales: list[float], values: list[torch.Tensor]) -> torch.Tensor:
    products = [scale * value for scale, value in zip(scales, values, strict=True)]
    return torch.stack(products).sum(0)


def _merged_terms(
    parts: torch.Tensor, a: torch.Tensor, scales: list[float], *, soft: bool
) -> RowTerms:
    """Terms (N,) of whole rows, float64, from the fields (F, R, N) of _told; `a` (R, N) are the
    adjusted maxima. A rank whose columns are all at -inf adds nothing."""
    maximum, above, mean, loss = parts[:4]
    lowest, u = a == -torch.inf, above.expm1()
    top, u, t = merged(a, u, (mean * (1 + u)).masked_fill(a.isinf(), 0.0))
    whole_above, whole_mean = u.log1p(), t / (1 + u)
    below = (top - a) + (whole_above - above)  # lse - lse_r

    def joined(sums: torch.Tensor, totals: torch.Tensor) -> torch.Tensor:
        none = totals == 0
        own = torch.where(lowest, torch.where(none, 0.0, torch.inf), sums)
        return (own + torch.where(none, 0.0, totals * below)).sum(0)

    by_label = found((top - a) + (loss - above)) + whole_above
    whole_loss = joined(loss, parts[-1]) if soft else by_label
    target = total = None
    if scales:
        sums = [(parts[4 + 2 * i], parts[5 + 2 * i]) for i in range(len(scales))]
        target = _weighted_sum(scales, [joined(*x) for x in sums])
        total = _weighted_sum(scales, [x[1].sum(0) for x in sums])
    entropy = whole_above - whole_mean + (top - top)  # NaN if top is not finite
    return RowTerms(
        whole_loss, entropy, top + whole_above, target, total, maximum.amax(0), whole_above,
        whole_mean,
    )  # fmt: skip


def _reused_terms(reused: RowTerms) -> RowTerms:
    """Reused terms completed for the gradient: 0, which no adjustment changes, serves as the
    maximum, and lse as the distance above it."""
    zero = torch.zeros_like(reused.lse)
    return reused._replace(maximum=zero, above=reused.lse, mean=zero)
