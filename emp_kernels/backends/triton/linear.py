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
    """Scores of hidden (..., D) @ weight (C, D)ᵀ + bias (C,) and labels (...); float32 products
    are exact ones, not TF32."""
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
    """Gradients of sum scales * loss by hidden, weight and bias: tiles.gradients. How many rows
    are trained is read back."""
    return gradients(hidden, weight, bias, labels, loss, lse, scales, wanted, hidden.dtype)


def linear_terms(hidden, weight, labels, bias, adjustment, targets, ignore_index, function):
    """Terms (N,) of hidden (..., D) @ weight (C, D)ᵀ + bias (C,): term_tiles, whose tiles torch
    makes and reduces. Where rows are ignored, how many count is read back."""
    runtime.check_capability(hidden.device)
    check_label_range(function, labels, weight.shape[0], ignore_index)
    return product_terms(
        hidden, weight, bias, labels, adjustment, targets, ignore_index, hidden.dtype, add_parts
    )


def linear_terms_backward(
    hidden, weight, labels, bias, terms, coefficients, adjustment, targets, wanted, add_up=None
):
    """Gradients by hidden, weight and bias: term_tiles. How many rows are trained is read back."""
    return term_gradients(
        hidden, weight, bias, labels, terms, coefficients, adjustment, targets, wanted,
        hidden.dtype, add_up,
    )  # fmt: skip
