"""Scores and gradients of the product hidden @ weightᵀ."""

import torch

from ...results import Scores
from ...term_tiles import add_parts, product_terms, term_gradients
from ...tiles import gradients
from ...validation import check_label_range
from . import runtime


def score_linear(
    hidden, weight, labels, bias, beta, ignore_index, function="score_linear", kept=None
) -> Scores:
    """Scores of hidden (..., D) @ weight (C, D)ᵀ + bias (C,) and labels (...); float32 products are
    exact, not TF32."""
    runtime.check_capability(hidden.device)
    check_label_range(function, labels, weight.shape[0], ignore_index)
    if labels.numel() == 0:
        values = torch.empty((4, 0), dtype=torch.float32, device=labels.device)
        return Scores(*values.view(4, *labels.shape).unbind())
    rows = hidden.detach().flatten(0, -2)
    rows, weight = (x if x.stride(-1) == 1 else x.contiguous() for x in (rows, weight.detach()))
    bias = None if bias is None else bias.detach().contiguous()
    values = runtime.launch_linear.score_linear(rows, weight, bias, labels, beta, ignore_index)
    return Scores(*values.view(4, *labels.shape).unbind())


def linear_cross_entropy_backward(
    hidden, weight, labels, bias, loss, lse, scales, wanted, kept=None
):
    """Gradients of sum scales * loss with respect to hidden, weight and bias, see tiles.gradients.
    The number of trained rows is read back."""
    return gradients(hidden, weight, bias, labels, loss, lse, scales, wanted, hidden.dtype)


def linear_terms(hidden, weight, labels, bias, adjustment, targets, ignore_index, function):
    """Terms (N,) of hidden (..., D) @ weight (C, D)ᵀ + bias (C,): see term_tiles; torch computes
    and reduces the tiles. With ignored rows, the number of rows that count is read back."""
    runtime.check_capability(hidden.device)
    check_label_range(function, labels, weight.shape[0], ignore_index)
    return product_terms(
        hidden, weight, bias, labels, adjustment, targets, ignore_index, hidden.dtype, add_parts
    )


def linear_terms_backward(
    hidden, weight, labels, bias, terms, coefficients, adjustment, targets, wanted, add_up=None
):
    """Gradients with respect to hidden, weight and bias, see term_tiles. The number of trained rows
    is read back."""
    return term_gradients(
        hidden, weight, bias, labels, terms, coefficients, adjustment, targets, wanted,
        hidden.dtype, add_up,
    )  # fmt: skip
