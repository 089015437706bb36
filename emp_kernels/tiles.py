"""The product hidden @ weightᵀ + bias one tile at a time, and its gradients from recomputed tiles.

Shared by the backends: torch's matrix product fills one reused tile, so temporary memory does not
grow with rows times classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

# Tile sizes at which the product reaches its full speed, 2 or 4 MB, which fit in the last-level
# cache. Few rows get up to eight times the columns, to amortise the cost of a call; in float32 only
# very few rows do, because those products are faster in narrow tiles.
ROWS = 2048
COLUMNS = 512


class Product:
    """Tiles of hidden (..., D) @ weight (C, D)ᵀ + bias (C,), for the rows at `positions`.

    Args:
        positions: (K,) in the flattened leading dimensions, or None for all rows in order.
        dtype: of the products and tiles: that of hidden, or a wider one.
    """

    def __init__(
        self,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        positions: torch.Tensor | None,
        dtype: torch.dtype,
    ) -> None:
        self.hidden, self.weight, self.bias = hidden.detach(), weight.detach(), bias
        self.positions, self.dtype = positions, dtype
        self.classes, self.width = weight.shape
        self.rows = hidden.shape[:-1].numel() if positions is None else len(positions)
        self.tile_rows = max(1, min(ROWS, self.rows))
        few = ROWS if dtype.itemsize == 2 else ROWS // 16
        self.tile_columns = COLUMNS * max(1, min(8, few // self.tile_rows))
        size = self.tile_rows * min(self.tile_columns, self.classes)
        self.memory = torch.empty(size, dtype=dtype, device=hidden.device)

    def row_tiles(self) -> Iterator[slice]:
        for start in range(0, self.rows, self.tile_rows):
            yield slice(start, min(start + self.tile_rows, self.rows))

    def column_tiles(self) -> Iterator[slice]:
        for start in range(0, self.classes, self.tile_columns):
            yield slice(start, min(start + self.tile_columns, self.classes))

    def hidden_of(self, rows: slice) -> torch.Tensor:
        """Rows of hidden (R, D); copied only if they are selected or not contiguous."""
        try:
            flat = self.hidden.view(-1, self.width)
            chosen = flat[rows if self.positions is None else self.positions[rows]]
        except RuntimeError:  # the leading dimensions do not collapse: only these rows are copied
            positions = self.positions
            if positions is None:
                positions = torch.arange(rows.start, rows.stop, device=self.hidden.device)
            else:
                positions = positions[rows]
            chosen = self.hidden[torch.unravel_index(positions, self.hidden.shape[:-1])]
        return chosen.to(self.dtype)

    def weight_of(self, columns: slice) -> torch.Tensor:
        """Rows of weight (V, D): the columns of the product."""
        return self.weight[columns].to(self.dtype)

    def tile(
        self, hidden: torch.Tensor, columns: slice, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """hidden (R, D) @ weight[columns]ᵀ + bias[columns]: (R, V), in `out`, or in a buffer that
        the next tile overwrites."""
        if out is None:
            shape = len(hidden), columns.stop - columns.start
            out = self.memory[: shape[0] * shape[1]].view(shape)
        weight = self.weight_of(columns).t()
        if self.bias is None:
            return torch.mm(hidden, weight, out=out)
        return torch.addmm(self.bias[columns].to(self.dtype), hidden, weight, out=out)


class KeptTiles:
    """Tiles of a product with few rows, stored for the backward pass in the memory of the weight's
    gradient, which then overwrites them.

    A gradient (C, D) can hold the tiles of up to D rows, at its end: column tiles are processed in
    order, and each is read before the gradient reaches it.

    Attributes:
        gradient: (C, D), or None as long as nothing is reserved.
    """

    def __init__(self) -> None:
        self.gradient: torch.Tensor | None = None
        self.positions: torch.Tensor | None = None
        self.rows = 0

    def reserve(self, product: Product) -> bool:
        """Whether the product fits; all its tiles must then be written."""
        weight, size = product.weight, product.dtype.itemsize
        free = weight.numel() * weight.dtype.itemsize - product.rows * product.classes * size
        if free < 0 or free % size or not product.rows:
            return False
        self.positions, self.rows = product.positions, product.rows
        self.gradient = torch.empty(weight.shape, dtype=weight.dtype, device=weight.device)
        self.memory = self.gradient.view(-1).view(torch.uint8)[free:].view(product.dtype)
        return True

    def hold(self, positions: torch.Tensor) -> bool:
        """Whether the tiles are those of the rows at `positions` (K,)."""
        if self.gradient is None or len(positions) != self.rows:
            return False
        return self.positions is None or torch.equal(self.positions, positions)

    def tile(self, rows: slice, columns: slice) -> torch.Tensor:
        shape = rows.stop - rows.start, columns.stop - columns.start
        start = self.rows * columns.start + rows.start * shape[1]
        return self.memory[start : start + shape[0] * shape[1]].view(shape)


def gradients(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    labels: torch.Tensor,
    loss: torch.Tensor,
    lse: torch.Tensor,
    scales: torch.Tensor,
    wanted: Sequence[bool],
    dtype: torch.dtype,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients of sum scales * loss with respect to hidden, weight and bias, as far as `wanted`,
    from tiles of (softmax - onehot) * scales of the rows whose scale is not 0.

    The label's entry is expm1(-loss), because the probability itself would round to 1. Sums over
    tiles are float32 (float64 in float64), which takes K * D numbers for K rows besides the results
    and a few tiles.

    Args:
        hidden: (..., D). weight: (C, D). bias: (C,) or None. labels: (...).
        loss, lse, scales: (N,) of the flattened rows.
        wanted: which of the three gradients to compute; the others are None.
        dtype: of the products.
    """
    wide = torch.promote_types(dtype, torch.float32)
    positions = scales.nonzero()[:, 0]
    y = labels.reshape(-1).to(torch.int64)[positions]
    loss, lse, scales = (x[positions].to(wide) for x in (loss, lse, scales))
    scales = torch.where(loss.isnan(), torch.nan, scales)  # invalid rows
    at_label = (torch.expm1(-loss) + (lse - lse)) * scales  # NaN where a logit is +inf

    def of_tile(z: torch.Tensor, rows: slice, columns: slice) -> torch.Tensor:
        g = (z.to(wide) - lse[rows, None]).exp_()
        g *= scales[rows, None]
        column, inside = column_of(y[rows], columns)
        value = torch.where(inside, at_label[rows], g.gather(1, column)[:, 0])
        return g.scatter_(1, column, value[:, None])

    return product_gradients(hidden, weight, bias, positions, wanted, dtype, of_tile)


