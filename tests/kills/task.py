"""What every loop trains: 45 points, a small network, three epochs."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import one_hot

import emp_kernels as emp

# Neither the samples nor the 21 kept ones make whole batches, nor equal shares for two ranks.
SAMPLES, CLASSES, KEEP, BATCH_SIZE, EPOCHS = 45, 3, 21, 4, 3


def points() -> list[tuple[torch.Tensor, int]]:
    """Features (6,) and a label for each sample."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(SAMPLES) % CLASSES
    features = torch.randn(SAMPLES, 6, generator=generator)
    features[:, :CLASSES] += one_hot(labels, CLASSES)
    return list(zip(features, labels.tolist(), strict=True))


class Net(nn.Module):
    """Logits (N, 3); counts the batches it was trained on where every checkpoint keeps them."""

    batches: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, CLASSES)
        )
        self.register_buffer("batches", torch.zeros((), dtype=torch.int64))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.batches += 1
        return self.layers(features)


def parts() -> tuple[Net, torch.optim.Optimizer]:
    torch.manual_seed(0)
    net = Net()
    return net, torch.optim.SGD(net.parameters(), 0.3, 0.9)


def state_and_sampler() -> tuple[emp.EMPState, emp.EMPSampler]:
    state = emp.EMPState(SAMPLES)
    return state, emp.EMPSampler(state, KEEP, epochs=EPOCHS)
