"""The small network that the demo trains; its initial weights depend only on a seed."""

import torch
from torch import nn

WIDTH = 16  # channels of the first convolution


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
