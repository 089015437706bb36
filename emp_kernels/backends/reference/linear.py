"""Scores and gradients of the product hidden @ weightᵀ."""

import torch

from ...results import Scores
from ...term_tiles import add_parts, product_terms, term_gradients
from ...tiles import gradients
from .scoring import CHUNK, checked_labels, row_statistics, scores_of


def score_linear(
    hidden, weight, labels, bias, beta, ignore_index, function="score_linear", kept=None
) -> Scores:
    """Scores of hidden (..., D) @ weight (C, D)ᵀ + bias (C,) and labels (...)."""
    classes = weight.shape[0]
    labels = checked_labels(labels, classes, ignore_index, function)
    rows, flat_labels = hidden.detach().flatten(0, -2), labels.reshape(-1)
    wide = weight.detach().double()
    step = max(1, CHUNK // max(1, classes))
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    chunks = []
    for i in range(0, max(1, len(rows)), step):
        z = rows[i : i + step].double() @ wide.t()
        if bias is not None:
            z += bias.detach().double()
        chunks.append(row_statistics(z, flat_labels[i : i + step], ignore_index)[:3])
    statistics = [torch.cat(x).to(dtype).view(labels.shape) for x in zip(*chunks, strict=True)]
    return scores_of(statistics, beta, labels, ignore_index)


def linear_cross_entropy_backward(
    hidden, weight, labels, bias, loss, lse, scales, wanted, kept=None
):
    """Gradients of sum scales * loss with respect to hidden, weight and bias: tiles.gradients in
    float64."""
    return gradients(hidden, weight, bias, labels, loss, lse, scales, wanted, torch.float64)


def linear_terms(hidden, weight, labels, bias, adjustment, targets, ignore_index, function):
    """Terms (N,) of hidden (..., D) @ weight (C, D)ᵀ + bias (C,): term_tiles in float64."""
    labels = checked_labels(labels, weight.shape[0], ignore_index, function)
    return product_terms(
        hidden, weight, bias, labels, adjustment, targets, ignore_index, torch.float64, add_parts
    )


def linear_terms_backward(
    hidden, weight, labels, bias, terms, coefficients, adjustment, targets, wanted, add_up=None
):
    """Gradients with respect to hidden, weight and bias: term_tiles in float64."""
    return term_gradients(
        hidden, weight, bias, labels, terms, coefficients, adjustment, targets, wanted,
        torch.float64, add_up,
    )  # fmt: skip
