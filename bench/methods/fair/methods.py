"""The methods that choose each step's samples. Everything else is the same for every method.

A method yields batches of exactly B ids: if an epoch ends within a batch, the batch continues with
the next epoch's ids, so that no method has smaller batches or more samples than another.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch

import emp_kernels as emp
from bench.methods.fair.data import Split
from emp_kernels.choosing import gumbel_keys, importance_draw
from emp_kernels.drawing import stream_of
from emp_kernels.integrations.candidates import looking

# ids (B,), and the weights of their losses, (B,) or None for 1
Batch = tuple[torch.Tensor, torch.Tensor | None]


@dataclass
class Run:
    """The running training, as visible to a method.

    Attributes:
        split: the training split.
        model: the model being trained.
        state: the samples' last scores, from the steps that trained them.
        batch_size: B.
        seed: of every draw.
        steps: how many batches will be taken of the method.
    """

    split: Split
    model: torch.nn.Module
    state: emp.EMPState
    batch_size: int
    seed: int
    steps: int

    def look(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and labels of the samples `ids` (B,), in evaluation mode."""
        with looking(self.model):
            return self.model(self.split, ids), self.split.labels[ids]


class Method:
    """A way of choosing.

    Attributes:
        name: in rows and tables.
        beta: of the score that the state remembers.
        by_epoch: whether its first epoch is everything, as full data's.
    """

    beta: float
    by_epoch: ClassVar[bool] = False

    @property
    def name(self) -> str:
        raise NotImplementedError

    def batches(self, run: Run) -> Iterator[Batch]:
        """For ever the batches to train."""
        raise NotImplementedError


@dataclass(frozen=True)
class Full(Method):
    """All samples, shuffled anew in every pass."""

    beta: float = 1.0

    @property
    def name(self) -> str:
        return "full"

    def batches(self, run: Run) -> Iterator[Batch]:
        return drawn(emp.EMPSampler(run.state, 1.0, seed=run.seed), run.batch_size)


@dataclass(frozen=True)
class Sampling(Method):
    """EMPSampler: everything in the first epoch, then the share `keep` by its sampling method."""

    by_epoch: ClassVar[bool] = True

    sampling: str
    keep: float = 0.3
    beta: float = 1.0

    @property
    def name(self) -> str:
        return f"EMPSampler {self.sampling}, keep {self.keep:g}"

    def batches(self, run: Run) -> Iterator[Batch]:
        sampler = emp.EMPSampler(run.state, self.keep, sampling=self.sampling, seed=run.seed)
        return drawn(sampler, run.batch_size)


@dataclass(frozen=True)
class Balanced(Method):
    """With replacement, each class with probability proportional to its size to the power `power`:
    0 makes all classes equally frequent, 0.5 uses the square roots of their sizes."""

    power: float = 0.5
    beta: float = 1.0

    @property
    def name(self) -> str:
        return f"class-balanced, power {self.power:g}"

    def batches(self, run: Run) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(run.seed)
        sizes = torch.bincount(run.split.labels).double()
        weights = sizes.pow(self.power - 1)[run.split.labels]
        edges = weights.cumsum(0)
        while True:
            places = torch.rand(run.batch_size, generator=generator, dtype=torch.float64)
            yield torch.searchsorted(edges, places * edges[-1]), None


@dataclass(frozen=True)
class Candidates(Method):
    """Passes over all samples in batches `times` as large, B of which are trained: all are scored
    by a separate forward pass with the current weights.

    choose: "top", the highest scores; "gumbel", without replacement in proportion to them;
    "importance", by score plus mean score with weights that keep the loss unbiased.
    """

    times: int = 4
    beta: float = 1.0
    choose: str = "top"

    @property
    def name(self) -> str:
        by = "loss" if self.beta == 0 else "EMP"
        how = "" if self.choose == "top" else f", {self.choose}"
        return f"{self.times}x candidates by {by}{how}"

    def batches(self, run: Run) -> Iterator[Batch]:
        b = run.batch_size
        everything = emp.EMPSampler(run.state, 1.0, seed=run.seed)
        for step, (ids, _) in enumerate(drawn(everything, self.times * b)):
            logits, labels = run.look(ids)
            if self.choose == "top":
                chosen = emp.score_and_select(logits, labels, run.state, keep=b, indices=ids)
                yield ids[chosen.indices], None
                continue
            scores = emp.score(logits, labels, beta=self.beta).score
            stream = stream_of(run.seed, step)
            if self.choose == "gumbel":
                yield ids[emp.select(gumbel_keys(scores, stream), b)], None
                continue
            kept, weights = importance_draw(scores, b, stream)
            yield ids[kept], None if weights is None else weights[kept]


def drawn(sampler: emp.EMPSampler, size: int) -> Iterator[Batch]:
    """Endless batches of `size` ids from a sampler's epochs, with their weights in the epoch that
    drew them."""
    epoch = iter(sampler)
    while True:
        ids: list[torch.Tensor] = []
        weights: list[torch.Tensor] = []
        while (left := size - sum(map(len, ids))) > 0:
            part = torch.tensor(list(islice(epoch, left)), dtype=torch.int64)
            ids.append(part)
            weights.append(sampler.weights[part])
            if len(part) < left:
                epoch = iter(sampler)
        yield torch.cat(ids), torch.cat(weights)


def in_order(epochs: Iterator[torch.Tensor], size: int) -> Iterator[Batch]:
    """For ever `size` ids of `epochs`, one behind the other, each of which is asked for only once
    the one before is trained."""
    ids = torch.zeros(0, dtype=torch.int64)
    while True:
        while len(ids) < size:
            ids = torch.cat([ids, next(epochs)])
        yield ids[:size], None
        ids = ids[size:]
