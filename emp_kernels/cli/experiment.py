"""One training run under a pruning method: everything but the choice of samples is held equal.

The *stale* protocol: a warm-up epoch trains on everything; each later epoch draws the method's
share, shuffled, and a sample's score is refreshed only when it is trained. Two runs that share
seed and keep share their initial weights, steps, schedule and augmentation, whatever the method.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

import emp_kernels as emp
from emp_kernels.keep import kept_count

from .images import Images

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
WIDTH = 16  # channels of the first convolution
EVALUATION_BATCH = 2048


@dataclass(frozen=True)
class Recipe:
    """How to train, the same for every method.

    Attributes:
        epochs: in all, the warm-up one included.
        batch_size: samples a step.
        learning_rate: the highest, of one rise and one fall over the run (SGD with momentum).
    """

    epochs: int
    batch_size: int
    learning_rate: float = 0.1

    def steps(self, num_samples: int, keep: float) -> int:
        """Optimiser steps: a warm-up epoch on everything, the rest on the kept share."""
        kept = kept_count(keep, num_samples)
        warmup, pruned = (math.ceil(n / self.batch_size) for n in (num_samples, kept))
        return warmup + (self.epochs - 1) * pruned


@dataclass(frozen=True)
class Method:
    """A way to choose what an epoch trains on: the highest scores, or a random share.

    Attributes:
        name: what rows and plots call it.
        beta: weight of the memory term in the score; None draws at random and scores nothing.
    """

    name: str
    beta: float | None

    def sampler(self, state: emp.EMPState, keep: float, seed: int) -> "EpochSampler":
        """The order of sample ids, epoch after epoch."""

        def draw(generator: torch.Generator) -> torch.Tensor:
            if self.beta is not None:
                return state.select(keep)
            n = state.num_samples
            return torch.randperm(n, generator=generator)[: kept_count(keep, n)].sort().values

        return EpochSampler(state.num_samples, draw, seed)

    def loss(
        self, logits: torch.Tensor, labels: torch.Tensor, ids: torch.Tensor, state: emp.EMPState
    ) -> torch.Tensor:
        """Mean training loss of a batch; the same pass refreshes the samples' scores."""
        if self.beta is None:
            return emp.cross_entropy(logits, labels)
        return emp.cross_entropy(logits, labels, state, indices=ids)


def methods(beta: float) -> tuple[Method, ...]:
    """What the demo compares; LFL, low-frequency learning, is selection by loss alone."""
    return Method("random", None), Method("LFL", 0.0), Method("EMP", beta)


class EpochSampler(Sampler[int]):
    """All ids in the first epoch, then those of `draw`; shuffled by (seed, epoch)."""

    def __init__(
        self, num_samples: int, draw: Callable[[torch.Generator], torch.Tensor], seed: int
    ) -> None:
        self.num_samples, self.draw, self.seed = num_samples, draw, seed
        self.epoch = 0

    def __iter__(self) -> Iterator[int]:
        # Two streams, so that the order does not depend on whether the draw used its own.
        draws, order = (
            torch.Generator().manual_seed((self.seed << 32) + 2 * self.epoch + i) for i in (0, 1)
        )
        ids = self.draw(draws) if self.epoch else torch.arange(self.num_samples)
        self.epoch += 1
        return iter(ids[torch.randperm(len(ids), generator=order)].tolist())


@dataclass(frozen=True)
class Run:
    """What one run did.

    Attributes:
        method, keep, seed: what was run.
        accuracy: on the test split after the last epoch, in percent.
        steps, samples_trained: how much was trained.
        seconds: wall time of the training, evaluation left out.
        counts: (N,) int64, how often each training sample was trained.
        state: the scores at the end (of random: never written).
    """

    method: Method
    keep: float
    seed: int
    accuracy: float
    steps: int
    samples_trained: int
    seconds: float
    counts: torch.Tensor
    state: emp.EMPState


def small_cnn(channels: int, classes: int, seed: int) -> nn.Module:
    """Three convolutions, pooled to one vector; images (B, channels, H, W), H and W at least 4."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]

    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(seed)
        return nn.Sequential(
            *block(channels, WIDTH),
            *block(WIDTH, 2 * WIDTH),
            nn.MaxPool2d(2),
            *block(2 * WIDTH, 4 * WIDTH),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * WIDTH, classes),
        )


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
    on_step: Callable[[], None] = lambda: None,
) -> Run:
    """Train a small CNN on `data` with the samples that `method` chooses, and test it.

    Args:
        method: chooses the samples.
        keep: share of the training split that an epoch trains on, in (0, 1].
        seed: of the weights, the order, the augmentation and random draws.
        data: the images.
        recipe: how to train.
        device: where the model and the state live.
        on_step: called after each optimiser step.
    """
    num_samples = len(data.train_labels)
    steps = recipe.steps(num_samples, keep)
    model = small_cnn(data.train_images.shape[1], data.num_classes, seed).to(device)
    rate = recipe.learning_rate
    optimizer = torch.optim.SGD(
        model.parameters(), rate, MOMENTUM, weight_decay=WEIGHT_DECAY, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    state = emp.EMPState(num_samples, beta=method.beta or 0.0, device=device)
    generator = torch.Generator().manual_seed(seed)
    loader = DataLoader(
        emp.IndexedDataset(TensorDataset(data.train_images, data.train_labels)),
        batch_size=recipe.batch_size,
        sampler=method.sampler(state, keep, seed),
        generator=generator,
    )
    counts = torch.zeros(num_samples, dtype=torch.int64)

    model.train()
    start = time.perf_counter()
    for _ in range(recipe.epochs):
        for ids, (images, labels) in loader:
            images = augmented(images, data.shift, data.flip, generator)
            logits = model(images.to(device))
            loss = method.loss(logits, labels.to(device), ids, state)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            counts[ids] += 1
            on_step()
        state.epoch += 1
    if device != "cpu":
        torch.accelerator.synchronize(device)
    seconds = time.perf_counter() - start

    return Run(
        method=method,
        keep=keep,
        seed=seed,
        accuracy=accuracy(model, data.test_images, data.test_labels, device),
        steps=steps,
        samples_trained=int(counts.sum()),
        seconds=seconds,
        counts=counts,
        state=state,
    )


@torch.no_grad()
def accuracy(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, device: str = "cpu"
) -> float:
    """Share of the images whose highest logit is the label, in percent."""
    model.eval()
    batches = zip(images.split(EVALUATION_BATCH), labels.split(EVALUATION_BATCH), strict=True)
    correct = sum(int((model(x.to(device)).argmax(1).cpu() == y).sum()) for x, y in batches)
    return 100.0 * correct / len(labels)
