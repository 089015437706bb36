"""Triton backend: scoring and selection on CUDA, one read of the logits and one write of the
scores, and nothing that waits for the host.

With TRITON_INTERPRET=1 set before the import, Triton's interpreter runs the same kernels on CPU
tensors: slowly, for tests.
"""

import functools
from typing import Any

import torch

from ..keep import Keep, kept_count
from ..results import SampleStatistics, Scores, Selection
from ..similarities import Problem, RowValues, Views, combined, merged, norms, row_values
from ..tiles import gradients
from ..validation import raise_id_out_of_range, raise_label_out_of_range
from . import Unavailable

DEVICE = "cuda"
DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
OLDEST = (8, 0)  # the compute capability from which minima and maxima can propagate NaN

_launch: Any = None
_linear: Any = None


def require() -> None:
    """Import the kernels; raise where Triton is missing or every GPU is too old."""
    global _launch, _linear
    try:
        import triton  # noqa: F401
    except ImportError:
        raise Unavailable(
            "Triton is missing; install it with `python -m pip install triton`"
        ) from None
    if torch.cuda.is_available():
        newest = max(map(torch.cuda.get_device_capability, range(torch.cuda.device_count())))
        if newest < OLDEST:
            raise Unavailable(_too_old(newest))
    from ..kernels import launch, launch_linear

    _launch, _linear = launch, launch_linear


def _too_old(capability: tuple[int, int]) -> str:
    need, have = (".".join(map(str, version)) for version in (OLDEST, capability))
    return (
        f"it needs a GPU of compute capability {need} or newer, this one has {have}; "
        "pass backend='reference'"
    )


@functools.cache
def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels; decided when they were imported."""
    from triton.runtime.jit import JITFunction

    return not isinstance(_launch.score_rows, JITFunction)


def serves_device(device_type: str) -> bool:
    return device_type == "cuda" or (device_type == "cpu" and interpreted())


def describe() -> str:
    """What runs: Triton's version, and the GPU or the interpreter."""
    import triton

    where = "interpreted on the CPU" if interpreted() else "no GPU"
    if torch.cuda.is_available():
        where = torch.cuda.get_device_name()
    return f"Triton {triton.__version__}, {where}"


