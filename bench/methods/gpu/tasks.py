"""What is trained on a GPU: data, network, optimiser, and how a batch's loss and scores come about.

Everything random in a step draws from torch's generators, which the training seeds for each step.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn import functional

import emp_kernels as emp
from bench.methods.fair.training import macro_f1
from bench.methods.gpu.networks import Features
from emp_kernels.integrations.candidates import looking

EVALUATED = 1024  # samples at a time
SHIFT = 4  # pixels each way in augmentation
PROBE_STEPS, PROBE_RATE = 500, 1e-2


class Splits(dict[str, tuple[torch.Tensor, torch.Tensor]]):
    """Inputs (N, ...) and labels (N,) of "train", "validation" and "test"."""

    @property
    def classes(self) -> int:
        return int(self["train"][1].max()) + 1


class Task(Protocol):
    """A task on a device."""

    device: torch.device
    samples: int
    batch_size: int

    def begin(self, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        """A network with its first weights, and its optimiser."""

    def look(self, model: nn.Module, ids: torch.Tensor, beta: float) -> emp.Scores:
        """Scores of the samples `ids` (B,), without gradients."""

    def loss(
        self, model: nn.Module, ids: torch.Tensor, weights: torch.Tensor, state: emp.EMPState
    ) -> torch.Tensor:
        """The mean loss of the samples, each times its weight, whose scores go into the state."""

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        """Measures in percent."""


class Classified:
    """Inputs with labels.

    Attributes:
        network: of the number of classes.
        optimizer: of the network's parameters.
        augment: of a batch of inputs.
    """

    def __init__(
        self,
        splits: Splits,
        device: torch.device,
        batch_size: int,
        network: Callable[[int], nn.Module],
        optimizer: Callable[[Any], torch.optim.Optimizer],
        augment: Callable[[torch.Tensor], torch.Tensor],
    ) -> None:
        self.splits = {name: (x.to(device), y.to(device)) for name, (x, y) in splits.items()}
        self.classes, self.samples = splits.classes, len(splits["train"][1])
        self.device, self.batch_size = device, batch_size
        self.network, self.optimizer, self.augment = network, optimizer, augment

    def begin(self, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = self.network(self.classes).to(self.device)
        return model, self.optimizer(model.parameters())

    def look(self, model: nn.Module, ids: torch.Tensor, beta: float) -> emp.Scores:
        inputs, labels = self._of(ids)
        with looking(model):
            return emp.score(model(inputs), labels, beta=beta)

    def loss(
        self, model: nn.Module, ids: torch.Tensor, weights: torch.Tensor, state: emp.EMPState
    ) -> torch.Tensor:
        inputs, labels = self._of(ids)
        logits = model(self.augment(inputs))
        return emp.cross_entropy(logits, labels, state, indices=ids, sample_weight=weights)

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        inputs, labels = self.splits[split]
        with looking(model):
            logits = torch.cat([model(part) for part in inputs.split(EVALUATED)])
        predicted = logits.argmax(1)
        accuracy = 100 * float((predicted == labels).double().mean())
        return {"accuracy": accuracy, "macro_f1": macro_f1(predicted, labels, self.classes)}

    def _of(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, labels = self.splits["train"]
        at = ids.to(self.device)
        return inputs[at], labels[at]


class SimClr(Classified):
    """Pre-training without labels (Chen et al., 2020); its measure is a linear probe's accuracy."""

    temperature = 0.2

    def begin(self, seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(seed)
        model = self.network(128)
        assert isinstance(model, Features)
        size = model.size
        model.head = nn.Sequential(nn.Linear(size, size), nn.ReLU(), nn.Linear(size, 128))
        model = model.to(self.device)
        return model, self.optimizer(model.parameters())

    def _views(self, model: nn.Module, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (2 B, F) and projections of two views of each sample, one behind the other."""
        assert isinstance(model, Features)
        inputs, _ = self._of(ids)
        features = model.features(torch.cat([self.augment(inputs), self.augment(inputs)]))
        return features, model.head(features)

    def look(self, model: nn.Module, ids: torch.Tensor, beta: float) -> emp.Scores:
        with looking(model):
            return self._scores(*self._views(model, ids), beta)

    def _scores(self, features: torch.Tensor, z: torch.Tensor, beta: float) -> emp.Scores:
        first, second = features.detach().chunk(2)
        return emp.score_contrastive(
            *z.detach().chunk(2),
            form="ntxent",
            temperature=self.temperature,
            hidden=(first, second),
            beta=beta,
        )

    def loss(
        self, model: nn.Module, ids: torch.Tensor, weights: torch.Tensor, state: emp.EMPState
    ) -> torch.Tensor:
        features, z = self._views(model, ids)
        state.update(ids, self._scores(features, z, state.beta))
        n, unit = len(ids), functional.normalize(z, dim=1)
        similar = unit @ unit.T / self.temperature
        similar = similar.masked_fill(
            torch.eye(2 * n, dtype=torch.bool, device=z.device), -torch.inf
        )
        others = torch.arange(2 * n, device=z.device).roll(n)
        losses = functional.cross_entropy(similar, others, reduction="none")
        return (losses * weights.to(z.device).repeat(2)).mean()

    def evaluate(self, model: nn.Module, split: str) -> dict[str, float]:
        assert isinstance(model, Features)
        found = {}
        with looking(model):
            for name in ("train", split):
                inputs, labels = self.splits[name]
                parts = [model.features(part) for part in inputs.split(EVALUATED)]
                found[name] = torch.cat(parts), labels
        x, y = found["train"]
        mean, deviation = x.mean(0), x.std(0) + 1e-6
        probe = nn.Linear(x.shape[1], self.classes).to(self.device)
        optimizer = torch.optim.Adam(probe.parameters(), PROBE_RATE)
        for _ in range(PROBE_STEPS):
            at = torch.randint(len(x), (EVALUATED,), device=self.device)
            loss = functional.cross_entropy(probe((x[at] - mean) / deviation), y[at])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        inputs, labels = found[split]
        predicted = probe((inputs - mean) / deviation).argmax(1)
        accuracy = 100 * float((predicted == labels).double().mean())
        return {"accuracy": accuracy, "macro_f1": macro_f1(predicted, labels, self.classes)}


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Each image moved by up to SHIFT pixels each way, half of them mirrored."""
    n, _, height, width = images.shape
    device = images.device
    padded = functional.pad(images, (SHIFT,) * 4)
    top, left = torch.randint(2 * SHIFT + 1, (2, n), device=device)
    columns = torch.arange(width, device=device).repeat(n, 1)
    mirrored = torch.rand(n, device=device) < 0.5
    columns[mirrored] = columns[mirrored].flip(1)
    rows = top[:, None] + torch.arange(height, device=device)
    columns += left[:, None]
    samples = torch.arange(n, device=device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[samples, rows[:, :, None], columns[:, None]].permute(
        0, 3, 1, 2
    )


def distorted(images: torch.Tensor) -> torch.Tensor:
    """`shifted`, and each image's brightness, contrast and colour changed, as SimCLR needs it."""
    n, channels, *_ = images.shape
    device = images.device
    scale = 1 + 0.8 * (torch.rand(n, 1, 1, 1, device=device) - 0.5)
    offset = 0.8 * (torch.rand(n, channels, 1, 1, device=device) - 0.5)
    grey = (torch.rand(n, 1, 1, 1, device=device) < 0.2).float()
    found = shifted(images) * scale + offset
    return grey * found.mean(1, keepdim=True) + (1 - grey) * found
