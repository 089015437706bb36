"""The gradient of the cross-entropy: one read of the trained rows, one write."""

import triton
import triton.language as tl

from .plan import SIZES


@triton.jit
def minus_one_plus_exp(x):
    """exp(x) - 1 for x <= 0, also near zero."""
    series = x * tl.fma(x, tl.fma(x, tl.fma(x, tl.fma(x, 1 / 120, 1 / 24), 1 / 6), 1 / 2), 1.0)
    return tl.where(x > -0.1, series, tl.exp(x) - 1.0)


@triton.jit(do_not_specialize=SIZES)
def gradient_rows(
    logits, labels, loss, lse, maximum, scales, out,
    n, rows_per_group, group_stride, row_stride, vectors, classes,
    V: tl.constexpr, GROUPED: tl.constexpr, SHARD: tl.constexpr, ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """out (N, C) = (softmax - onehot) * scales (N,); a row whose scale is 0 is zero and not read.
    With SHARD, maximum (N,) is that of all columns and lse is relative to it.

    The label's entry is exp(-loss) - 1, because the probability itself would round to 1.
    """
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = rows < n
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    scale = tl.load(scales + rows, mask=inside, other=0.0)
    trained = scale != 0.0
    y = tl.load(labels + rows, mask=trained, other=0).to(tl.int64)
    row_lse = tl.load(lse + rows, mask=trained, other=0.0)
    if SHARD:
        row_m = tl.load(maximum + rows, mask=trained, other=0.0)
        row_lse += row_m - row_m  # NaN where the row has no softmax
    row_loss = tl.load(loss + rows, mask=trained, other=0.0)
    at_label = minus_one_plus_exp(-row_loss) + (row_lse - row_lse)  # NaN where a logit is +inf

    start = rows * row_stride
    if GROUPED:
        start = rows // rows_per_group * group_stride + rows % rows_per_group * row_stride
    present = (columns < vectors * V)[None, :]
    z = tl.load(
        logits + tl.multiple_of(start, V)[:, None] + columns[None, :],
        mask=trained[:, None] & present,
        other=0.0,
    ).to(tl.float32)
    if SHARD:
        z -= row_m[:, None]
    p = tl.exp(z - row_lse[:, None])
    scale = tl.where(row_loss == row_loss, scale, row_loss)  # NaN for invalid rows
    gradient = tl.where(columns[None, :] == y[:, None], at_label[:, None], p) * scale[:, None]
    gradient = tl.where(trained[:, None], gradient, 0.0)
    target = out + tl.multiple_of(rows * classes, V)[:, None] + columns[None, :]
    tl.store(target, gradient, mask=inside[:, None] & present)
