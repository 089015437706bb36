"""A bag of hashed embeddings with one hidden layer; quick on one core.

AdaGrad trains the embeddings, with one rate for each, and Adam the layers after them. The table's
gradient is summed per embedding and applied only where it is not zero, by hand: a sparse optimiser
would take longer than the rest of the step.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from bench.methods.fair.features import BUCKETS, Texts

SIZE, HIDDEN = 64, 128
WIDE = 1024  # of the large network, both
EPSILON = 1e-8
START = 0.01  # scale of the initial embeddings
HEAD = 0.02  # Adam's rate relative to AdaGrad's


class Bags(nn.Module):
    """Logits (B, classes) of texts: the sum of their embeddings over the square root of their
    number."""

    def __init__(self, classes: int, seed: int, size: int = SIZE, hidden: int = HIDDEN) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.register_buffer("table", START * torch.randn(BUCKETS, size))
            self.head = nn.Sequential(
                nn.Linear(size, hidden), nn.ReLU(), nn.Linear(hidden, classes)
            )
        self.squares = torch.zeros(BUCKETS)  # of each embedding's gradients, their mean, summed
        self.optimizer = torch.optim.Adam(self.head.parameters(), fused=True)

    def bags(self, texts: Texts, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Concatenated features of the texts `ids` (B,), and the start of each (B,)."""
        lengths = texts.lengths[ids]
        ends = lengths.cumsum(0)
        offsets = ends - lengths
        skip = torch.repeat_interleave(texts.starts[ids] - offsets, lengths)
        places = skip.add_(torch.arange(len(skip)))
        return texts.features.index_select(0, places), offsets

    def forward(self, texts: Texts, ids: torch.Tensor) -> torch.Tensor:
        features, offsets = self.bags(texts, ids)
        bags = functional.embedding_bag(features, self.table, offsets, mode="sum")
        bags *= texts.lengths[ids].float().rsqrt()[:, None]
        if torch.is_grad_enabled():
            self.used = features, texts.lengths[ids], bags.requires_grad_()
        logits: torch.Tensor = self.head(bags)
        return logits

    def step(self, loss: torch.Tensor, rate: float) -> None:
        """One step against the gradient of `loss`, a loss of the last logits."""
        self.optimizer.zero_grad()
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = HEAD * rate
        self.optimizer.step()
        features, lengths, bags = self.used
        gradient = bags.grad * lengths.float().rsqrt()[:, None]
        # By radix, ten times as fast as torch's sort.
        order = torch.from_numpy(np.argsort(features.numpy().astype(np.uint16), kind="stable"))
        row = torch.repeat_interleave(lengths).index_select(0, order)
        features = features.index_select(0, order)
        rows, counts = features.unique_consecutive(return_counts=True)
        summed = functional.embedding_bag(row, gradient, counts.cumsum(0) - counts, mode="sum")
        squares = summed.square().mean(1).add_(self.squares.index_select(0, rows))
        self.squares.index_copy_(0, rows, squares)
        summed *= (-rate / (squares.sqrt() + EPSILON))[:, None]
        self.table.index_add_(0, rows, summed)


def wide(classes: int, seed: int) -> Bags:
    """The large network, for which a small one may look."""
    return Bags(classes, seed, WIDE, WIDE)
