"""Terms of losses with options, in float64."""

from typing import Any

import torch

from ...terms import RowTerms
from .scoring import CHUNK, _exponentials, checked_labels, row_statistics


def row_terms(logits, labels, adjustment, targets, ignore_index, function) -> RowTerms:
    """Terms of logits (..., C) and labels (...). If the targets are probabilities, labels only mark
    ignored rows."""
    classes = logits.shape[-1]
    labels = checked_labels(labels, classes, ignore_index, function).reshape(-1)
    rows = logits.detach().reshape(len(labels), classes)
    step = max(1, CHUNK // max(1, classes))
    chunks = [
        _terms(rows[i : i + step].double(), labels[i : i + step], adjustment, targets,
               slice(i, i + step), ignore_index)
        for i in range(0, max(1, len(rows)), step)
    ]  # fmt: skip
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    fields = [
        None if field[0] is None else torch.cat(field).to(dtype)
        for field in zip(*chunks, strict=True)
    ]
    return RowTerms(*fields)  # type: ignore[arg-type]


def row_terms_backward(logits, labels, terms, coefficients, adjustment, targets) -> torch.Tensor:
    """Gradient (..., C) with respect to the raw logits, in their dtype, see terms.py; zero where
    all coefficients of a row are 0, whatever the row contains. If the terms have no maximum, the
    sums are recomputed. A label outside [0, C) is on another shard."""
    gradient = torch.zeros(logits.shape, dtype=logits.dtype, device=logits.device)
    if gradient.numel() == 0:
        return gradient
    classes = logits.shape[-1]
    rows, out = logits.detach().reshape(-1, classes), gradient.view(-1, classes)
    labels = labels.reshape(-1).to(torch.int64)
    step = max(1, CHUNK // classes)
    for i in range(0, len(rows), step):
        part = slice(i, i + step)
        found = _gradient(
            rows[part].double(), labels[part], terms, coefficients, adjustment, targets, part
        )
        trained = sum((x[part] != 0) for x in coefficients if x is not None) > 0
        out[part] = torch.where(trained[:, None], found, 0.0).to(out.dtype)
    return gradient


def adjusted(z, adjustment, part):
    """Adjusted logits of rows `part`, z (N, C) float64, and their derivative with respect to z, (N,
    C) or (N, 1)."""
    temperature, softcap = adjustment
    if isinstance(temperature, torch.Tensor):
        temperature = temperature[part].double()[:, None]
    else:
        temperature = z.new_full((1, 1), temperature)
    if softcap is None:
        return z / temperature, 1 / temperature.expand(len(z), 1)
    tanh = (z / softcap).tanh()
    return softcap * tanh / temperature, (1 - tanh * tanh) / temperature


def _target_rows(targets, part, like):
    """q (N, C), or (1, C) if it is the same for all rows."""
    q = like.new_full((1, like.shape[1]), targets.uniform)
    if targets.probabilities is not None:
        q = q + targets.share * targets.probabilities[part].double()
    return q if targets.weight is None else q * targets.weight.double()


def _weighted(q, log_p):
    """-sum q_j log p_j, (N,); a q_j of 0 contributes 0, also where p_j is 0."""
    return -torch.where(q == 0, 0.0, q * log_p).sum(1)


def _terms(z, labels, adjustment, targets, part, ignore_index) -> tuple[torch.Tensor | None, ...]:
    nothing = z.new_zeros(len(z))
    if z.shape[1] == 0 or len(z) == 0:  # reached only when every row is ignored
        target = None if targets is None else nothing
        return (nothing, nothing, nothing, target, target, nothing, nothing, nothing)
    a, _ = adjusted(z, adjustment, part)
    loss, entropy, lse = row_statistics(a, labels, None)[:3]
    m, u, t, top, _ = _exponentials(a)
    u, t = (x.masked_fill(m.isinf(), 0) for x in (u, t))  # as row_sums; m is NaN if a logit is
    above = u.log1p()
    target = total = None
    if targets is not None:
        log_p = (a - m[:, None]) - above[:, None]
        q = _target_rows(targets, part, z)
        target, total = _weighted(q, log_p), q.sum(1).expand(len(z))
        if targets.probabilities is not None:
            loss = _weighted(targets.probabilities[part].double(), log_p)
    maximum = z.gather(1, top[:, None])[:, 0]
    fields = [loss, entropy, lse, target, total, maximum, above, t / (1 + u)]
    if ignore_index is not None:
        ignored = labels == ignore_index
        fields = [None if x is None else x.masked_fill(ignored, 0) for x in fields]
    return tuple(fields)


def _gradient(z, labels, terms, coefficients, adjustment, targets, part):
    a, derivative = adjusted(z, adjustment, part)
    if terms.maximum is None:  # reused from another call
        m, u, t, *_ = _exponentials(a)
        raw, above, mean = z.amax(1), u.log1p(), t / (1 + u)
    else:
        raw, above, mean = (x[part].double() for x in (terms.maximum, terms.above, terms.mean))
        m = adjusted(raw[:, None], adjustment, part)[0][:, 0]
    loss = terms.loss[part].double()
    above = torch.where(loss.isnan(), torch.nan, above)  # invalid rows
    d = a - m[:, None]
    p = (d - above[:, None]).exp()
    by: Any = [None if x is None else x[part].double()[:, None] for x in coefficients]
    big_a, big_b, big_s, rest = by
    g = big_a * p
    label_in_range = (labels >= 0) & (labels < z.shape[1])
    place, at_place, less_one = labels, label_in_range, torch.expm1(-loss)
    q = None
    if targets is not None and big_s is not None:
        q = _target_rows(targets, part, z).expand(z.shape)
        g = g - big_s * q
    if q is not None and targets.probabilities is not None:
        is_top = z == raw[:, None]  # all False if another shard has the maximum
        place, at_place, less_one = is_top.int().argmax(1), is_top.any(1), torch.expm1(-above)
        others = q.scatter(1, place[:, None], 0.0).sum(1, keepdim=True)
        rest = rest + big_s * others
    place = torch.where(at_place, place, 0)[:, None]
    value = rest + big_a * less_one[:, None] + (m - m)[:, None]
    g = g.scatter(1, place, torch.where(at_place[:, None], value, g.gather(1, place)))
    if big_b is not None:
        centred = d - mean[:, None]
        g = g + torch.where(p == 0, 0.0, big_b * p * centred)
    return g * derivative
