"""Checks the factors of a product hidden @ weightᵀ + bias."""

from __future__ import annotations

import torch

from .validation import check_logits, check_same_device, check_strided


def check_product(
    function: str, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> None:
    """Check that hidden (..., D), weight (C, D) and bias (C,) or None have one dtype and one
    device."""
    check_logits(function, hidden, "hidden")
    others = {"weight": weight} if bias is None else {"weight": weight, "bias": bias}
    for name, tensor in others.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"{function}: {name} must be a torch.Tensor, got {type(tensor).__name__}"
            )
        if tensor.dtype != hidden.dtype:
            raise TypeError(
                f"{function}: {name} must have the dtype of hidden, {hidden.dtype}, "
                f"got {tensor.dtype}"
            )
        check_strided(function, name, tensor)
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(
            f"{function}: weight must have shape (C, {hidden.shape[-1]}), got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{function}: bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}"
        )
    for name, tensor in others.items():
        check_same_device(function, name, tensor, "hidden", hidden)
