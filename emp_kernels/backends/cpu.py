"""C++ backend for CPU tensors: the SIMD kernels of csrc/cpu through emp_kernels._cpu."""

import os
from types import ModuleType
from typing import Any

import numpy as np
import torch

from ..keep import Keep, kept_count
from ..results import SampleStatistics, Scores, Selection
from ..similarities import Problem, RowValues, Views, combined, norms, row_values
from ..tiles import Product, gradients
from ..validation import raise_id_out_of_range, raise_label_out_of_range
from . import Unavailable, forked

DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})
DEVICE = "cpu"
SIMD_LEVELS = ("avx512", "avx2", "portable")

# The codes of csrc/cpu/dtypes.h.
_LOGIT_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_INT_CODES = {
    dtype: code
    for code, dtype in enumerate(
        (torch.int64, torch.int32, torch.int16, torch.int8)
        + (torch.uint8, torch.uint16, torch.uint32, torch.uint64)
    )
}
_REDUCTION_CODES = {"mean": 0, "sum": 1, "none": 2}  # of csrc/cpu/cross_entropy.h
_NO_STATE: tuple[int, ...] = (0,) * 7
_SMALL_GATHER = 1 << 16  # bytes up to which describing tensors costs more than copying rows

_native: Any = None
_FLOAT32, _INT64, _INT32 = np.dtype(np.float32), np.dtype(np.int64), np.dtype(np.int32)


def _new(
    shape: int | tuple[int, ...], dtype: np.dtype, empty=np.empty, tensor=torch.from_numpy
) -> torch.Tensor:
    """Room for a result. NumPy's, because it asks the kernel for huge pages: the first writing of
    a large fresh result costs half of what it does in torch's memory, a small one less, too; and
    torch's default dtype and device do not reach it."""
    return tensor(empty(shape, dtype))


def require() -> ModuleType:
    """Load the native module; raise where it was not built or EMP_SIMD asks for the impossible."""
    global _native
    try:
        import emp_kernels._cpu as _cpu
    except ImportError as error:
        raise Unavailable(
            f"the native module emp_kernels._cpu is missing ({error}); build it with "
            "`pip install .` in the source tree"
        ) from None
    wanted = os.environ.get("EMP_SIMD")
    if wanted and wanted != _cpu.simd_level():
        raise Unavailable(
            f"EMP_SIMD must name an instruction set of this processor ({', '.join(SIMD_LEVELS)}), "
            f"got {wanted!r}; unset it or set it to {_cpu.simd_level()}"
        )
    if forked():  # the library notices only the forks that come after it is loaded
        _cpu.mark_forked()
    _native = _cpu
    return _cpu


def serves_device(device_type: str) -> bool:
    return device_type == "cpu"


def describe() -> str:
    """What runs: instruction set and threads."""
    return f"C++ {require().simd_level()}, {torch.get_num_threads()} threads"


