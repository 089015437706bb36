"""Operators of ``torch.ops.emp_kernels``: the public functions under ``torch.compile``.

Each does what the public function of the same name does after checking its arguments. Outside of
compilation the public functions call the backend directly, because the dispatcher would take a
large part of a small batch's time.
"""

from collections.abc import Iterable, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from . import backends
from .keep import Keep, check_keep_of, kept_count
from .results import SampleStatistics, Scores, Selection
from .tracing import check_recordable
from .validation import check_rows_in

NAMESPACE = "emp_kernels"
STATE_FIELDS = ("score", "loss", "entropy", "updates", "selections", "seen_at", "clock", "claims")

_library = torch.library.Library(NAMESPACE, "DEF")
# The state's fields that are written, all or none given; only a selection writes `selections`.
_STATE = (
    "Tensor(a!)? score, Tensor(b!)? loss, Tensor(c!)? entropy, Tensor(d!)? updates, "
    "Tensor(e!)? selections, Tensor(f!)? seen_at, Tensor(g!)? clock, Tensor(h!)? claims"
)
_SCHEMAS = (
    "score(Tensor logits, Tensor labels, float beta, int? ignore_index, str? backend) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    "sample_statistics(Tensor logits, Tensor labels, int? ignore_index, str? backend) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    # keep is passed as `share` or `count`
    "select(Tensor scores, float? share, SymInt? count, str? backend) -> Tensor",
    "select_counted(Tensor scores, Tensor ignored, float? share, SymInt? count, str? backend) "
    "-> Tensor",
    f"score_and_select(Tensor logits, Tensor labels, {_STATE}, float beta, float? share, "
    "SymInt? count, Tensor? indices, int? ignore_index, str? backend) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    f"update_state({_STATE}, Tensor indices, Tensor row_score, Tensor row_loss, "
    "Tensor row_entropy, str function) -> ()",
    "positions(Tensor rows, SymInt size, str function) -> Tensor",
)
for _schema in _SCHEMAS:
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


def _owned(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Tensors that share no memory with one another, as the dispatcher requires of results.
    (Operators run below autograd, where a tensor does not know that it is a view.)"""
    return tuple(
        tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
        for tensor in tensors
    )


def _score(
    logits: Tensor, labels: Tensor, beta: float, ignore_index: int | None, backend: str | None
) -> tuple[Tensor, ...]:
    chosen = backends.resolve("score", backend, logits)
    return _owned(chosen.score(logits, labels, beta, ignore_index))


def _sample_statistics(
    logits: Tensor, labels: Tensor, ignore_index: int | None, backend: str | None
) -> tuple[Tensor, ...]:
    chosen = backends.resolve("sample_statistics", backend, logits)
    return _owned(chosen.sample_statistics(logits, labels, ignore_index))


def _select(scores: Tensor, share: float | None, count: int | None, backend: str | None) -> Any:
    size = _kept(share, count, scores.shape[0])
    return backends.resolve("select", backend, scores).select(scores, size)


def _kept(share: float | None, count: int | None, n: int) -> int:
    keep: Any = count if share is None else share
    return kept_count(keep, n)


def highest_counted(chosen: ModuleType, scores: Tensor, ignored: Tensor, keep: Keep) -> Tensor:
    """`select` among the rows of scores (N,) that are not `ignored` (N,) bool, with `keep` relative
    to their number. Shared by all backends, as none has a rank below NaN for ignored rows."""
    rows = (~ignored).nonzero()[:, 0]
    n = len(rows)
    count = kept_count(check_keep_of("select", keep, n), n)
    highest: Tensor = rows[chosen.select(scores.detach()[rows], count)]
    return highest


def _select_counted(
    scores: Tensor, ignored: Tensor, share: float | None, count: int | None, backend: str | None
) -> Tensor:
    chosen = backends.resolve("select", backend, scores)
    keep: Any = count if share is None else share
    return highest_counted(chosen, scores, ignored, keep)


def _score_and_select(*arguments: Any) -> tuple[Tensor, ...]:
    logits, labels, *fields, beta, share, count, indices, ignore_index, backend = arguments
    function = "score_and_select"
    state = None if fields[0] is None else _state_of(fields, beta)
    keep = count if share is None else share
    chosen = backends.resolve(function, backend, logits)
    result = chosen.score_and_select(logits, labels, state, keep, indices, ignore_index, function)
    return _owned((result.indices, *result.scores, result.threshold, result.num_invalid))


def _state_of(fields: Sequence[Tensor], beta: float) -> Any:
    named = dict(zip(STATE_FIELDS, fields, strict=True))
    return SimpleNamespace(**named, num_samples=len(fields[0]), beta=beta)


def _update_state(*arguments: Any) -> None:
    *fields, indices, score, loss, entropy, function = arguments
    scores = Scores(score, loss, entropy, entropy)  # a state stores no lse
    chosen = backends.resolve(function, None, score)
    chosen.update_state(_state_of(fields, 1.0), indices, scores, function)


def _positions(rows: Tensor, size: int, function: str) -> Tensor:
    rows = rows.to(torch.int64)
    check_rows_in(function, rows, size)
    return rows.clone()


def _values_like(labels: Tensor, logits: Tensor, count: int) -> list[Tensor]:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return [torch.empty(labels.shape, dtype=dtype, device=labels.device) for _ in range(count)]


def _fake_score(logits: Tensor, labels: Tensor, *options: Any) -> tuple[Tensor, ...]:
    return tuple(_values_like(labels, logits, 4))


def _fake_sample_statistics(logits: Tensor, labels: Tensor, *options: Any) -> tuple[Tensor, ...]:
    correct, prediction = (
        torch.empty(labels.shape, dtype=dtype, device=labels.device)
        for dtype in (torch.bool, torch.int64)
    )
    return (*_values_like(labels, logits, 6), correct, prediction)


def _fake_select(
    scores: Tensor, share: float | None, count: int | None, backend: str | None
) -> Tensor:
    size = _kept(share, count, scores.shape[0])
    return torch.empty(size, dtype=torch.int64, device=scores.device)


def _fake_update_state(*arguments: Any) -> None:
    return None


def _fake_positions(rows: Tensor, size: int, function: str) -> Tensor:
    return torch.empty_like(rows, dtype=torch.int64)


def _fake_select_counted(scores: Tensor, *options: Any) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size()
    return torch.empty(size, dtype=torch.int64, device=scores.device)


def _fake_score_and_select(*arguments: Any) -> tuple[Tensor, ...]:
    logits, labels, *_, share, count, _, ignore_index, _ = arguments
    size: Any
    if labels.is_cuda and ignore_index is None:
        size = _kept(share, count, labels.shape[0])
    else:  # the number of valid rows
        size = torch.library.get_ctx().new_dynamic_size()
    values = _values_like(labels, logits, 4)
    return (
        torch.empty(size, dtype=torch.int64, device=labels.device),
        *values,
        torch.empty((), dtype=values[0].dtype, device=labels.device),
        torch.empty((), dtype=torch.int32, device=labels.device),
    )


for _name in (
    *("score", "sample_statistics", "select", "select_counted", "score_and_select"),
    *("update_state", "positions"),
):
    _library.impl(_name, globals()[f"_{_name}"], "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{_name}", globals()[f"_fake_{_name}"], lib=_library)


def score(
    logits: Tensor, labels: Tensor, beta: float, ignore_index: int | None, backend: str | None
) -> Scores:
    """:func:`emp_kernels.score` as one operator."""
    op = torch.ops.emp_kernels.score
    return Scores(*op(logits.detach(), labels, beta, ignore_index, backend))


def sample_statistics(
    logits: Tensor, labels: Tensor, ignore_index: int | None, backend: str | None
) -> SampleStatistics:
    """:func:`emp_kernels.sample_statistics` as one operator."""
    op = torch.ops.emp_kernels.sample_statistics
    return SampleStatistics(*op(logits.detach(), labels, ignore_index, backend))


def _share_or_count(keep: Keep) -> tuple[float | None, int | None]:
    return (keep, None) if isinstance(keep, float) else (None, keep)


def select(scores: Tensor, keep: Keep, backend: str | None) -> Tensor:
    """:func:`emp_kernels.select` as one operator."""
    indices: Tensor = torch.ops.emp_kernels.select(scores.detach(), *_share_or_count(keep), backend)
    return indices


def select_counted(scores: Tensor, ignored: Tensor, keep: Keep, backend: str | None) -> Tensor:
    """:func:`emp_kernels.select` with ignored rows as one operator."""
    share, count = (keep, None) if isinstance(keep, float) else (None, keep)
    op = torch.ops.emp_kernels.select_counted
    indices: Tensor = op(scores.detach(), ignored, share, count, backend)
    return indices


def score_and_select(
    logits: Tensor,
    labels: Tensor,
    state: Any,
    keep: Keep,
    indices: Tensor | None,
    ignore_index: int | None,
    backend: str | None,
) -> Selection:
    """:func:`emp_kernels.score_and_select` as one operator, which writes to the state's fields."""
    if state is not None:
        check_recordable("score_and_select", "state")
    fields = [None if state is None else getattr(state, name) for name in STATE_FIELDS]
    beta = 1.0 if state is None else state.beta
    options = beta, *_share_or_count(keep), indices, ignore_index, backend
    chosen, *scores, threshold, num_invalid = torch.ops.emp_kernels.score_and_select(
        logits.detach(), labels, *fields, *options
    )
    return Selection(chosen, Scores(*scores), threshold, num_invalid)


def update_state(state: Any, indices: Tensor, scores: Scores, function: str) -> None:
    """Write scores of rows into `state` at the ids `indices`, as one operator."""
    check_recordable(function, "state")
    fields = [getattr(state, name) for name in STATE_FIELDS]
    rows = [x.reshape(-1) for x in scores[:3]]
    torch.ops.emp_kernels.update_state(*fields, indices, *rows, function)


def positions(rows: Tensor, size: int, function: str) -> Tensor:
    """Positions as int64, as one operator; on the CPU, positions outside [0, size) are an error."""
    checked: Tensor = torch.ops.emp_kernels.positions(rows, size, function)
    return checked
