"""One training run under a pruning method: everything but the choice of samples is held equal.

The *stale* protocol: a warm-up epoch trains on everything; each later epoch draws the method's
share, shuffled, and a sample's score is refreshed only when it is trained. Two runs that share
seed and keep share their initial weights, steps, schedule and the generators of their draws,
whatever the method.
"""

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

from .images import Images
from .networks import small_cnn

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
EVALUATION_BATCH = 2048


@dataclass(frozen=True)
class Recipe:
    """How to train, the same for every method.

    Attributes:
        epochs: in all, the warm-up one included.
        batch_size: samples a step.
        learning_rate: the highest, of one rise and one fall over the run (SGD with momentum).
        network: of (channels, classes, seed), the model with its initial weights.
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
    """What one step trains on: ids (B,), augmented images (B, ...), labels (B,), and by how much
    each sample's gradient counts, (B,) or None for equally."""

    ids: torch.Tensor
    images: torch.Tensor
    labels: torch.Tensor
    weights: torch.Tensor | None = None


@dataclass
class TrainingContext:
    """A run under way: all that a method may look at while it chooses.

    Attributes:
        data, keep, seed, recipe, device: as given to `run`.
        steps: how many batches will be taken of the method.
        model: what is being trained, in training mode.
        state: the samples' scores, and how often each was trained.
        draws, augmentation: generators of the method's random choices and of the images'.
        seconds: wall time so far of the named parts of the training.
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
        """The batches of the sampler's next epoch, drawn as if `keys` (N,) were the scores."""
        with self.timed("choosing"):
            remembered = self.state.score.clone()
            self.state.score.copy_(keys)
            with warnings.catch_warnings():  # a method that remembers nothing means it
                warnings.simplefilter("ignore", emp.EMPWarning)
                ids = iter(sampler)  # fixes the order
            self.state.score.copy_(remembered)
        while drawn := list(itertools.islice(ids, self.recipe.batch_size)):
            yield self.batch(torch.tensor(drawn))


@dataclass(frozen=True)
class Method:
    """Trains on the samples of the highest scores.

    Attributes:
        name: what rows and plots call it.
        beta: weight of the memory term in the score; None gives every sample a random score
            before each epoch, and remembers nothing.
    """

    name: str
    beta: float | None

    def batches(self, context: TrainingContext) -> Iterator[Batch]:
        """What the steps of a run train on, one after the other; more than a run takes."""
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


def methods(beta: float) -> tuple[Method, ...]:
    """What the demo compares; LFL, low-frequency learning, is selection by loss alone."""
    return Method("random", None), Method("LFL", 0.0), Method("EMP", beta)


class Point(NamedTuple):
    """The test accuracy in percent after so many steps and seconds of training."""

    step: int
    seconds: float
    accuracy: float


@dataclass(frozen=True)
class Run:
    """What one run did.

    Attributes:
        method, keep, seed: what was run.
        curve: how the accuracy on the test split grew; the last point is the result.
        steps, samples_trained: how much was trained.
        parts: seconds of the training's parts: "choosing" the samples, and "loss", where scores
            are refreshed too.
        state: at the end: the scores, and how often each training sample was trained
            (`selections`).
        model: as trained.
    """

    method: Method
    keep: float
    seed: int
    curve: tuple[Point, ...]
    steps: int
    samples_trained: int
    parts: dict[str, float]
    state: emp.EMPState
    model: nn.Module

    @property
    def accuracy(self) -> float:
        """On the test split after the last step, in percent."""
        return self.curve[-1].accuracy

    @property
    def seconds(self) -> float:
        """Wall time of the training, evaluation left out."""
        return self.curve[-1].seconds


def augmented(
    images: torch.Tensor, shift: int, flip: bool, generator: torch.Generator
) -> torch.Tensor:
    """Images (B, channels, H, W), each shifted by up to `shift` pixels and perhaps mirrored."""
    b, _, height, width = images.shape
    down, across = torch.randint(0, 2 * shift + 1, (2, b, 1), generator=generator)
    rows, columns = down + torch.arange(height), across + torch.arange(width)
    if flip:
        mirrored = torch.rand(b, 1, generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = nn.functional.pad(images, [shift] * 4).permute(0, 2, 3, 1)
    shifted = padded[torch.arange(b)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return shifted.permute(0, 3, 1, 2).contiguous()


def run(
    method: Method,
    keep: float,
    seed: int,
    data: Images,
    recipe: Recipe,
    *,
    device: str = "cpu",
    evaluations: int = 1,
    on_step: Callable[[], None] = lambda: None,
) -> Run:
    """Train a network on `data` with the samples that `method` chooses, and test it.

    Args:
        method: chooses the samples.
        keep: share of the training split that an epoch trains on, in (0, 1].
        seed: of the weights, the order, the augmentation and random draws.
        data: the images.
        recipe: how to train.
        device: where the model and the state live.
        evaluations: how many times to test, evenly spread over the steps, the last at the end.
        on_step: called after each optimiser step.
    """
    num_samples = len(data.train_labels)
    steps = recipe.steps(num_samples, keep)
    model = recipe.network(data.train_images.shape[1], data.num_classes, seed).to(device)
    rate = recipe.learning_rate
    optimizer = torch.optim.SGD(
        model.parameters(), rate, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    state = emp.EMPState(num_samples, beta=method.beta or 0.0, device=device)
    augmentation, draws = (
        torch.Generator().manual_seed((seed << 2) + stream) for stream in range(2)
    )
    context = TrainingContext(
        data, keep, seed, recipe, device, steps, model, state, draws, augmentation
    )
    tested_at = {-(-steps * part // evaluations) for part in range(1, evaluations + 1)}

    curve: list[Point] = []
    trained = 0
    model.train()
    batches = itertools.islice(method.batches(context), steps)
    seconds, start = 0.0, time.perf_counter()
    for step, batch in enumerate(batches, 1):
        logits = model(batch.images)
        with context.timed("loss"):
            loss = method.loss(logits, batch, state)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        trained += len(batch.ids)
        on_step()
        if step in tested_at:
            if device != "cpu":
                torch.accelerator.synchronize(device)
            seconds += time.perf_counter() - start
            tested = accuracy(model, data.test_images, data.test_labels, device)
            curve.append(Point(step, seconds, tested))
            model.train()
            start = time.perf_counter()

    return Run(
        method=method,
        keep=keep,
        seed=seed,
        curve=tuple(curve),
        steps=steps,
        samples_trained=trained,
        parts=dict(context.seconds),
        state=state,
        model=model,
    )


def accuracy(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, device: str = "cpu"
) -> float:
    """Share of the images whose highest logit is the label, in percent."""
    return 100.0 * float(correct(model, images, labels, device).double().mean())


@torch.no_grad()
def correct(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, device: str = "cpu"
) -> torch.Tensor:
    """Whether each image's highest logit is its label, (N,) bool; leaves `model` in eval mode."""
    model.eval()
    batches = images.split(EVALUATION_BATCH)
    return torch.cat([model(x.to(device)).argmax(1).cpu() for x in batches]) == labels
