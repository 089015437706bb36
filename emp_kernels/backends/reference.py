"""Pure-PyTorch backend: the oracle that every kernel is tested against.

Plain and exact before fast: float64 inside, a stable sort for selection. It runs on every device
and, on CUDA, never synchronises with the host except where a size must be read back.
"""

import math

import torch

from ..keep import Keep, kept_count
from ..results import SampleStatistics, Scores, Selection
from ..similarities import Problem, RowValues, Views, combined, norms
from ..tiles import gradients
from ..validation import FLOAT_DTYPES, raise_id_out_of_range, raise_label_out_of_range

DTYPES = FLOAT_DTYPES
CHUNK = 1 << 24  # logits held in float64 at a time


def require() -> None:
    """The reference needs nothing but torch."""


def serves_device(device_type: str) -> bool:
    return True


def describe() -> str:
    """What runs."""
    return "pure PyTorch, float64 inside; the oracle of every other backend"


def score(logits, labels, beta, ignore_index, function="score") -> Scores:
    """Scores of logits (..., C) and labels (...)."""
    classes = logits.shape[-1]
    labels = _labels(labels, classes, ignore_index, function)
    return _scores(_statistics(logits, labels, classes, ignore_index), beta, labels, ignore_index)


def cross_entropy_backward(logits, labels, loss, lse, scales, maximum=None) -> torch.Tensor:
    """Gradient (..., C) in the logits' dtype: row i is (softmax - onehot) * scales[i], zero where
    that is 0, whatever the row holds. `loss` and `lse` (N,) are what `score` found; labels are
    (...), `scales` (N,).

    Of rows with columns elsewhere, `maximum` (N,) is the whole row's and `lse` stands above it; a
    label outside [0, C) is one elsewhere."""
    gradient = torch.zeros(logits.shape, dtype=logits.dtype, device=logits.device)
    if gradient.numel() == 0:
        return gradient
    classes = logits.shape[-1]
    rows, out = logits.reshape(-1, classes), gradient.view(-1, classes)
    labels = labels.reshape(-1).to(torch.int64)
    step = max(1, CHUNK // max(1, classes))
    for i in range(0, len(rows), step):
        part, scale = slice(i, i + step), scales[i : i + step].double()
        trained = scale != 0
        z, above = rows[part].double(), lse[part].double()
        if maximum is None:
            p = z.softmax(1)
        else:
            m = maximum[part].double()
            above += m - m  # NaN where the row has no softmax
            p = ((z - m[:, None]) - above[:, None]).exp()
        # p - 1 at the label, from the loss: p itself would round to 1. NaN where a logit is +inf.
        at_label = torch.expm1(-loss[part].double()) + (above - above)
        here = trained & (labels[part] >= 0) & (labels[part] < classes)
        y = torch.where(here, labels[part], 0)[:, None]
        p.scatter_(1, y, torch.where(here[:, None], at_label[:, None], p.gather(1, y)))
        out[part] = torch.where(trained[:, None], p * scale[:, None], 0.0).to(out.dtype)
    return gradient


def row_sums(logits, labels, ignore_index) -> torch.Tensor:
    """What a row's columns elsewhere need of those here, (4, N) of logits (..., C), labels (...).

    m = max z and, over all elements but one maximal one, u = sum exp(z - m) and
    t = sum exp(z - m) (z - m); then z_y, NaN where the label is not in [0, C). A NaN among the
    logits shows in m, u or t; u and t are 0 where else m is infinite. Ignored rows are 0."""
    classes = logits.shape[-1]
    rows, labels = logits.detach().reshape(-1, classes), labels.reshape(-1).to(torch.int64)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    out = torch.empty(4, len(rows), dtype=dtype, device=logits.device)
    step = max(1, CHUNK // classes)
    for i in range(0, len(rows), step):
        part = slice(i, i + step)
        m, u, t, *_ = _exponentials(rows[part].double())
        infinite = m.isinf()  # where a logit is NaN, m is NaN
        out[:3, part] = torch.stack([m, u.masked_fill(infinite, 0), t.masked_fill(infinite, 0)])
        here = (labels[part] >= 0) & (labels[part] < classes)
        z_y = rows[part].gather(1, torch.where(here, labels[part], 0)[:, None])[:, 0]
        out[3, part] = torch.where(here, z_y, torch.nan)
    return out if ignore_index is None else out.masked_fill(labels == ignore_index, 0.0)


def _exponentials(z):
    """Of float64 rows z (N, C), C > 0: m, u, t of `row_sums`, the place of the maximal element
    that is left out, and the other exponentials (N, C)."""
    m, top = z.max(dim=1)
    d = z - m[:, None]
    e = d.exp().scatter(1, top[:, None], 0.0)
    t = torch.where(e > 0, e * d, e).sum(1)  # a column at -inf contributes 0, not 0 * -inf
    return m, e.sum(1), t, top, e


def score_linear(
    hidden, weight, labels, bias, beta, ignore_index, function="score_linear"
) -> Scores:
    """Scores of hidden (..., D) @ weight (C, D)ᵀ + bias (C,) and labels (...)."""
    classes = weight.shape[0]
    labels = _labels(labels, classes, ignore_index, function)
    rows, flat_labels = hidden.detach().reshape(-1, hidden.shape[-1]), labels.reshape(-1)
    wide = weight.detach().double()
    step = max(1, CHUNK // max(1, classes))
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    chunks = []
    for i in range(0, max(1, len(rows)), step):
        z = rows[i : i + step].double() @ wide.t()
        if bias is not None:
            z += bias.detach().double()
        chunks.append(_row_statistics(z, flat_labels[i : i + step], ignore_index)[:3])
    statistics = [torch.cat(x).to(dtype).view(labels.shape) for x in zip(*chunks, strict=True)]
    return _scores(statistics, beta, labels, ignore_index)


def linear_cross_entropy_backward(hidden, weight, labels, bias, loss, lse, scales, wanted):
    """Gradients of sum scales * loss by hidden, weight and bias: tiles.gradients in float64."""
    return gradients(hidden, weight, bias, labels, loss, lse, scales, wanted, torch.float64)


def sample_statistics(logits, labels, ignore_index) -> SampleStatistics:
    """Statistics of logits (..., C) and labels (...)."""
    classes = logits.shape[-1]
    labels = _labels(labels, classes, ignore_index, "sample_statistics")
    return _statistics(logits, labels, classes, ignore_index)


def _labels(labels, classes, ignore_index, function):
    """Labels as int64; on CPU an out-of-range one raises (on CUDA its row becomes invalid)."""
    unsigned = labels.dtype == torch.uint64
    labels = labels.to(torch.int64)
    if unsigned:  # from 2^63 on they turned negative: no ignore_index may equal them
        labels = labels.masked_fill(labels < 0, torch.iinfo(torch.int64).max)
    if labels.device.type == "cpu":
        bad = (labels < 0) | (labels >= classes)
        if ignore_index is not None:
            bad &= labels != ignore_index
        if bad.any():
            row = int(bad.flatten().nonzero()[0])
            raise_label_out_of_range(function, row, int(labels.flatten()[row]), classes)
    return labels


def _statistics(logits, labels, classes, ignore_index) -> SampleStatistics:
    rows = logits.detach().reshape(labels.numel(), classes)
    flat_labels = labels.reshape(-1)
    step = max(1, CHUNK // max(1, classes))
    chunks = [
        _row_statistics(rows[i : i + step].double(), flat_labels[i : i + step], ignore_index)
        for i in range(0, len(rows), step)
    ] or [_row_statistics(rows.double(), flat_labels, ignore_index)]
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return SampleStatistics(
        *(
            torch.cat(field)
            .to(torch.bool if field[0].dtype == torch.bool else dtype)
            .reshape(labels.shape)
            for field in zip(*chunks, strict=True)
        )
    )


def _row_statistics(z, labels, ignore_index) -> tuple[torch.Tensor, ...]:
    """All statistics of float64 rows z (N, C), as METHOD.md's sums over one row.

    One maximal element is left out of every sum (u = s - 1), so that losses and entropies keep
    their relative accuracy down to the smallest numbers.
    """
    if z.shape[1] == 0:  # only reached when every row is ignored
        zero = z.new_zeros(len(z))
        return (*[zero] * 6, zero.bool())
    m, u, t, top, e = _exponentials(z)
    known = (labels >= 0) & (labels < z.shape[1])
    y = torch.where(known, labels, 0)
    z_y = z.gather(1, y[:, None])[:, 0]

    loss = (m - z_y) + u.log1p()
    entropy = u.log1p() - t / (1 + u)
    lse = m + u.log1p()

    q = (e * e).sum(1)
    e_y = (z_y - m).exp()
    others = torch.where(y == top, q, 1 + q - e_y * e_y)  # sum of e_j^2 over j != y
    p_not_y = -torch.expm1(-loss)
    el2n = (p_not_y * p_not_y + others / (1 + u) ** 2).sqrt()
    rival = z.scatter(1, y[:, None], -torch.inf).amax(1)
    margin = z_y - rival
    correct = y == (z == m[:, None]).to(torch.uint8).argmax(1)

    nan = torch.full_like(m, torch.nan)
    broken = ~m.isfinite()  # NaN or +inf among the logits, or no finite logit
    loss = torch.where(broken, m - z_y, loss)
    lse = torch.where(broken, m, lse)
    unknown = ~known
    if z.shape[1] == 1:
        margin = torch.full_like(m, torch.inf)
    fields = [
        torch.where(unknown, nan, loss),
        torch.where(unknown | broken, nan, entropy),
        lse,
        *(torch.where(unknown | broken, nan, x) for x in ((-loss).exp(), el2n, margin)),
        correct & known & ~broken,
    ]
    if ignore_index is not None:
        ignored = labels == ignore_index
        fields = [x.masked_fill(ignored, 0) for x in fields]
    return tuple(fields)


def _scores(statistics, beta, labels, ignore_index) -> Scores:
    loss, entropy, lse = statistics[:3]
    score = loss + beta * entropy
    score = torch.where(loss.isfinite() & entropy.isfinite(), score, torch.nan)
    if ignore_index is not None:
        score = score.masked_fill(labels == ignore_index, -torch.inf)
    return Scores(score, loss, entropy, lse)


def _descending(scores: torch.Tensor) -> torch.Tensor:
    """Positions from the highest to the lowest score: ties by position, NaN after -inf."""
    nan = scores.isnan()
    order = (scores.masked_fill(nan, -torch.inf) + 0.0).argsort(descending=True, stable=True)
    return order[nan[order].to(torch.uint8).argsort(stable=True)]


def select(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Ascending positions of the `count` highest scores (N,)."""
    return _descending(scores.detach())[:count].sort().values


def select_rows(scores: torch.Tensor, counts: torch.Tensor, total: int) -> torch.Tensor:
    """Ascending flat positions (total,) of the counts (B,) highest of each row of scores (B, T);
    where the sum of counts is below `total`, the rest is B * T."""
    rows, width = scores.shape
    starts = torch.arange(rows, device=scores.device)[:, None] * width
    order = torch.stack([_descending(row) for row in scores]) if rows else starts
    taken = torch.arange(width, device=scores.device) < counts[:, None]
    return torch.where(taken, order + starts, rows * width).flatten().sort().values[:total]


def _draws(seed: int, count: int) -> torch.Tensor:
    """The first `count` elements of the splitmix64 stream `seed`, as int64 bits."""

    def signed(x: int) -> int:
        return (x + 2**63) % 2**64 - 2**63

    def mixed(z: torch.Tensor, shift: int) -> torch.Tensor:
        return z ^ ((z >> shift) & (2 ** (64 - shift) - 1))

    z = torch.arange(1, count + 1, device="cpu") * signed(0x9E3779B97F4A7C15) + signed(seed)
    z = mixed(z, 30) * signed(0xBF58476D1CE4E5B9)
    z = mixed(z, 27) * signed(0x94D049BB133111EB)
    return mixed(z, 31)


def shuffle(ids: torch.Tensor, seed: int) -> torch.Tensor:
    """The ids (K,) int64 in an order that depends on K and `seed` (64 bits) alone; csrc/cpu/
    shuffle.h says how."""
    n = ids.shape[0]
    return ids[(_shuffled if n <= 2**16 else _permuted)(n, seed)]


def _shuffled(n: int, seed: int) -> torch.Tensor:
    """Places (n,) by Fisher-Yates."""
    words = _draws(seed + 1, -(-n // 2))[:, None] >> torch.tensor([0, 32], device="cpu")
    random = (words & (2**32 - 1)).reshape(-1)[:n].tolist()
    order = list(range(n))
    for place in range(n):
        other = random[place] * (place + 1) >> 32
        order[place], order[other] = order[other], order[place]
    return torch.tensor(order, dtype=torch.int64, device="cpu")


def _permuted(n: int, seed: int) -> torch.Tensor:
    """Places (n,) by a Feistel network over a table of rows and columns; csrc/cpu/
    permuted_places.h says how."""
    rows = math.isqrt(n - 1) + 1
    columns = -(-n // rows)
    lanes = (_draws(seed, 6)[:, None] >> torch.tensor([0, 16, 32], device="cpu")) & 0xFFFF

    def once(place: torch.Tensor) -> torch.Tensor:
        x, y, size, other = place // columns, place % columns, rows, columns
        for term, factor, factor2 in lanes.tolist():
            drawn = (y * (factor | 1) + term) & 0xFFFF
            drawn = ((drawn ^ (drawn >> 8)) * (factor2 | 1)) & 0xFFFF
            x = (x + (drawn * size >> 16)) % size
            x, y, size, other = y, x, other, size
        return x * columns + y

    places = once(torch.arange(n, device="cpu"))
    while (outside := places >= n).any():
        places[outside] = once(places[outside])
    return places


def counter(selections: torch.Tensor):
    """A function that counts an id in `selections` (N,) int32 and returns it."""
    counts = selections.numpy()

    def count(drawn: int) -> int:
        counts[drawn] += 1
        return drawn

    return count


def _check_ids(ids, size, function):
    """On CPU an out-of-range id raises (on CUDA the caller decides, without synchronising)."""
    if ids.device.type == "cpu":
        bad = (ids < 0) | (ids >= size)
        if bad.any():
            position = int(bad.nonzero()[0])
            raise_id_out_of_range(function, position, int(ids[position]), size)


def update_state(state, ids, scores: Scores, function: str) -> None:
    """Write valid rows of `scores` (N,) into `state` at `ids` (N,); the last row of a
    duplicate id wins."""
    size = state.num_samples
    ids = ids.to(torch.int64)
    _check_ids(ids, size, function)
    if size == 0:
        return
    valid = _writable(scores) & (ids >= 0) & (ids < size)
    rows = torch.arange(len(ids), device=ids.device)
    last = torch.full((size,), -1, dtype=torch.int64, device=ids.device).scatter_reduce(
        0, ids.clamp(0, size - 1), torch.where(valid, rows, -1), "amax"
    )
    written = last >= 0
    if len(ids) == 0:
        return
    source = last.clamp(min=0)
    for field in ("score", "loss", "entropy"):
        stored = getattr(state, field)
        stored.copy_(torch.where(written, getattr(scores, field)[source].to(stored.dtype), stored))
    state.updates += written
    state.clock += written.any()
    state.seen_at.copy_(torch.where(written, state.clock, state.seen_at))


def _writable(scores: Scores) -> torch.Tensor:
    """Rows that are neither invalid nor ignored."""
    finite = scores.loss.isfinite() & scores.entropy.isfinite()
    return finite & ~scores.score.isnan() & (scores.score != -torch.inf)


def score_and_select(
    logits, labels, state, keep: Keep, ids, ignore_index, function: str
) -> Selection:
    """Score logits (N, C), write the scores into `state` (or nowhere), select the top rows."""
    n, classes = logits.shape
    labels = _labels(labels, classes, ignore_index, function)
    beta = 1.0 if state is None else state.beta
    scores = _scores(_statistics(logits, labels, classes, ignore_index), beta, labels, ignore_index)
    score, valid = scores.score, _writable(scores)
    on_cpu = score.device.type == "cpu"
    if state is not None:
        if ids is None:
            ids = torch.arange(n, device=score.device)
        ids = ids.to(torch.int64)
        update_state(state, ids, scores, function)
        if not on_cpu:
            valid &= (ids >= 0) & (ids < state.num_samples)
            score = torch.where(valid | (score == -torch.inf), score, torch.nan)
            scores = scores._replace(score=score)

    if on_cpu or ignore_index is not None:
        num_valid = int(valid.sum())
        countable = n if ignore_index is None else num_valid
        count = min(kept_count(keep, countable), num_valid)
    else:
        count = kept_count(keep, n)
    order = _descending(score.masked_fill(~valid, torch.nan))[:count]
    selected = valid[order]
    indices = torch.where(selected, order, n).sort().values
    threshold = (
        torch.where(selected, score[order], torch.inf).amin()
        if count
        else (torch.full((), torch.inf, dtype=score.dtype, device=score.device))
    )
    if state is not None and count:
        drawn = ids[indices.clamp(max=n - 1)].clamp(0, state.num_samples - 1)
        state.selections.index_add_(0, drawn, (indices < n).to(torch.int32))
    if not on_cpu:
        indices = torch.where(indices < n, indices, -1)
    return Selection(indices, scores, threshold, score.isnan().sum().to(torch.int32))


def gather_rows(sources, indices, outputs) -> list[torch.Tensor]:
    """Rows `indices` (K,) of each source; written into `outputs` where they are given."""
    indices = indices.to(torch.int64)
    for source in sources:
        _check_ids(indices, len(source), "gather")
    if outputs is None:
        return [_index_select(source, indices) for source in sources]
    for source, out in zip(sources, outputs, strict=True):
        out.copy_(_index_select(source.detach(), indices))
    return outputs


def _index_select(source, indices):
    """torch.index_select, also for the unsigned dtypes that it lacks: by their bits."""
    signed = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
    if source.dtype not in signed:
        return source.index_select(0, indices)
    return source.view(signed[source.dtype]).index_select(0, indices).view(source.dtype)


def score_contrastive(problem: Problem) -> Scores:
    """Scores (n,) of two views."""
    projections = _similarity_rows(problem, problem.projections, problem.temperature)
    hidden = projections
    if problem.hidden is not None:
        hidden = _similarity_rows(problem, problem.hidden, problem.hidden_temperature)
    return combined(problem, projections, hidden)


def _similarity_rows(problem: Problem, views: Views, temperature: float) -> list[RowValues]:
    """Of each direction, from float64 rows of the similarities, some at a time."""

    def unit(vectors):
        return vectors.double() / norms(vectors)[:, None]

    count, total = len(views.own[0]), len(views.all[0])
    columns = [unit(vectors) for vectors in views.all]
    step = max(1, CHUNK // max(1, 2 * total))
    results = []
    for v in problem.directions:
        against = [w for x, w in problem.blocks if x == v]
        chunks = []
        for start in range(0, max(1, count), step):
            rows = unit(views.own[v][start : start + step])
            own = torch.arange(len(rows), device=rows.device)
            place = own + start + views.start
            blocks = [rows @ columns[w].T / temperature for w in against]
            if v in against:
                blocks[against.index(v)][own, place] = -torch.inf
            labels = place + total * against.index(1 - v)
            chunks.append(_row_statistics(torch.cat(blocks, 1), labels, None)[:3])
        results.append(RowValues(*map(torch.cat, zip(*chunks, strict=True))))
    return results
