"""Images and a small network for them: digits (in the package) and CIFAR-100 at 16x16."""

import functools
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from bench.methods.fair.data import Data
from emp_kernels.experiments import images
from emp_kernels.experiments.networks import small_cnn

SPLIT_SEED = 7
HELD_OUT = 0.1  # of the training images, for validation
MOMENTUM, DECAY = 0.9, 5e-4
WIDTH = 16  # channels of the first convolution for CIFAR-100


class Pictures(NamedTuple):
    """pixels (N, channels, H, W) float32, labels (N,) int64."""

    pixels: torch.Tensor
    labels: torch.Tensor


class Cnn(nn.Module):
    """A convolutional network with SGD, Nesterov's momentum and weight decay."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            body.parameters(), 1.0, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True
        )

    def forward(self, split: Pictures, ids: torch.Tensor) -> torch.Tensor:
        pixels = split.pixels[ids].contiguous(memory_format=torch.channels_last)
        logits: torch.Tensor = self.body(pixels)
        return logits

    def step(self, loss: torch.Tensor, rate: float) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()


def digits_network(classes: int, seed: int) -> Cnn:
    return Cnn(small_cnn(1, classes, seed))


def cifar_network(classes: int, seed: int) -> Cnn:
    """Three convolutions of stride 2, of width w, 2w and 4w: quick, for it is to be run often."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        widths = (3, WIDTH, 2 * WIDTH, 4 * WIDTH)
        parts = [part for i in range(3) for part in block(widths[i], widths[i + 1])]
        return Cnn(
            nn.Sequential(
                *parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[3], classes)
            )
        )


@functools.cache
def load(name: str, directory: Path | None = None) -> Data:
    """The image set with a share of its training split held out.

    Raises:
        CommandError: CIFAR-100 is not in `directory`.
    """
    found = images.load(name, directory)
    n = len(found.train_labels)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(SPLIT_SEED))
    held, rest = order.tensor_split([round(HELD_OUT * n)])
    parts = [Pictures(found.train_images[ids], found.train_labels[ids]) for ids in (rest, held)]
    test = Pictures(found.test_images, found.test_labels)
    network = digits_network if name == "digits" else cifar_network
    return Data(*parts, test, found.num_classes, network)
