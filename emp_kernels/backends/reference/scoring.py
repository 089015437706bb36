"""Scores and statistics of logits, from float64 sums over each row."""

import torch

from ...results import SampleStatistics, Scores
from ...validation import as_int64, check_label_range

CHUNK = 1 << 24  # logits held in float64 at a time


def score(logits, labels, beta, ignore_index, function="score") -> Scores:
    """Scores of logits (..., C) and labels (...)."""
    classes = logits.shape[-1]
    labels = checked_labels(labels, classes, ignore_index, function)
    return scores_of(
        statistics_of(logits, labels, classes, ignore_index), beta, labels, ignore_index
    )


def sample_statistics(logits, labels, ignore_index) -> SampleStatistics:
    """Statistics of logits (..., C) and labels (...)."""
    classes = logits.shape[-1]
    labels = checked_labels(labels, classes, ignore_index, "sample_statistics")
    return statistics_of(logits, labels, classes, ignore_index)


def row_sums(logits, labels, ignore_index) -> torch.Tensor:
    """Partial sums of rows whose columns are sharded, (4, N), from logits (..., C) and labels
    (...).

    m = max z; over all elements but one maximal one, u = sum exp(z - m) and t = sum exp(z - m) (z -
    m); and z_y, NaN where the label is not in [0, C). A NaN logit makes m, u or t NaN; otherwise u
    and t are 0 where m is infinite. Ignored rows are 0."""
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


def checked_labels(labels, classes, ignore_index, function):
    """Labels as int64; on CPU an out-of-range one raises (on CUDA its row becomes invalid)."""
    check_label_range(function, labels, classes, ignore_index)
    return as_int64(labels)


def statistics_of(logits, labels, classes, ignore_index) -> SampleStatistics:
    rows = logits.detach().reshape(labels.numel(), classes)
    flat_labels = labels.reshape(-1)
    step = max(1, CHUNK // max(1, classes))
    chunks = [
        row_statistics(rows[i : i + step].double(), flat_labels[i : i + step], ignore_index)
        for i in range(0, len(rows), step)
    ] or [row_statistics(rows.double(), flat_labels, ignore_index)]
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return SampleStatistics(
        *(
            torch.cat(field)
            .to(dtype if field[0].is_floating_point() else field[0].dtype)
            .reshape(labels.shape)
            for field in zip(*chunks, strict=True)
        )
    )


def row_statistics(z, labels, ignore_index) -> tuple[torch.Tensor, ...]:
    """All statistics of float64 rows z (N, C), by the sums that DESIGN.md defines.

    One maximal element is left out of every sum (u = s - 1), so that losses and entropies keep
    their relative accuracy down to the smallest numbers.
    """
    if z.shape[1] == 0:  # reached only when every row is ignored
        zero = z.new_zeros(len(z))
        return (*[zero] * 6, zero.bool(), zero.long())
    m, u, t, top, e = _exponentials(z)
    label_in_range = (labels >= 0) & (labels < z.shape[1])
    y = torch.where(label_in_range, labels, 0)
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
    prediction = (z == m[:, None]).to(torch.uint8).argmax(1)

    nan = torch.full_like(m, torch.nan)
    broken = ~m.isfinite()  # a NaN or +inf logit, or no finite logit
    loss = torch.where(broken, m - z_y, loss)
    lse = torch.where(broken, m, lse)
    out_of_range = ~label_in_range
    if z.shape[1] == 1:
        margin = torch.full_like(m, torch.inf)
    fields = [
        torch.where(out_of_range, nan, loss),
        torch.where(out_of_range | broken, nan, entropy),
        lse,
        *(torch.where(out_of_range | broken, nan, x) for x in ((-loss).exp(), el2n, margin)),
        (y == prediction) & label_in_range & ~broken,
        prediction.masked_fill(broken, 0),
    ]
    if ignore_index is not None:
        ignored = labels == ignore_index
        fields = [x.masked_fill(ignored, 0) for x in fields]
    return tuple(fields)


def _exponentials(z):
    """For float64 rows z (N, C), C > 0: m, u, t of `row_sums`, the column of the maximal element
    that is left out, and the other exponentials (N, C)."""
    m, top = z.max(dim=1)
    d = z - m[:, None]
    e = d.exp().scatter(1, top[:, None], 0.0)
    t = torch.where(e > 0, e * d, e).sum(1)  # a column at -inf contributes 0, not 0 * -inf
    return m, e.sum(1), t, top, e


def scores_of(statistics, beta, labels, ignore_index) -> Scores:
    loss, entropy, lse = statistics[:3]
    score = loss + beta * entropy
    score = torch.where(loss.isfinite() & entropy.isfinite(), score, torch.nan)
    if ignore_index is not None:
        score = score.masked_fill(labels == ignore_index, -torch.inf)
    return Scores(score, loss, entropy, lse)
