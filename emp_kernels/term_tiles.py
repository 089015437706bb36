"""Terms of losses with options (terms.py) of a product hidden @ weightᵀ + bias, one tile at a time,
and their gradients from recomputed tiles. Shared by the backends, like tiles.py.

For products, RowTerms' `maximum` is that of the adjusted logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .terms import Adjustment, Coefficients, RowTerms, Targets
from .tiles import Product, column_of, product_gradients

# Adds a tile (R, V) of adjusted logits with labels (R,) and the given first column to parts (4, R)
# float64: m, u, t of row_sums and the label's logit.
AddParts = Callable[[torch.Tensor, torch.Tensor, int, torch.Tensor], None]


def adjusted(
    z: torch.Tensor, adjustment: Adjustment, temperature: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | float]:
    """Adjusted logits, in place of z (R, V), and their derivative with respect to z; `temperature`
    is (R, 1) if each row has its own."""
    scale = 1 / adjustment.temperature if temperature is None else temperature.reciprocal()
    if adjustment.softcap is None:
        return (z if adjustment.changes_nothing else z.mul_(scale)), scale
    tanh = z.div_(adjustment.softcap).tanh_()
    slope = torch.addcmul(tanh.new_ones(()), tanh, tanh, value=-1).mul_(scale)
    return tanh.mul_(adjustment.softcap * scale), slope


def _temperature(
    adjustment: Adjustment, positions: torch.Tensor | None, wide: torch.dtype
) -> torch.Tensor | None:
    """Temperatures of the rows at `positions`, (K, 1); None if all rows have the same."""
    if not isinstance(adjustment.temperature, torch.Tensor):
        return None
    temperature = adjustment.temperature.to(wide)[:, None]
    return temperature if positions is None else temperature[positions]


def add_parts(tile: torch.Tensor, labels: torch.Tensor, first: int, parts: torch.Tensor) -> None:
    """AddParts in torch operations. One maximal element is left out of every sum."""
    z = tile.double()
    top, place = z.max(1, keepdim=True)
    d = z - top
    e = d.exp().scatter_(1, place, 0.0)
    top, u, t = top[:, 0], e.sum(1), torch.where(e > 0, e * d, e).sum(1)
    m, old_u, old_t, z_y = parts
    grows = top > m
    high_u, high_t = torch.where(grows, u, old_u), torch.where(grows, t, old_t)
    low_u, low_t = torch.where(grows, old_u, u) + 1, torch.where(grows, old_t, t)
    delta = -(top - m).abs()
    f = delta.exp()
    joined = (torch.minimum(top, m) > -torch.inf) & (top < torch.inf)
    new_u = torch.where(joined, high_u + f * low_u, high_u)
    new_t = torch.where(joined, high_t + f * (low_t + delta * low_u), high_t)
    broken = old_u.isnan() | z.isnan().any(1)
    y = labels - first
    here = (y >= 0) & (y < tile.shape[1])
    column = torch.where(here, y, 0)[:, None]
    new_z_y = torch.where(here, z.gather(1, column)[:, 0], z_y)
    rows = torch.maximum(m, top), new_u.masked_fill(broken, torch.nan), new_t, new_z_y
    for part, found in zip(parts, rows, strict=True):
        part.copy_(found)


def product_terms(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    adjustment: Adjustment,
    targets: Targets | None,
    ignore_index: int | None,
    dtype: torch.dtype,
    add: AddParts,
) -> RowTerms:
    """Terms (N,) of hidden (..., D) @ weight (C, D)ᵀ + bias (C,) and labels (...) in range;
    ignored rows are skipped. Products are computed in `dtype`."""
    flat = labels.reshape(-1).to(torch.int64)
    positions = None
    if ignore_index is not None:
        positions = (flat != ignore_index).nonzero()[:, 0]
        flat = flat[positions]
    n = len(flat)
    nothing = [-torch.inf, 0.0, 0.0, torch.nan]
    parts = torch.tensor(nothing, dtype=torch.float64, device=hidden.device)[:, None].repeat(1, n)
    weighted = torch.zeros(n, dtype=torch.float64, device=hidden.device)
    wide = torch.promote_types(dtype, torch.float32)
    temperature = _temperature(adjustment, positions, wide)
    product = Product(hidden, weight, bias, positions, dtype)
    for rows in product.row_tiles():
        hidden_tile = product.hidden_of(rows)
        own = None if temperature is None else temperature[rows]
        for columns in product.column_tiles():
            tile = product.tile(hidden_tile, columns).to(wide)
            tile, _ = adjusted(tile, adjustment, own)
            add(tile, flat[rows], columns.start, parts[:, rows])
            if targets is not None and targets.weight is None:
                weighted[rows] += tile.sum(1)
            elif targets is not None and targets.weight is not None:
                weighted[rows] += torch.mv(tile, targets.weight[columns].to(wide))
    m, u, t, z_y = parts
    above, mean = u.log1p(), t / (1 + u)
    lse, entropy = m + above, above - mean + (m - m)  # NaN if m is not finite
    fields = [(m - z_y) + above, entropy, lse, None, None, m, above, mean]
    if targets is not None:
        weights = targets.weight
        total = torch.tensor(float(weight.shape[0]), dtype=torch.float64, device=hidden.device)
        total = (total if weights is None else weights.sum(dtype=torch.float64)) * targets.uniform
        fields[3:5] = total * lse - targets.uniform * weighted, total.expand(n)
    kept = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    rounded = (x if x is None else x.to(kept) for x in fields)
    return RowTerms(*(_placed(x, positions, labels.numel()) for x in rounded))  # type: ignore[arg-type]


def _placed(x: torch.Tensor | None, positions: torch.Tensor | None, n: int) -> torch.Tensor | None:
    if x is None or positions is None:
        return x
    return x.new_zeros(n).index_copy_(0, positions, x)


def term_gradients(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    terms: RowTerms,
    coefficients: Coefficients,
    adjustment: Adjustment,
    targets: Targets | None,
    wanted: Sequence[bool],
    dtype: torch.dtype,
    add_up: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients with respect to hidden, weight and bias, as far as `wanted`, from the coefficients
    of terms.py; rows whose coefficients are all 0 are not multiplied. Labels outside [0, C) are on
    other shards, in which case `add_up` sums hidden's gradient over the ranks."""
    wide = torch.promote_types(dtype, torch.float32)
    trained = torch.stack([x != 0 for x in coefficients if x is not None]).any(0)
    positions = trained.nonzero()[:, 0]
    y = labels.reshape(-1).to(torch.int64)[positions]

    def of_rows(x: torch.Tensor | None) -> Any:
        return None if x is None else x[positions].to(wide)[:, None]

    a, b, s, rest = (of_rows(x) for x in coefficients)
    if terms.maximum is None:  # reused
        zero = torch.zeros((), dtype=wide, device=hidden.device)
        maximum, above, mean = zero.expand(len(positions), 1), of_rows(terms.lse), None
    else:
        maximum, above, mean = (of_rows(x) for x in (terms.maximum, terms.above, terms.mean))
    loss, lse = of_rows(terms.loss), of_rows(terms.lse)
    at_label = (rest + a * torch.expm1(-loss)) + (lse - lse)  # NaN where a logit is +inf
    above = torch.where(loss.isnan(), loss, above)  # invalid rows
    temperature = _temperature(adjustment, positions, wide)

    def of_tile(z: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
        own = None if temperature is None else temperature[rows]
        z, slope = adjusted(z.to(wide), adjustment, own)
        d = z.sub_(maximum[rows])
        p = (d - above[rows]).exp_()
        column, inside = column_of(y[rows], columns)
        g = p * a[rows]
        if s is not None and targets is not None:
            q: float | torch.Tensor = targets.uniform
            if targets.weight is not None:
                q = targets.weight[columns].to(wide) * targets.uniform
            g -= s[rows] * q
        value = torch.where(inside[:, None], at_label[rows], g.gather(1, column))
        g.scatter_(1, column, value)
        if b is not None and mean is not None:
            g += p.mul_(b[rows]).mul_(d.clamp_(min=-1e4).sub_(mean[rows]))
        return g.mul_(slope)

    return product_gradients(hidden, weight, bias, positions, wanted, dtype, of_tile, add_up)
