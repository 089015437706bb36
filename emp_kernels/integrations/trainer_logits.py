"""A batch's logits in the Hugging Face Trainer: as the model returns them, or as a product of its
last hidden states and its output head that is never materialised."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import nn

from ..linear import linear_cross_entropy, score_linear
from ..loss import cross_entropy
from ..results import Scores, Selection
from ..scoring import score

IGNORED = -100  # transformers' label of ignored tokens


class Logits(NamedTuple):
    """logits (..., C)."""

    logits: torch.Tensor

    def score(self, labels: torch.Tensor, beta: float) -> Scores:
        return score(self.logits, labels, beta=beta, ignore_index=IGNORED)

    def losses(self, labels: torch.Tensor, rows: Selection, smoothing: float) -> torch.Tensor:
        """Losses (K,) of the rows, differentiable."""
        return cross_entropy(
            self.logits,
            labels,
            rows=rows,
            label_smoothing=smoothing,
            ignore_index=IGNORED,
            reduction="none",
        )


class Product(NamedTuple):
    """hidden (..., D) @ weight (C, D)ᵀ + bias (C,)."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None

    def score(self, labels: torch.Tensor, beta: float) -> Scores:
        return score_linear(
            self.hidden, self.weight, labels, bias=self.bias, beta=beta, ignore_index=IGNORED
        )

    def losses(self, labels: torch.Tensor, rows: Selection, smoothing: float) -> torch.Tensor:
        return linear_cross_entropy(
            self.hidden,
            self.weight,
            labels,
            bias=self.bias,
            rows=rows,
            label_smoothing=smoothing,
            ignore_index=IGNORED,
            reduction="none",
        )


class OutputHead:
    """A context manager in which a causal language model's head sees only one position of each
    sequence and its full input is stored, so that the model computes no logits.

    Raises:
        ValueError: the model's head is not a plain torch.nn.Linear; or (at the first batch) the
            model transforms the logits further, for example by a softcap or a scale.
    """

    def __init__(self, model: nn.Module) -> None:
        find = getattr(model, "get_output_embeddings", None)
        head = find() if find is not None else None
        if type(head) is not nn.Linear:
            raise ValueError(
                "EMPTrainerMixin: with materialise_logits=False the model's output head must be a "
                f"torch.nn.Linear, got {type(head).__name__}"
            )
        self.head = head
        self._verified = False
        self._product: Product | None = None
        self._hook: Any = None

    def __enter__(self) -> OutputHead:
        self._product = None
        self._hook = self.head.register_forward_pre_hook(self._keep)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()

    def _keep(self, head: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, *others = arguments
        device = hidden.device.type
        dtype = hidden.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        weight, bias = self.head.weight.to(dtype), self.head.bias
        self._product = Product(hidden.to(dtype), weight, bias if bias is None else bias.to(dtype))
        return (hidden[:, :1], *others)

    def product(self, logits: torch.Tensor) -> Product:
        """The head's input and its weight. `logits` (B, 1, C) are the model's."""
        product, self._product = self._product, None
        if product is None:
            raise ValueError(
                "EMPTrainerMixin: with materialise_logits=False the model must run its output "
                "head once a batch, got a model that did not"
            )
        if not self._verified:  # only once: it synchronises with the device
            with torch.no_grad():
                found = nn.functional.linear(product.hidden[:, :1], *product[1:]).float()
            tolerance = 1e-4 if product.hidden.dtype == torch.float32 else 3e-2
            if found.shape != logits.shape or not torch.allclose(
                found, logits.detach().float(), rtol=tolerance, atol=tolerance
            ):
                raise ValueError(
                    "EMPTrainerMixin: materialise_logits must be True for a model that changes the "
                    "product of its head (a softcap, a scale), got False"
                )
            self._verified = True
        return product
