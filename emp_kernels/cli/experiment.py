"""One training run under a pruning method: everything but the choice of samples is held equal.

The *stale* protocol: a warm-up epoch trains on everything; each later epoch draws the method's
share, shuffled, and a sample's score is refreshed only when it is trained. Two runs that share
seed and keep share their initial weights, steps, schedule and augmentation, whatever the method.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import emp_kernels as emp

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
        sampler = emp.EMPSampler(emp.EMPState(num_samples), keep, epochs=self.epochs)
        return sampler.total_steps(self.batch_size)


@dataclass(frozen=True)
class Method:
    """What an epoch trains on: the samples of the highest scores.

    Attributes:
        name: what rows and plots call it.
        beta: weight of the memory term in the score; None gives every sample a random score
            before each epoch, and refreshes nothing.
    """

    name: str
    beta: float | None

    def before_epoch(self, state: emp.EMPState, generator: torch.Generator) -> None:
        """Whatever the method does to the state before the sampler draws an epoch from it."""
        if self.beta is None:
            state.score.copy_(torch.rand(state.num_samples, generator=generator))

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


@dataclass(frozen=True)
class Run:
    """What one run did.

    Attributes:
        method, keep, seed: what was run.
        accuracy: on the test split after the last epoch, in percent.
        steps, samples_trained: how much was trained.
        seconds: wall time of the training, evaluation left out.
        state: at the end: the scores (of random: random ones), and how often each training
            sample was trained (`selections`).
    """

    method: Method
    keep: float
    seed: int
    accuracy: float
    steps: int
    samples_trained: int
    seconds: float
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
    augmentation, draws, workers = (
        torch.Generator().manual_seed((seed << 2) + stream) for stream in range(3)
    )
    loader = DataLoader(
        emp.IndexedDataset(TensorDataset(data.train_images, data.train_labels)),
        batch_size=recipe.batch_size,
        sampler=emp.EMPSampler(state, keep, seed=seed),
        generator=workers,
    )

    model.train()
    start = time.perf_counter()
    for _ in range(recipe.epochs):
        method.before_epoch(state, draws)
        for ids, (images, labels) in loader:
            images = augmented(images, data.shift, data.flip, augmentation)
            logits = model(images.to(device))
            loss = method.loss(logits, labels.to(device), ids, state)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            on_step()
    if device != "cpu":
        torch.accelerator.synchronize(device)
    seconds = time.perf_counter() - start

    return Run(
        method=method,
        keep=keep,
        seed=seed,
        accuracy=accuracy(model, data.test_images, data.test_labels, device),
        steps=steps,
        samples_trained=int(state.selections.sum()),
        seconds=seconds,
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
