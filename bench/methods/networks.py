"""The networks of the signals and of CIFAR-100; their initial weights depend only on a seed."""

import torch
from torch import nn

SIGNAL_WIDTH = 24
RESNET_WIDTH = 24


def signal_cnn(channels: int, classes: int, seed: int, *, width: int = SIGNAL_WIDTH) -> nn.Module:
    """Three convolutions along signals (B, channels, 1, W), pooled to one vector; the first has
    `width` channels, the others twice as many."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [
            nn.Conv2d(inputs, outputs, (1, 5), stride=(1, 2), padding=(0, 2), bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ]

    with torch.random.fork_rng(devices=[]):  # layers draw their weights from the global generator
        torch.manual_seed(seed)
        return nn.Sequential(
            *block(channels, width),
            *block(width, 2 * width),
            *block(2 * width, 2 * width),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, classes),
        )


class Residual(nn.Module):
    """relu(shortcut(x) + two convolutions of x); the shortcut is a 1x1 convolution where shapes
    differ."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.shortcut(x) + self.body(x))


class SmallResNet(nn.Module):
    """Three residual blocks of width w, 2w and 4w (He et al., 2016), 0.18 million parameters for
    100 classes. Features in bfloat16 (twice as fast on CPUs that know it), logits in float32."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        width = RESNET_WIDTH
        self.features = nn.Sequential(
            nn.Conv2d(channels, width, 3, 1, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            Residual(width, width, 1),
            Residual(width, 2 * width, 2),
            Residual(2 * width, 4 * width, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        ).to(memory_format=torch.channels_last)
        self.head = nn.Linear(4 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            features = self.features(x.to(memory_format=torch.channels_last))
        return self.head(features.float())


def small_resnet(channels: int, classes: int, seed: int) -> nn.Module:
    """A :class:`SmallResNet` for images (B, channels, H, W)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return SmallResNet(channels, classes)
