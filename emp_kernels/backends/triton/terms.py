"""Terms of losses with options, in one read of the logits, and their gradient."""

import torch

from ...terms import RowTerms
from ...validation import check_label_range
from . import runtime


def row_terms(logits, labels, adjustment, targets, ignore_index, function) -> RowTerms:
    """Terms of logits (..., C) and labels (...). If the targets are probabilities, labels only mark
    ignored rows."""
    runtime.check_capability(logits.device)
    check_label_range(function, labels, logits.shape[-1], ignore_index)
    if labels.numel() == 0:
        nothing = torch.empty(0, dtype=torch.float32, device=labels.device)
        return RowTerms(*[nothing] * 9)
    rows = runtime.launch.rows_of(logits)
    found = runtime.launch_terms.terms(rows, labels, adjustment, targets, ignore_index)
    loss, entropy, lse, target, total, others, maximum, above, mean = found
    if targets is None:
        return RowTerms(loss, entropy, lse, None, None, maximum, above, mean)
    return RowTerms(loss, entropy, lse, target, total, maximum, above, mean, others)


def row_terms_backward(logits, labels, terms, coefficients, adjustment, targets) -> torch.Tensor:
    """Gradient (..., C) with respect to the raw logits, in their dtype, see terms.py; zero where
    all coefficients of a row are 0, whatever the row contains."""
    if logits.numel() == 0:
        return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    rows = runtime.launch.rows_of(logits)
    gradient: torch.Tensor = runtime.launch_terms.gradient(
        rows, labels, terms, coefficients, adjustment, targets
    )
    return gradient.view(logits.shape)