def column_of(labels: torch.Tensor, columns: slice) -> tuple[torch.Tensor, torch.Tensor]:
    """The column of each label (R,) within a tile of `columns`, (R, 1), 0 if it is outside, and
    whether it is inside, (R,)."""
    inside = (labels >= columns.start) & (labels < columns.stop)
    return torch.where(inside, labels - columns.start, 0)[:, None], inside


def product_gradients(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    positions: torch.Tensor,
    wanted: Sequence[bool],
    dtype: torch.dtype,
    of_tile: Callable[[torch.Tensor, slice, slice], torch.Tensor],
    add_up: Callable[[torch.Tensor], torch.Tensor] | None = None,
    kept: KeptTiles | None = None,
) -> tuple[torch.Tensor | None, ...]:
    """Gradients with respect to hidden, weight and bias, as far as `wanted`, from tiles of the
    gradient with respect to the product's rows at `positions`: ``of_tile(tile, rows, columns)``,
    which may overwrite the tile and returns float32 (float64). For sharded columns, `add_up` sums
    hidden's gradient over the ranks before it is rounded. Tiles that are `kept` are read in place,
    and the weight's gradient overwrites them."""
    wide = torch.promote_types(dtype, torch.float32)
    product = Product(hidden, weight, bias, positions, dtype)
    by_hidden = None
    if wanted[0]:
        shape = len(positions), product.width
        by_hidden = torch.zeros(shape, dtype=wide, device=hidden.device)
    by_weight = None if kept is None else kept.gradient
    if by_weight is None:
        by_weight = weight.new_empty(weight.shape if wanted[1] else 0)
    by_bias = weight.new_empty(product.classes)
    row_tiles = list(product.row_tiles())
    hidden_tiles = [product.hidden_of(rows) for rows in row_tiles if len(row_tiles) == 1]
    at_once = len(row_tiles) == 1 and weight.dtype == dtype == wide
    for columns in product.column_tiles():
        weight_tile = product.weight_of(columns)
        weight_sum = weight.new_empty(0)
        if wanted[1] and not at_once:
            weight_sum = torch.zeros(weight_tile.shape, dtype=wide, device=weight.device)
        bias_sum = torch.zeros(len(weight_tile), dtype=wide, device=weight.device)
        for i, rows in enumerate(row_tiles):
            h = hidden_tiles[i] if hidden_tiles else product.hidden_of(rows)
            z = product.tile(h, columns) if kept is None else kept.tile(rows, columns)
            g = of_tile(z, rows, columns)
            if wanted[2]:
                bias_sum += g.sum(0)
            g = g.to(dtype)
            if by_hidden is not None:
                _add_product(by_hidden[rows], g, weight_tile)
            if wanted[1] and at_once:
                torch.mm(g.t(), h, out=by_weight[columns])
            elif wanted[1]:
                _add_product(weight_sum, g.t(), h)
        if wanted[1] and not at_once:
            by_weight[columns] = weight_sum
        by_bias[columns] = bias_sum
    result = None
    if by_hidden is not None:
        if add_up is not None:
            by_hidden = add_up(by_hidden)
        result = hidden.new_zeros(hidden.shape)
        result.flatten(0, -2)[positions] = by_hidden.to(hidden.dtype)
    return result, by_weight if wanted[1] else None, by_bias if wanted[2] else None


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """total += a @ b."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    else:
        total += torch.mm(a, b, out=a.new_empty(len(a), b.shape[1]))  # unaffected by autocast