def _logits(logits: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """The logits (kept alive by the caller) and their native description: rows of unit inner
    stride, in groups of equally spaced rows. Other layouts are copied."""
    if logits.is_neg():
        logits = logits.resolve_neg()
    if logits.dim() == 2:
        rows, classes = logits.shape
        row_stride, inner = logits.stride()
        if inner == 1 or classes <= 1:
            code = _LOGIT_CODES[logits.dtype]
            return logits, (logits.data_ptr(), code, rows, classes, rows, 0, row_stride)
        return _logits(logits.contiguous())
    grouped = _as_groups(logits)
    if grouped is None:
        return _logits(logits.contiguous().view(-1, logits.shape[-1]))
    groups, group_rows, classes = grouped.shape
    group_stride, row_stride, _ = grouped.stride()
    code = _LOGIT_CODES[grouped.dtype]
    return grouped, (
        grouped.data_ptr(),
        code,
        groups * group_rows,
        classes,
        group_rows,
        group_stride,
        row_stride,
    )


def _as_groups(logits: torch.Tensor) -> torch.Tensor | None:
    """A view (groups, rows, classes) of unit inner stride, where there is one."""
    if logits.shape[-1] > 1 and logits.stride(-1) != 1:
        return None
    try:
        return logits.view(-1, logits.shape[-2], logits.shape[-1])
    except RuntimeError:
        return None


def _labels(labels: torch.Tensor, ignore_index: int | None):
    labels = labels.contiguous()
    if labels.dtype == torch.uint64:  # read as int64, a label from 2^63 on could be ignore_index
        signed = labels.view(torch.int64)
        labels = signed.masked_fill(signed < 0, torch.iinfo(torch.int64).max)
    code = _INT_CODES[labels.dtype]
    return labels, (labels.data_ptr(), code, ignore_index is not None, ignore_index or 0)


def _ids(ids: torch.Tensor) -> torch.Tensor:
    return (ids if ids.dtype == torch.int64 else ids.to(torch.int64)).contiguous()


def _raise_bad_label(function: str, labels: torch.Tensor, row: int, classes: int):
    raise_label_out_of_range(function, row, int(labels.reshape(-1)[row]), classes)


def score(logits, labels, beta, ignore_index, function="score") -> Scores:
    """Scores of logits (..., C) and labels (...)."""
    shape = labels.shape
    logits, logits_args = _logits(logits)
    labels, labels_args = _labels(labels, ignore_index)
    out = Scores(*(_new(shape, _FLOAT32) for _ in range(4)))
    bad = _native.score(
        logits_args,
        labels_args,
        beta,
        tuple(x.data_ptr() for x in out),
        torch.get_num_threads(),
    )
    if bad >= 0:
        _raise_bad_label(function, labels, bad, logits.shape[-1])
    return out


def cross_entropy(
    logits, labels, state, ids, ignore_index, reduction: str, function: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
    """Loss of logits (..., C) and labels (...), reduced; loss and lse (N,) of all rows; how many
    rows count. Their scores are written into `state` (or nowhere) at `ids` (N,), row by row
    without."""
    shape = labels.shape
    logits, logits_args = _logits(logits)
    labels, labels_args = _labels(labels, ignore_index)
    beta, state_args, size, ids_address = 1.0, _NO_STATE, 0, 0
    if state is not None:
        beta, state_args, size = state.beta, _state_args(state), state.num_samples
        if ids is not None:
            ids = _ids(ids)
            ids_address = ids.data_ptr()
    # torch's memory here: in a training step its code is in the caches, NumPy's is not.
    result = torch.empty(shape if reduction == "none" else (), dtype=torch.float32, device=DEVICE)
    loss = torch.empty(logits_args[2], dtype=torch.float32, device=DEVICE)
    lse = torch.empty(logits_args[2], dtype=torch.float32, device=DEVICE)
    counted, bad_label, bad_id = _native.cross_entropy(
        logits_args,
        labels_args,
        _REDUCTION_CODES[reduction],
        beta,
        state_args,
        size,
        ids_address,
        (result.data_ptr(), loss.data_ptr(), lse.data_ptr()),
        torch.get_num_threads(),
    )
    if bad_label >= 0:
        _raise_bad_label(function, labels, bad_label, logits.shape[-1])
    if bad_id >= 0:
        raise_id_out_of_range(function, bad_id, int(ids[bad_id]), size)
    return result, loss, lse, counted


def cross_entropy_backward(
    logits, labels, loss, lse, scales, divisor=1, ignore_index=None, maximum=None
) -> torch.Tensor:
    """Gradient (..., C) in the logits' dtype: row i is (softmax - onehot) * scales[i] / divisor,
    zero where that is 0, whatever the row holds, and where it is ignored. `loss` and `lse` (N,)
    are those of the forward pass; labels are (...), `scales` has N elements, or one for all.

    Of rows with columns elsewhere, `maximum` (N,) is the whole row's and `lse` stands above it; a
    label outside [0, C) is one elsewhere."""
    out = torch.empty(logits.shape, dtype=logits.dtype, device=DEVICE)
    logits, logits_args = _logits(logits)
    labels, labels_args = _labels(labels, ignore_index)
    loss, lse, scales = loss.contiguous(), lse.contiguous(), scales.contiguous()
    above = None if maximum is None else maximum.contiguous()
    _native.cross_entropy_backward(
        logits_args,
        labels_args,
        (
            loss.data_ptr(),
            lse.data_ptr(),
            scales.data_ptr(),
            0 if above is None else above.data_ptr(),
        ),
        scales.numel() == 1,
        divisor,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def row_sums(logits, labels, ignore_index) -> torch.Tensor:
    """What a row's columns elsewhere need of those here, (4, N) of logits (..., C), labels (...).

    m = max z and, over all elements but one maximal one, u = sum exp(z - m) and
    t = sum exp(z - m) (z - m); then z_y, NaN where the label is not in [0, C). A NaN among the
    logits shows in m, u or t; u and t are 0 where else m is infinite. Ignored rows are 0."""
    out = _new((4, labels.numel()), _FLOAT32)
    logits, logits_args = _logits(logits)
    labels, labels_args = _labels(labels, ignore_index)
    _native.row_sums(
        logits_args, labels_args, tuple(x.data_ptr() for x in out), torch.get_num_threads()
    )
    return out


def _product_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which products are fast: the tensors' own where torch has a kernel for it."""
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype if dtype not in supported or supported[dtype]() else torch.float32


def score_linear(
    hidden, weight, labels, bias, beta, ignore_index, function="score_linear"
) -> Scores:
    """Scores of hidden (..., D) @ weight (C, D)ᵀ + bias (C,) and labels (...): a tile of the
    product at a time, whose sums are taken while it is in the cache."""
    threads, shape, n = torch.get_num_threads(), labels.shape, labels.numel()
    labels, labels_args = _labels(labels, ignore_index)
    bad = _native.first_bad_label(labels_args, n, weight.shape[0])
    if bad >= 0:
        _raise_bad_label(function, labels, bad, weight.shape[0])
    out = Scores(*(_new(shape, _FLOAT32) for _ in range(4)))
    positions, labels = None, labels.view(-1).to(torch.int64)
    if ignore_index is not None:
        positions = (labels != ignore_index).nonzero()[:, 0]
        labels = labels.index_select(0, positions)
    parts = torch.tensor([-torch.inf, 0.0, 0.0, torch.nan], dtype=torch.float64, device=DEVICE)
    parts = parts[:, None].repeat(1, len(labels))
    with torch.no_grad():
        product = Product(hidden, weight, bias, positions, _product_dtype(hidden.dtype))
        for rows in product.row_tiles():
            hidden_tile = product.hidden_of(rows)
            _, tile_labels = _labels(labels[rows], None)
            addresses = tuple(part.data_ptr() for part in parts[:, rows])
            for columns in product.column_tiles():
                _, tile = _logits(product.tile(hidden_tile, columns))
                _native.add_row_parts(tile, tile_labels, columns.start, addresses, threads)
    found = out if positions is None else [_new(len(labels), _FLOAT32) for _ in range(4)]
    _native.scores_of_parts(
        tuple(part.data_ptr() for part in parts),
        len(labels),
        beta,
        tuple(x.data_ptr() for x in found),
    )
    if positions is not None:
        for values, some, nothing in zip(out, found, (-torch.inf, 0, 0, 0), strict=True):
            values.fill_(nothing).view(-1)[positions] = some
    return out


def linear_cross_entropy_backward(hidden, weight, labels, bias, loss, lse, scales, wanted):
    """Gradients of sum scales * loss by hidden, weight and bias: tiles.gradients."""
    dtype = _product_dtype(hidden.dtype)
    return gradients(hidden, weight, bias, labels, loss, lse, scales, wanted, dtype)


def sample_statistics(logits, labels, ignore_index) -> SampleStatistics:
    """Statistics of logits (..., C) and labels (...)."""
    shape = labels.shape
    logits, logits_args = _logits(logits)
    labels, labels_args = _labels(labels, ignore_index)
    correct = torch.empty(shape, dtype=torch.bool, device=DEVICE)
    loss, entropy, lse, confidence, el2n, margin = (_new(shape, _FLOAT32) for _ in range(6))
    out = SampleStatistics(loss, entropy, lse, confidence, el2n, margin, correct)
    bad = _native.sample_statistics(
        logits_args, labels_args, tuple(x.data_ptr() for x in out), torch.get_num_threads()
    )
    if bad >= 0:
        _raise_bad_label("sample_statistics", labels, bad, logits.shape[-1])
    return out


def select(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Ascending positions of the `count` highest scores (N,)."""
    scores = scores.detach().resolve_neg().to(torch.float32).contiguous()
    out = _new(count, _INT64)
    _native.select(
        scores.data_ptr(), scores.shape[0], count, out.data_ptr(), torch.get_num_threads()
    )
    return out


def select_rows(scores: torch.Tensor, counts: torch.Tensor, total: int) -> torch.Tensor:
    """Ascending flat positions (total,) of the counts (B,) highest of each row of scores (B, T);
    `total` is the sum of counts."""
    scores = scores.to(torch.float32).contiguous()
    counts = counts.contiguous()
    out = _new(total, _INT64)
    _native.select_rows(
        scores.data_ptr(),
        *scores.shape,
        counts.data_ptr(),
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out


def shuffle(ids: torch.Tensor, seed: int) -> torch.Tensor:
    """The ids (K,) int64 in an order that depends on K and `seed` (64 bits) alone."""
    out = _new(ids.shape[0], _INT64)
    _native.shuffle(ids.data_ptr(), ids.shape[0], seed, out.data_ptr(), torch.get_num_threads())
    return out


def counter(selections: torch.Tensor):
    """A function that counts an id in `selections` (N,) int32 and returns it."""
    return _native.counter(selections.data_ptr(), selections.shape[0])


def _state_args(state) -> tuple[int, ...]:
    return (
        state.score.data_ptr(),
        state.loss.data_ptr(),
        state.entropy.data_ptr(),
        state.updates.data_ptr(),
        state.selections.data_ptr(),
        state.seen_at.data_ptr(),
        state.clock.data_ptr(),
    )


def update_state(state, ids, scores: Scores, function: str) -> None:
    """Write valid rows of `scores` (N,) into `state` at `ids` (N,); the last row of a duplicate
    id wins."""
    ids = _ids(ids)
    # The kernel parks row numbers in the state while it works: scores must not live there.
    own = {getattr(state, name).untyped_storage().data_ptr() for name in ("loss", "entropy")}
    fields = [
        field.clone() if field.untyped_storage().data_ptr() in own else field.contiguous()
        for field in scores[:3]
    ]
    bad = _native.update_state(
        _state_args(state),
        state.num_samples,
        ids.data_ptr(),
        ids.shape[0],
        tuple(field.data_ptr() for field in fields),
    )
    if bad >= 0:
        raise_id_out_of_range(function, bad, int(ids[bad]), state.num_samples)


def score_and_select(
    logits, labels, state, keep: Keep, ids, ignore_index, function: str
) -> Selection:
    """Score logits (N, C), write the scores into `state` (or nowhere), select the top rows."""
    rows, classes = logits.shape
    logits, logits_args = _logits(logits)
    labels, labels_args = _labels(labels, ignore_index)
    count = kept_count(keep, rows)
    share = keep if ignore_index is not None and isinstance(keep, float) else -1.0
    if state is None:
        beta, state_args, size, ids_address = 1.0, _NO_STATE, 0, 0
    else:
        beta, state_args, size = state.beta, _state_args(state), state.num_samples
        ids_address = 0
        if ids is not None:
            ids = _ids(ids)
            ids_address = ids.data_ptr()
    # Written out: this call on a small batch is bound by Python, not by the kernel.
    score = _new(rows, _FLOAT32)
    loss = _new(rows, _FLOAT32)
    entropy = _new(rows, _FLOAT32)
    lse = _new(rows, _FLOAT32)
    indices = _new(count, _INT64)
    threshold = _new((), _FLOAT32)
    num_invalid = _new((), _INT32)
    selected, bad_label, bad_id = _native.score_and_select(
        logits_args,
        labels_args,
        beta,
        share,
        count,
        state_args,
        size,
        ids_address,
        (score.data_ptr(), loss.data_ptr(), entropy.data_ptr(), lse.data_ptr()),
        indices.data_ptr(),
        threshold.data_ptr(),
        num_invalid.data_ptr(),
        torch.get_num_threads(),
    )
    if bad_label >= 0:
        _raise_bad_label(function, labels, bad_label, classes)
    if bad_id >= 0:
        raise_id_out_of_range(function, bad_id, int(ids[bad_id]), size)
    if selected < count:
        indices = indices[:selected].clone()
    return Selection(indices, Scores(score, loss, entropy, lse), threshold, num_invalid)


def gather_rows(sources, indices, outputs) -> list[torch.Tensor]:
    """Rows `indices` (K,) of each source; written into `outputs` where they are given."""
    indices = _ids(indices)
    count = indices.shape[0]
    fresh = outputs is None
    if outputs is None:
        if count * sum(source.nbytes // max(1, len(source)) for source in sources) < _SMALL_GATHER:
            try:
                return [source.index_select(0, indices) for source in sources]
            except (IndexError, RuntimeError):  # worded below, or a dtype that torch lacks
                pass
        outputs = [source.new_empty((count, *source.shape[1:])) for source in sources]
    # Rows must be contiguous inside; only their distance is free.
    sources = [
        source
        if source.is_contiguous() or source[:1].is_contiguous() or source.shape[1:].numel() <= 1
        else source.contiguous()
        for source in sources
    ]
    tensors = []
    for source, out in zip(sources, outputs, strict=True):
        size = source.element_size()
        row_bytes = out.nbytes // count if count else 0
        tensors.append(
            (source.data_ptr(), out.data_ptr(), row_bytes, source.stride(0) * size, len(source))
        )
    bad_tensor, bad = _native.gather(
        tensors, indices.data_ptr(), count, fresh, torch.get_num_threads()
    )
    if bad >= 0:
        raise_id_out_of_range("gather", bad, int(indices[bad]), len(sources[bad_tensor]))
    return outputs


def score_contrastive(problem: Problem) -> Scores:
    """Scores (n,) of two views."""
    projections = _similarity_rows(problem, problem.projections, problem.temperature)
    hidden = projections
    if problem.hidden is not None:
        hidden = _similarity_rows(problem, problem.hidden, problem.hidden_temperature)
    return combined(problem, projections, hidden)


def _similarity_rows(problem: Problem, views: Views, temperature: float) -> list[RowValues]:
    """Of each direction, from one tile of similarities at a time. Without a group no product is
    computed twice: a tile's columns are rows of the transposed block."""
    threads = torch.get_num_threads()
    sums = {}  # by view: m, u, t and the positive's similarity, (4, n)
    for v in problem.directions:
        sums[v] = torch.zeros((4, len(views.own[v])), dtype=torch.float64, device=DEVICE)
        sums[v][0] = -torch.inf

    def add(tile, view, start, columns):
        place = sums[view][:, start:]
        shape = (tile.data_ptr(), *tile.shape, tile.stride(0))
        addresses = tuple(row.data_ptr() for row in place[:3])
        _native.add_tile(shape, addresses, columns, threads)

    for v, w in problem.blocks:
        if views.alone and w < v:
            continue
        transposed = views.alone and (w, v) in problem.blocks
        for r, c, tile in _tiles(views.own[v], views.all[w], temperature, transposed and v == w):
            offset = r + views.start - c  # of the diagonal
            if -len(tile) < offset < tile.shape[1]:
                diagonal = tile.diagonal(offset)
                if v == w:
                    diagonal.fill_(-torch.inf)
                else:
                    first = r + max(0, -offset)
                    for view in (v, w) if transposed else (v,):
                        sums[view][3, first : first + len(diagonal)] = diagonal
            add(tile, v, r, columns=False)
            if transposed and (v != w or r != c):
                add(tile, w, c, columns=True)
    return [row_values(*sums[v]) for v in problem.directions]


_TILE, _PANEL = 1024, 4096  # rows and columns of a tile; rows normalised at a time


def _tiles(rows, columns, temperature, upper):
    """(first row, first column, similarities) of every tile of rows (n, D) against columns (N, D),
    in one buffer; with `upper` only of those that are not below the diagonal."""
    row_norms = (norms(rows) * temperature).float()[:, None]
    column_norms = norms(columns).float()[:, None]
    buffer = torch.empty(_TILE * _TILE, dtype=torch.float32, device=DEVICE)
    for panel in range(0, len(rows), _PANEL):
        part = slice(panel, panel + _PANEL)
        units = rows[part].float() / row_norms[part]
        for c in range(panel if upper else 0, len(columns), _TILE):
            against = (columns[c : c + _TILE].float() / column_norms[c : c + _TILE]).T
            for start in range(0, len(units), _TILE):
                r = panel + start
                if upper and c < r:
                    break
                these = units[start : start + _TILE]
                shape = len(these), against.shape[1]
                tile = buffer[: shape[0] * shape[1]].view(shape)
                yield r, c, torch.mm(these, against, out=tile)
