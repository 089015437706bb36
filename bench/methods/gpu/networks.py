"""Residual networks for images of 32x32; weights depend on a seed alone."""

from collections.abc import Callable, Sequence

import torch
from torch import nn


def _convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
    """A convolution and its normalisation."""
    return [
        nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False),
        nn.BatchNorm2d(outputs),
    ]


class Residual(nn.Module):
    """relu(shortcut(x) + body(x)); the shortcut is a convolution of 1x1 where shapes differ."""

    def __init__(self, body: Sequence[nn.Module], inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        same = inputs == outputs and stride == 1
        shortcut = [] if same else _convolution(inputs, outputs, 1, stride)
        self.shortcut = nn.Sequential(*shortcut)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.shortcut(x) + self.body(x))


def basic(inputs: int, width: int, stride: int) -> tuple[nn.Module, int]:
    """Two convolutions of 3x3, as in ResNet-18; and the channels that come out."""
    body = [*_convolution(inputs, width, 3, stride), nn.ReLU(), *_convolution(width, width)]
    return Residual(body, inputs, width, stride), width


def bottleneck(inputs: int, width: int, stride: int) -> tuple[nn.Module, int]:
    """1x1, 3x3 and 1x1 to four times the width, as in ResNet-50; and the channels that come out."""
    body = [
        *(*_convolution(inputs, width, 1), nn.ReLU()),
        *(*_convolution(width, width, 3, stride), nn.ReLU()),
        *_convolution(width, 4 * width, 1),
    ]
    return Residual(body, inputs, 4 * width, stride), 4 * width


class Features(nn.Module):
    """A body whose last dimension is `size`, in bfloat16 on a GPU, and a linear head in float32."""

    def __init__(self, body: nn.Module, size: int, classes: int) -> None:
        super().__init__()
        self.body, self.size = body.to(memory_format=torch.channels_last), size
        self.head = nn.Linear(size, classes)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.is_cuda):
            found: torch.Tensor = self.body(x.contiguous(memory_format=torch.channels_last))
        return found.float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.features(x))
        return logits


Block = Callable[[int, int, int], tuple[nn.Module, int]]


def resnet(block: Block, counts: Sequence[int], width: int, classes: int) -> Features:
    """He et al. (2016) with the first convolution that images of 32x32 need; the i-th stage has
    counts[i] blocks of width `width` · 2^i, and all but the first halve the image."""
    parts, channels = [*_convolution(3, width), nn.ReLU()], width
    for stage, count in enumerate(counts):
        for place in range(count):
            stride = 2 if stage and not place else 1
            made, channels = block(channels, width << stage, stride)
            parts.append(made)
    return Features(nn.Sequential(*parts, *_pooled()), channels, classes)


def fast_resnet(width: int, classes: int) -> Features:
    """Eight convolutions, half of them in two residual blocks: a minute for what ResNet-18 takes
    many for."""

    def halved(inputs: int, outputs: int) -> list[nn.Module]:
        return [*_convolution(inputs, outputs), nn.ReLU(), nn.MaxPool2d(2)]

    def residual(channels: int) -> nn.Module:
        body = [*_convolution(channels, channels), nn.ReLU(), *_convolution(channels, channels)]
        return Residual(body, channels, channels, 1)

    parts = [
        *(*_convolution(3, width), nn.ReLU()),
        *(*halved(width, 2 * width), residual(2 * width)),
        *halved(2 * width, 4 * width),
        *(*halved(4 * width, 8 * width), residual(8 * width)),
    ]
    return Features(nn.Sequential(*parts, *_pooled()), 8 * width, classes)


def _pooled() -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
