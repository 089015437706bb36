"""Terms of losses with options, and their gradient, in one pass each."""

import torch

from ...terms import RowTerms
from . import native
from .native import DEVICE, logit_rows, raise_bad_label, readable_labels


def row_terms(logits, labels, adjustment, targets, ignore_index, function) -> RowTerms:
    """Terms of logits (..., C) and labels (...). If the targets are probabilities, labels only mark
    ignored rows."""
    labels = readable_labels(labels)
    bad, terms = _row_terms(logits, labels, adjustment, targets, ignore_index)
    if bad >= 0:
        raise_bad_label(function, labels, bad, logits.shape[-1])
    return terms


def row_terms_with_gradient(
    logits, labels, adjustment, targets, scale: float
) -> tuple[RowTerms, torch.Tensor]:
    """Terms of logits (..., C) with targets that are probabilities, and the gradient of
    scale * sum of target by the logits, like them, in one read."""
    out = torch.empty(logits.shape, dtype=logits.dtype, device=DEVICE)
    _, terms = _row_terms(
        logits, readable_labels(labels), adjustment, targets, None, scale=scale, gradient=out
    )
    return terms, out


def _row_terms(logits, labels, adjustment, targets, ignore_index, scale=0.0, gradient=None):
    bad, *found = native.module.row_terms(
        logit_rows(logits),
        labels,
        ignore_index,
        *_adjustment(adjustment),
        *_targets(targets),
        scale,
        gradient,
        torch.get_num_threads(),
    )
    if bad >= 0:
        return bad, None
    loss, entropy, lse, maximum, above, mean, target, total = found
    return bad, RowTerms(loss, entropy, lse, target, total, maximum, above, mean)


def row_terms_backward(logits, labels, terms, coefficients, adjustment, targets) -> torch.Tensor:
    """Gradient (..., C) with respect to the raw logits, in their dtype, see terms.py; zero where
    all coefficients of a row are 0, whatever the row contains."""
    out = torch.empty(logits.shape, dtype=logits.dtype, device=DEVICE)
    saved = (terms.loss, terms.lse, terms.maximum, terms.above, terms.mean)
    native.module.row_terms_backward(
        logit_rows(logits),
        readable_labels(labels),
        *_adjustment(adjustment),
        *_targets(targets),
        [_dense(x) for x in saved],
        [_dense(x) for x in coefficients],
        out,
        torch.get_num_threads(),
    )
    return out


def _dense(x):
    return None if x is None else x.to(torch.float32).contiguous()


def _adjustment(adjustment):
    temperature, softcap = adjustment
    if isinstance(temperature, torch.Tensor):
        return 1.0, temperature, softcap or 0.0
    return temperature, None, softcap or 0.0


def _targets(targets):
    if targets is None:
        return None, None, None
    weight, probabilities, share, uniform = targets
    if probabilities is not None and probabilities.dtype == torch.float64:
        probabilities = probabilities.to(torch.float32)
    return [share, uniform], _dense(weight), probabilities
