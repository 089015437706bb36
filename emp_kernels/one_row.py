"""One row (C,) with a label (), which torch's own losses take too: it is served as (1, C)."""

from typing import Any

import torch


def is_one_row(logits: Any, labels: Any) -> bool:
    """Whether these are the logits and the integer label of one row."""
    return (
        isinstance(logits, torch.Tensor)
        and isinstance(labels, torch.Tensor)
        and logits.dim() == 1
        and labels.dim() == 0
    )


def batched(value: Any) -> Any:
    """An argument of one row as that of a batch of one: a tensor () becomes (1,)."""
    return value[None] if isinstance(value, torch.Tensor) and value.dim() == 0 else value
