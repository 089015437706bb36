"""A data set as the comparison sees it: three splits, and the network that is trained on them."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, TypeVar

import torch


class Split(Protocol):
    """Samples with labels (N,) int64."""

    @property
    def labels(self) -> torch.Tensor: ...


S = TypeVar("S", bound=Split, contravariant=True)


class Network(Protocol[S]):
    """What is trained: a module whose own optimiser takes the steps."""

    def __call__(self, split: S, ids: torch.Tensor) -> torch.Tensor:
        """Logits (B, classes) of the samples `ids` (B,)."""

    def step(self, loss: torch.Tensor, rate: float) -> None:
        """One step against the gradient of `loss`, a loss of the last logits."""


class Data(NamedTuple):
    """network: of (classes, seed), with its first weights."""

    train: Split
    validation: Split
    test: Split
    classes: int
    network: Callable[[int, int], torch.nn.Module]