@functools.cache
def _check_device(device: torch.device) -> None:
    """Of several GPUs this one may be too old."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < OLDEST:
        reason = _too_old(torch.cuda.get_device_capability(device))
        raise RuntimeError(f"backend 'triton' does not serve {device}: {reason}")


def _check_range(values, stop, ignored, complain) -> None:
    """On CPU tensors `complain` of the first value outside [0, stop); on CUDA, where that would
    wait for the device, its row becomes invalid."""
    if not values.is_cpu:
        return
    wraps = values.dtype == torch.uint64
    values = values.reshape(-1).to(torch.int64)
    if wraps:  # from 2^63 on they turned negative
        values = torch.where(values < 0, torch.iinfo(torch.int64).max, values)
    bad = (values < 0) | (values >= stop)
    if ignored is not None:
        bad &= values != ignored
    if bad.any():
        position = int(bad.nonzero()[0])
        complain(position, int(values[position]), stop)


def _check_labels(function, labels, classes, ignore_index) -> None:
    complain = functools.partial(raise_label_out_of_range, function)
    _check_range(labels, classes, ignore_index, complain)


def _check_ids(function, ids, size) -> None:
    _check_range(ids, size, None, functools.partial(raise_id_out_of_range, function))


def score(logits, labels, beta, ignore_index, function="score") -> Scores:
    """Scores of logits (..., C) and labels (...)."""
    _check_device(logits.device)
    _check_labels(function, labels, logits.shape[-1], ignore_index)
    values = torch.empty((4, 0), device=labels.device)
    if labels.numel():
        values = _launch.score(_launch.rows_of(logits), labels, beta, ignore_index).values
    return Scores(*values.view(4, *labels.shape).unbind())


def cross_entropy_backward(logits, labels, loss, lse, scales, maximum=None) -> torch.Tensor:
    """Gradient (..., C) in the logits' dtype: row i is (softmax - onehot) * scales[i], zero where
    that is 0, whatever the row holds. `loss` and `lse` (N,) are what `score` found; labels are
    (...), `scales` (N,).

    Of rows with columns elsewhere, `maximum` (N,) is the whole row's and `lse` stands above it; a
    label outside [0, C) is one elsewhere."""
    if logits.numel() == 0:
        return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    gradient = _launch.gradient(_launch.rows_of(logits), labels, loss, lse, scales, maximum)
    return gradient.view(logits.shape)


def row_sums(logits, labels, ignore_index) -> torch.Tensor:
    """What a row's columns elsewhere need of those here, (4, N) of logits (..., C), labels (...).

    m = max z and, over all elements but one maximal one, u = sum exp(z - m) and
    t = sum exp(z - m) (z - m); then z_y, NaN where the label is not in [0, C). A NaN among the
    logits shows in m, u or t; u and t are 0 where else m is infinite. Ignored rows are 0."""
    _check_device(logits.device)
    if labels.numel() == 0:
        return torch.empty(4, 0, device=labels.device)
    return _launch.score(_launch.rows_of(logits), labels, 0.0, ignore_index, sums=True).values


def score_linear(
    hidden, weight, labels, bias, beta, ignore_index, function="score_linear"
) -> Scores:
    """Scores of hidden (..., D) @ weight (C, D)ᵀ + bias (C,) and labels (...); float32 products
    are exact ones, not TF32."""
    _check_device(hidden.device)
    _check_labels(function, labels, weight.shape[0], ignore_index)
    if labels.numel() == 0:
        values = torch.empty((4, 0), device=labels.device)
        return Scores(*values.view(4, *labels.shape).unbind())
    rows = hidden.detach().reshape(labels.numel(), hidden.shape[-1])
    rows, weight = (x if x.stride(-1) == 1 else x.contiguous() for x in (rows, weight.detach()))
    bias = None if bias is None else bias.detach().contiguous()
    values = _linear.score_linear(rows, weight, bias, labels, beta, ignore_index)
    return Scores(*values.view(4, *labels.shape).unbind())


def linear_cross_entropy_backward(hidden, weight, labels, bias, loss, lse, scales, wanted):
    """Gradients of sum scales * loss by hidden, weight and bias: tiles.gradients. How many rows
    are trained is read back."""
    return gradients(hidden, weight, bias, labels, loss, lse, scales, wanted, hidden.dtype)


def sample_statistics(logits, labels, ignore_index) -> SampleStatistics:
    """Statistics of logits (..., C) and labels (...)."""
    _check_device(logits.device)
    _check_labels("sample_statistics", labels, logits.shape[-1], ignore_index)
    values = torch.empty((6, 0), device=labels.device)
    correct = torch.empty(0, dtype=torch.bool, device=labels.device)
    if labels.numel():
        rows = _launch.rows_of(logits)
        values, correct, *_ = _launch.score(rows, labels, 0.0, ignore_index, statistics=True)
    fields = [*values.view(6, *labels.shape).unbind(), correct.view(labels.shape)]
    return SampleStatistics._make(fields)


def select(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Ascending positions of the `count` highest scores (N,)."""
    _check_device(scores.device)
    if scores.shape[0] == 0:
        return torch.empty(0, dtype=torch.int64, device=scores.device)
    return _launch.select(scores.detach().resolve_neg().contiguous(), count)


def select_rows(scores: torch.Tensor, counts: torch.Tensor, total: int) -> torch.Tensor:
    """Ascending flat positions (total,) of the counts (B,) highest of each row of scores (B, T);
    where the sum of counts is below `total`, the rest is B * T.

    Sorting a token's score costs little beside reading its logits: torch sorts, twice.
    """
    rows, width = scores.shape
    scores = torch.where(scores.isnan(), -torch.inf, scores) + 0.0  # -0.0 as +0.0
    order = scores.argsort(dim=1, descending=True, stable=True)
    starts = torch.arange(rows, device=scores.device)[:, None] * width
    taken = torch.arange(width, device=scores.device) < counts[:, None]
    return torch.where(taken, order + starts, rows * width).flatten().sort().values[:total]


