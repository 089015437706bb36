"""Launching the kernels of losses with options; their arguments are those of terms.py."""

from typing import Any

import torch

from .launching import OPTIONS, on_device
from .layout import Rows
from .plan import layout_of, power_of_two
from .terms import row_terms, terms_gradient

_TILE = 2048  # elements per tile: eight per thread, as tanh and weights fill the registers


def _cut(rows: Rows, probabilities: torch.Tensor | None) -> dict[str, int]:
    """Rows and columns of a tile, and the vector width V of loads."""
    logits, classes = rows.logits, rows.classes
    strides = rows.group_stride, rows.row_stride
    vector, spread = layout_of(logits.data_ptr(), *strides, classes, logits.element_size())
    vector = 1 if spread else vector
    if probabilities is not None:
        other, spread = layout_of(
            probabilities.data_ptr(), 0, probabilities.stride(0), classes,
            probabilities.element_size(),
        )  # fmt: skip
        vector = 1 if spread else min(vector, other)
    width = min(_TILE, power_of_two(max(1, classes)))
    several = max(1, _TILE // 2 // width)
    return {"V": vector, "ROWS": several, "WIDTH": width, "num_warps": several * width // 256 or 1}


def _scales(adjustment: Any) -> tuple[Any, Any, float, float, float]:
    """highs and lows per row or None, else high and low, and 1 / softcap."""
    temperature, softcap = adjustment
    top, to_cap = (1.0, 0.0) if softcap is None else (softcap, 1 / softcap)
    if isinstance(temperature, torch.Tensor):
        scale = top / temperature.double()
        high = scale.float()
        return high, (scale - high.double()).float(), 1.0, 0.0, to_cap
    scale = torch.tensor(top / temperature, dtype=torch.float64, device="cpu")
    rounded = float(scale.float())
    return None, None, rounded, top / temperature - rounded, to_cap


def _weights(targets: Any) -> tuple[Any, Any, int, float, float]:
    """weight, probabilities and their stride, share and uniform."""
    if targets is None:
        return None, None, 0, 0.0, 0.0
    weight, probabilities, share, uniform = targets
    stride = 0 if probabilities is None else probabilities.stride(0)
    return (None if weight is None else weight.float()), probabilities, stride, share, uniform


def terms(
    rows: Rows, labels: torch.Tensor, adjustment: Any, targets: Any,
    ignore_index: int | None,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """loss, entropy, lse, target, total, others, maximum, above and mean of N > 0 rows."""
    n = rows.count
    if labels.dtype == torch.uint64 and ignore_index is not None and ignore_index < 0:
        ignore_index = None  # labels from 2^63 on would wrap around to it
    highs, lows, high, low, to_cap = _scales(adjustment)
    weight, probabilities, stride, share, uniform = _weights(targets)
    out = torch.empty((9, n), dtype=torch.float32, device=rows.logits.device)
    cut = _cut(rows, probabilities)
    with on_device(rows.logits.device):
        row_terms[(-(-n // cut["ROWS"]),)](
            rows.logits, labels.reshape(-1).contiguous(), highs, lows, weight, probabilities, out,
            n, rows.per_group, rows.group_stride, rows.row_stride, stride,
            rows.classes // cut["V"], rows.classes, ignore_index or 0, high, low, to_cap, share,
            uniform,
            GROUPED=rows.grouped, IGNORE=ignore_index is not None,
            CAPPED=adjustment.softcap is not None, PER_ROW=highs is not None,
            TARGETS=targets is not None, WEIGHTED=weight is not None,
            SOFT=probabilities is not None, **cut, **OPTIONS,
        )  # fmt: skip
    return out.unbind()


def gradient(
    rows: Rows, labels: torch.Tensor, found: Any, coefficients: Any,
    adjustment: Any, targets: Any,
) -> torch.Tensor:  # fmt: skip
    """The gradient (N, C) of N * C > 0 logits, in their dtype."""
    n, classes = rows.count, rows.classes
    highs, lows, high, low, to_cap = _scales(adjustment)
    if coefficients.target is None:
        targets = None
    weight, probabilities, stride, share, uniform = _weights(targets)
    out = torch.empty((n, classes), dtype=rows.logits.dtype, device=rows.logits.device)
    cut = _cut(rows, probabilities)
    saved = [
        None if x is None else x.to(torch.float32).contiguous()
        for x in (found.loss, found.lse, found.maximum, found.above, found.mean, found.others)
    ]
    by = [None if x is None else x.to(torch.float32).contiguous() for x in coefficients]
    with on_device(rows.logits.device):
        terms_gradient[(-(-n // cut["ROWS"]), -(-classes // cut["WIDTH"]))](
            rows.logits, labels.reshape(-1).contiguous(), highs, lows, weight, probabilities,
            *saved, *by, out, n, rows.per_group, rows.group_stride, rows.row_stride, stride,
            classes // cut["V"], classes, high, low, to_cap, share, uniform,
            GROUPED=rows.grouped, CAPPED=adjustment.softcap is not None,
            PER_ROW=highs is not None, REUSED=found.maximum is None,
            ENTROPY=coefficients.entropy is not None, TARGETS=targets is not None,
            WEIGHTED=weight is not None, SOFT=probabilities is not None, **cut,
            **OPTIONS,
        )  # fmt: skip
    return out
