"""One training run under a pruning method: only the choice of samples depends on the method.

The *stale* protocol: a warm-up epoch trains on everything; each later epoch draws the method's
share, shuffled, and a sample's score is refreshed only when it is trained. Two runs that share
seed and keep share their initial weights, steps, schedule and the generators of their draws,
whatever the method.
"""

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

import emp_kernels as emp

from .images import Images
from .methods import Method, Recipe, TrainingContext

MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
EVALUATION_BATCH = 2048


class Point(NamedTuple):
    """The test accuracy in percent after `step` steps and `seconds` of training."""

    step: int
    seconds: float
    accuracy: float


@dataclass(frozen=True)
class Run:
    """The result of one run.

    Attributes:
        method, keep, seed: the run's arguments.
        curve: test accuracy during training; the last point is the final one.
        steps, samples_trained: number of steps and of samples in them.
        parts: seconds of the training's parts: "choosing" the samples, and "loss", where scores
            are refreshed too.
        state: the final state, with the scores and how often each sample was trained
            (`selections`).
        model: the trained model.
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
        """Wall time of the training, without evaluation."""
        return self.curve[-1].seconds


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
        method: the pruning method.
        keep: share of the training split that an epoch trains on, in (0, 1].
        seed: determines weights, order, augmentation and random draws.
        data: the images.
        recipe: how to train.
        device: the device of the model and the state.
        evaluations: number of tests, evenly spread over the steps, the last one at the end.
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
