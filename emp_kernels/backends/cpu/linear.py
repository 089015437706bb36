"""Rows of a product that is made and read a tile at a time."""

import torch

from ...results import Scores
from ...term_tiles import product_terms, term_gradients
from ...tiles import Product, gradients
from . import native
from .native import DEVICE, raise_bad_label, readable_labels


def score_linear(
    hidden, weight, labels, bias, beta, ignore_index, function="score_linear"
) -> Scores:
    """Scores of hidden (..., D) @ weight (C, D)ᵀ + bias (C,) and labels (...): a tile of the
    product at a time, whose sums are taken while it is in the cache."""
    threads = torch.get_num_threads()
    labels = readable_labels(labels)
    bad = native.module.first_bad_label(labels, ignore_index, weight.shape[0])
    if bad >= 0:
        raise_bad_label(function, labels, bad, weight.shape[0])
    positions, trained = None, labels.reshape(-1).to(torch.int64)
    if ignore_index is not None:
        positions = (trained != ignore_index).nonzero()[:, 0]
        trained = trained.index_select(0, positions)
    parts = torch.tensor([-torch.inf, 0.0, 0.0, torch.nan], dtype=torch.float64, device=DEVICE)
    parts = parts[:, None].repeat(1, len(trained))
    with torch.no_grad():
        product = Product(hidden, weight, bias, positions, _product_dtype(hidden.dtype))
        for rows in product.row_tiles():
            hidden_tile = product.hidden_of(rows)
            for columns in product.column_tiles():
                tile = product.tile(hidden_tile, columns)
                native.module.add_row_parts(
                    tile, trained[rows], columns.start, parts[:, rows], threads
                )
    found: Scores = native.module.scores_of_parts(
        parts, labels if positions is None else trained, beta
    )
    if positions is None:
        return found
    return Scores(
        *(
            torch.full((labels.numel(),), nothing, dtype=torch.float32, device=DEVICE)
            .index_copy_(0, positions, some)  # put_ is no deterministic algorithm
            .view(labels.shape)
            for some, nothing in zip(found, (-torch.inf, 0.0, 0.0, 0.0), strict=True)
        )
    )


def linear_cross_entropy_backward(hidden, weight, labels, bias, loss, lse, scales, wanted):
    """Gradients of sum scales * loss by hidden, weight and bias: tiles.gradients."""
    dtype = _product_dtype(hidden.dtype)
    return gradients(hidden, weight, bias, labels, loss, lse, scales, wanted, dtype)


def linear_terms(hidden, weight, labels, bias, adjustment, targets, ignore_index, function):
    """Terms (N,) of hidden (..., D) @ weight (C, D)ᵀ + bias (C,): a tile of the product at a time,
    adjusted and reduced while it is in the cache."""
    threads = torch.get_num_threads()
    labels = readable_labels(labels)
    bad = native.module.first_bad_label(labels, ignore_index, weight.shape[0])
    if bad >= 0:
        raise_bad_label(function, labels, bad, weight.shape[0])

    def add(tile, rows, first, parts):
        native.module.add_row_parts(tile, rows, first, parts, threads)

    dtype = _product_dtype(hidden.dtype)
    return product_terms(
        hidden, weight, bias, labels, adjustment, targets, ignore_index, dtype, add
    )


def linear_terms_backward(
    hidden, weight, labels, bias, terms, coefficients, adjustment, targets, wanted, add_up=None
):
    """Gradients by hidden, weight and bias: term_tiles."""
    dtype = _product_dtype(hidden.dtype)
    return term_gradients(
        hidden, weight, bias, labels, terms, coefficients, adjustment, targets, wanted, dtype,
        add_up,
    )  # fmt: skip


def _product_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which products are fast: the tensors' own where torch has a kernel for it."""
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype if dtype not in supported or supported[dtype]() else torch.float32
