"""Scores and gradients of a matrix product, computed one tile at a time."""

import torch

from ...results import Scores
from ...term_tiles import product_terms, term_gradients
from ...tiles import Product, product_gradients
from . import native
from .native import DEVICE, raise_bad_label, readable_labels


def score_linear(
    hidden, weight, labels, bias, beta, ignore_index, function="score_linear", kept=None
) -> Scores:
    """Scores of hidden (..., D) @ weight (C, D)ᵀ + bias (C,) and labels (...): one tile of the
    product at a time, reduced while it is in the cache. `kept` stores the tiles if it has the
    capacity."""
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
        if kept is not None and not kept.reserve(product):
            kept = None
        for rows in product.row_tiles():
            hidden_tile = product.hidden_of(rows)
            for columns in product.column_tiles():
                out = None if kept is None else kept.tile(rows, columns)
                tile = product.tile(hidden_tile, columns, out)
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
            .index_copy_(0, positions, some)  # put_ is not deterministic
            .view(labels.shape)
            for some, nothing in zip(found, (-torch.inf, 0.0, 0.0, 0.0), strict=True)
        )
    )


def linear_cross_entropy_backward(
    hidden, weight, labels, bias, loss, lse, scales, wanted, kept=None
):
    """Gradients of sum scales * loss with respect to hidden, weight and bias, see tiles.gradients.
    Tiles of the product (those `kept`, or recomputed for the rows whose scale is not 0) become
    cross_entropy's gradient of rows whose columns are sharded."""
    threads = torch.get_num_threads()
    dtype = _product_dtype(hidden.dtype)
    positions = scales.nonzero()[:, 0]
    y = labels.reshape(-1).to(torch.int64)[positions]
    loss, lse, scales = (x[positions].to(torch.float32) for x in (loss, lse, scales))
    scales = torch.where(loss.isnan(), torch.nan, scales)  # invalid rows
    above = torch.zeros_like(lse)
    memory = torch.empty(0, dtype=torch.float32, device=DEVICE)

    def of_tile(z, rows, columns):
        nonlocal memory
        if len(memory) < z.numel():
            memory = torch.empty(z.numel(), dtype=torch.float32, device=DEVICE)
        g = memory[: z.numel()].view(z.shape)
        native.module.cross_entropy_backward(
            z.to(torch.float32),
            y[rows] - columns.start,
            None,
            loss[rows],
            above[rows],
            scales[rows],
            1,
            lse[rows],
            g,
            threads,
        )
        return g

    if kept is not None and not kept.hold(positions):
        kept = None
    return product_gradients(hidden, weight, bias, positions, wanted, dtype, of_tile, kept=kept)


def linear_terms(hidden, weight, labels, bias, adjustment, targets, ignore_index, function):
    """Terms (N,) of hidden (..., D) @ weight (C, D)ᵀ + bias (C,): one tile of the product at a
    time, adjusted and reduced while it is in the cache."""
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
    """Gradients with respect to hidden, weight and bias, see term_tiles."""
    dtype = _product_dtype(hidden.dtype)
    return term_gradients(
        hidden, weight, bias, labels, terms, coefficients, adjustment, targets, wanted, dtype,
        add_up,
    )  # fmt: skip


def _product_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to multiply in: the tensors' own where torch has a fast kernel for it."""
    supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    return dtype if dtype not in supported or supported[dtype]() else torch.float32
