"""Rows of similarities, computed by tensor cores one tile at a time, and their running sums.

A launch computes one block: this rank's rows of one view against all ranks' rows of one view.
Vectors are scaled by powers of two, so that no product overflows and nothing is rounded before the
products; the normalisation is applied to the tile. Each float32 product is computed as three TF32
products, which keeps float32's accuracy.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from .launching import OPTIONS
from .numerics import FLOOR, INF, LARGEST, NVIDIA, SCALE, UNSCALE, exp_scaled
from .sums import NAN_WINS

LENGTH = 8  # log2 of the scaled vectors' length: small float16 elements do not underflow
ROWS, COLUMNS, PROGRAMS = 64, 64, 264  # tile size; number of programs that fills a large GPU
SIZES = ["n", "total", "start"]


@triton.jit
def add_tile(m, u, t, z):
    """Add the tile z (R, C) to the sums (R,) relative to the running maximum m.

    One maximal element is left out; when two parts merge, the left-out element of the part with the
    smaller maximum is added. A NaN makes u NaN permanently; -inf counts as absent.
    """
    top = tl.max(z, 1)
    below = (z >= top[:, None]) == 0  # also for NaN
    d = tl.maximum(z - tl.maximum(top, -LARGEST)[:, None], FLOOR, propagate_nan=NAN_WINS)
    e = tl.where(below, exp_scaled(d, True), 0.0)
    maxima = tl.sum((z == top[:, None]).to(tl.float32), 1)
    tile_u = tl.sum(e, 1) + SCALE * tl.maximum(maxima - 1.0, 0.0)
    tile_t = tl.sum(tl.where(below, e * d, 0.0), 1)
    return merge_two(m, u, t, top, tile_u, tile_t)


@triton.jit
def merge_two(m, u, t, other_m, other_u, other_t):
    """The merged sums of two parts."""
    new_m = tl.maximum(m, other_m)
    base = tl.maximum(new_m, -LARGEST)
    lower = m < other_m
    d = tl.maximum(m - base, FLOOR)
    other_d = tl.maximum(other_m - base, FLOOR)
    factor = exp_scaled(d, True)
    other_factor = exp_scaled(other_d, True)
    u += tl.where(lower, SCALE, 0.0)
    other_u += tl.where(lower, 0.0, SCALE)
    t = tl.fma(d, u, t) * factor * UNSCALE + tl.fma(other_d, other_u, other_t) * other_factor * (
        UNSCALE
    )
    u = u * factor * UNSCALE + other_u * other_factor * UNSCALE
    return new_m, u, t


@triton.jit(do_not_specialize=SIZES)
def similarity_rows(
    rows, columns, row_scale, column_scale, out, n, total, start,
    WIDTH: tl.constexpr, ITSELF: tl.constexpr, R: tl.constexpr, C: tl.constexpr, K: tl.constexpr,
    PARTS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """out (PARTS, 4, n): m, u, t of rows (n, WIDTH) against each part of columns (total, WIDTH),
    and the similarity to the positive, 0 except in its part.

    Row i's diagonal is column start + i: with ITSELF it is left out, else it is the positive.
    """
    part = tl.program_id(1)
    own = tl.program_id(0) * R + tl.arange(0, R)
    here = own < n
    scale = tl.load(row_scale + own, mask=here, other=0.0)
    own_start = own.to(tl.int64) * WIDTH
    m = tl.full([R], -INF, tl.float32)
    u = tl.zeros([R], tl.float32)
    t = tl.zeros([R], tl.float32)
    positive = tl.zeros([R], tl.float32)
    tiles = tl.cdiv(total, C)
    for tile in range(part * tiles // PARTS, (part + 1) * tiles // PARTS):
        against = tile * C + tl.arange(0, C)
        there = against < total
        against_start = against.to(tl.int64) * WIDTH
        z = tl.zeros([R, C], tl.float32)
        for k in range(0, WIDTH, K):
            inner = k + tl.arange(0, K)
            inside = inner < WIDTH
            a = tl.load(
                rows + own_start[:, None] + inner[None, :],
                mask=here[:, None] & inside[None, :],
                other=0.0,
            )
            b = tl.load(
                columns + against_start[None, :] + inner[:, None],
                mask=inside[:, None] & there[None, :],
                other=0.0,
            )
            if UPCAST:
                a = a.to(tl.float32)
                b = b.to(tl.float32)
            z = tl.dot(a, b, z, input_precision="tf32x3" if NVIDIA else "ieee")
        z = z * scale[:, None] * tl.load(column_scale + against, mask=there, other=0.0)[None, :]
        diagonal = against[None, :] == (start + own)[:, None]
        if ITSELF:
            z = tl.where(there[None, :] & (diagonal == 0), z, -INF)
        else:
            positive += tl.sum(tl.where(diagonal & there[None, :], z, 0.0), 1)
            z = tl.where(there[None, :], z, -INF)
        m, u, t = add_tile(m, u, t, z)
    target = out + part.to(tl.int64) * 4 * n + own
    tl.store(target, m, mask=here)
    tl.store(target + n, u * UNSCALE, mask=here)
    tl.store(target + 2 * n, t * UNSCALE, mask=here)
    tl.store(target + 3 * n, positive, mask=here)


INTERPRETED = not isinstance(similarity_rows, triton.runtime.jit.JITFunction)


def scaled(vectors: torch.Tensor, norms: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """vectors (n, D) scaled exactly by powers of two, in their dtype, and the factors (n,) float64
    that normalise them."""
    power = torch.exp2(LENGTH - norms.log2().round())
    return (vectors * power[:, None].float()).to(vectors.dtype).contiguous(), 1 / (norms * power)


def similarity_sums(
    rows: tuple[torch.Tensor, torch.Tensor],
    columns: tuple[torch.Tensor, torch.Tensor],
    start: int,
    itself: bool,
) -> torch.Tensor:
    """Launches one block: sums (PARTS, 4, n) float32 of `similarity_rows`. Each side is a pair of
    vectors (n, D) and factors (n,) float32 from `scaled`."""
    (own, scale), (against, against_scale) = rows, columns
    n, width = own.shape
    blocks = triton.cdiv(n, ROWS)
    parts = max(1, min(triton.cdiv(len(against), COLUMNS), PROGRAMS // blocks))
    out = torch.empty((parts, 4, n), dtype=torch.float32, device=own.device)
    float32 = own.dtype == torch.float32
    kernel: Any = similarity_rows
    kernel[(blocks, parts)](
        own, against, scale, against_scale, out, n, len(against), start,
        WIDTH=width, ITSELF=itself, R=ROWS, C=COLUMNS, K=16 if float32 else 64, PARTS=parts,
        UPCAST=INTERPRETED and not float32, num_warps=8, num_stages=2 if float32 else 3, **OPTIONS,
    )  # fmt: skip
    return out
