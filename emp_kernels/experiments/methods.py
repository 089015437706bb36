"""Pruning methods: which samples a run trains on, and the three that the demo compares."""

import contextlib
import itertools
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn

import emp_kernels as emp

from .images import Images, augmented
from .networks import small_cnn


@dataclass(frozen=True)
class Recipe:
    """How to train, the same for every method.

    Attributes:
        epochs: total number, including the warm-up epoch.
        batch_size: samples per step.
        learning_rate: peak of the one-cycle schedule (SGD with momentum).
        network: makes the initial model from (channels, classes, seed).
    """

    epochs: int
    batch_size: int
    learning_rate: float = 0.1
    network: Callable[[int, int, int], nn.Module] = small_cnn

    def steps(self, num_samples: int, keep: float) -> int:
        """Optimiser steps: a warm-up epoch on everything, the rest on the kept share."""
        sampler = emp.EMPSampler(emp.EMPState(num_samples), keep, epochs=self.epochs)
        return sampler.total_steps(self.batch_size)


class Batch(NamedTuple):
    """A training batch: ids (B,), augmented images (B, ...), labels (B,), and per-sample weights
    (B,) of the gradient, or None for equal ones."""

    ids: torch.Tensor
    images: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor | None = None


@dataclass
class TrainingContext:
    """The running training: everything that a method may use to choose samples.

    Attributes:
        data, keep, seed, recipe, device: as given to `run`.
        steps: how many batches the run takes from the method.
        model: the model being trained, in training mode.
        state: the samples' scores, and how often each was trained.
        draws, augmentation: generators of the method's random choices and of the images'.
        seconds: wall time so far, per named part of the training.
    """

    data: Images
    keep: float
    seed: int
    recipe: Recipe
    device: str
    steps: int
    model: nn.Module
    state: emp.EMPState
    draws: torch.Generator
    augmentation: torch.Generator
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Add the time spent inside to `seconds[part]`."""
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start

    def batch(self, ids: torch.Tensor, weights: torch.Tensor | None = None) -> Batch:
        """The samples `ids` (B,), their images augmented."""
        data = self.data
        images = augmented(data.train_images[ids], data.shift, data.flip, self.augmentation)
        labels = data.train_labels[ids].to(self.device)
        return Batch(ids, images.to(self.device), labels, weights)

    def epoch(self, sampler: emp.EMPSampler, keys: torch.Tensor) -> Iterator[Batch]:
        """The batches of the sampler's next epoch, chosen as if `keys` (N,) were the scores."""
        with self.timed("choosing"):
            remembered = self.state.score.clone()
            self.state.score.copy_(keys)
            with warnings.catch_warnings():  # some methods never score
                warnings.simplefilter("ignore", emp.EMPWarning)
                ids = iter(sampler)  # fixes the order
            self.state.score.copy_(remembered)
        while drawn := list(itertools.islice(ids, self.recipe.batch_size)):
            yield self.batch(torch.tensor(drawn))


@dataclass(frozen=True)
class Method:
    """Trains on the samples with the highest scores.

    Attributes:
        name: its name in rows and plots.
        beta: weight of the memory term in the score; None draws random scores before each epoch,
            and no scores are stored.
    """

    name: str
    beta: float | None

    def batches(self, context: TrainingContext) -> Iterator[Batch]:
        """An endless iterator over the batches of a run."""
        sampler = emp.EMPSampler(context.state, context.keep, seed=context.seed)
        while True:
            score = context.state.score
            if self.beta is None:
                score = torch.rand(len(score), generator=context.draws)
            yield from context.epoch(sampler, score)

    def loss(self, logits: torch.Tensor, batch: Batch, state: emp.EMPState) -> torch.Tensor:
        """Mean training loss of a batch; the same pass refreshes the samples' scores."""
        if self.beta is None:
            return emp.cross_entropy(logits, batch.labels)
        return emp.cross_entropy(logits, batch.labels, state, indices=batch.ids)


def demo_methods(beta: float) -> tuple[Method, ...]:
    """The methods that the demo compares; LFL, low-frequency learning, selects by loss alone."""
    return Method("random", None), Method("LFL", 0.0), Method("EMP", beta)