def update_state(state, ids, scores: Scores, function: str) -> None:
    """Write valid rows of `scores` (N,) into `state` at `ids` (N,); the last row of a duplicate
    id wins."""
    _check_device(ids.device)
    _check_ids(function, ids, state.num_samples)
    # The kernels park tags in the state while they work: scores must not live there.
    own = {getattr(state, name).untyped_storage().data_ptr() for name in ("loss", "entropy")}
    fields = [
        field.clone()
        if field.untyped_storage().data_ptr() in own
        else field.resolve_neg().contiguous()
        for field in scores[:3]
    ]
    _launch.remember(state, ids.contiguous(), fields)


def score_and_select(
    logits, labels, state, keep: Keep, ids, ignore_index, function: str
) -> Selection:
    """Score logits (N, C), write the scores into `state` (or nowhere), select the top rows.

    Where fewer than K rows are valid the indices end in -1 on CUDA; with `ignore_index` the number
    of valid rows is read back instead.
    """
    _check_device(logits.device)
    rows = _launch.rows_of(logits)
    n, device = rows.count, rows.logits.device
    _check_labels(function, labels, rows.classes, ignore_index)
    ids = None if state is None or ids is None else ids.contiguous()
    if ids is not None:
        _check_ids(function, ids, state.num_samples)
    if n == 0:
        return _nothing(state, device)
    beta = 1.0 if state is None else state.beta
    few, count = n <= _launch.FEW, kept_count(keep, n)
    waits = ignore_index is not None
    values, _, work, indices, threshold = _launch.score(
        rows, labels, beta, ignore_index,
        keep=count if few and not waits else None, state=state, ids=ids,
    )  # fmt: skip
    if waits:
        valid = int((values[0] > -torch.inf).sum())  # the one size that is read back
        count = kept_count(keep, valid)
    if not few:
        if state is not None:
            _launch.remember(state, ids, values)
        histogram = work[_launch.WORK_SIZE :]
        indices, threshold = _launch.select_many(values[0], count, histogram, ids, state)
    elif waits:
        indices, threshold = _launch.finish_few(values, count, ids, state)
    if device.type == "cpu":
        indices = indices[indices >= 0]
    return Selection(indices, Scores(*values.unbind()), threshold, work[0])


def _nothing(state, device) -> Selection:
    """The selection from no rows."""
    if state is not None:
        state.clock += 1
    empty = torch.empty(0, device=device)
    return Selection(
        indices=empty.long(),
        scores=Scores(empty, empty, empty, empty),
        threshold=torch.full((), torch.inf, device=device),
        num_invalid=torch.zeros((), dtype=torch.int32, device=device),
    )


def score_contrastive(problem: Problem) -> Scores:
    """Scores (n,) of two views; a launch for each of the form's blocks."""
    _check_device(problem.projections.own[0].device)
    return combined(problem, _similarity_rows)


def _similarity_rows(problem: Problem, views: Views, temperature: float) -> list[RowValues]:
    """Of each direction."""
    from ..kernels import contrastive

    if len(views.own[0]) == 0:
        nothing = torch.empty(0, dtype=torch.float64, device=views.own[0].device)
        return [RowValues(nothing, nothing, nothing)] * len(problem.directions)
    columns = [contrastive.scaled(vectors, norms(vectors)) for vectors in views.all]
    rows = columns
    if not views.alone:
        rows = [contrastive.scaled(vectors, norms(vectors)) for vectors in views.own]
    results = []
    with torch.cuda.device_of(views.own[0]):
        for v in problem.directions:
            vectors, factors = rows[v]
            sums = [
                contrastive.similarity_sums(
                    (vectors, (factors / temperature).float()),
                    (columns[w][0], columns[w][1].float()),
                    views.start,
                    w == v,
                )
                for x, w in problem.blocks
                if x == v
            ]
            m, u, t, positive = torch.cat(sums).double().unbind(1)
            results.append(row_values(*merged(m, u, t), positive.sum(0)))
    return results
