"""A training that can stop after any step and go on in another process, bit for bit."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import emp_kernels as emp
from bench.methods.gpu.plan import Choice
from bench.methods.gpu.tasks import Task
from emp_kernels.drawing import stream_of

WAITED_EVERY = 20  # steps: the device's time is in `seconds`, and its queue is short
WARMUP = 0.1  # of the steps, in which the rate rises; then it falls to 0


class Training:
    """Of `task`, for `steps` at `rate`, each on a batch that `choice` chose.

    Attributes:
        step: how many are done.
        seconds: that they took, choosing included, over all processes.
    """

    _parts = ("model", "optimizer", "state", "sampler")

    def __init__(self, task: Task, choice: Choice, steps: int, rate: float, seed: int) -> None:
        self.task, self.choice, self.steps, self.rate, self.seed = task, choice, steps, rate, seed
        self.state = emp.EMPState(task.samples, beta=choice.beta, device=task.device)
        self.sampler = emp.EMPSampler(self.state, choice.keep, sampling=choice.sampling, seed=seed)
        self.model, self.optimizer = task.begin(seed)
        self.step, self.seconds = 0, 0.0
        self._epoch: Iterator[int] | None = None

    @property
    def done(self) -> bool:
        return self.step >= self.steps

    def advance(self) -> None:
        """One step."""
        start, task = time.perf_counter(), self.task
        torch.manual_seed(stream_of(self.seed, self.step) % 2**63)  # dropout and augmentation
        ids, weights = self._drawn(self.choice.candidates * task.batch_size)
        if self.choice.candidates > 1:
            scores = task.look(self.model, ids, self.state.beta)
            self.state.update(ids, scores)
            kept = emp.select(scores.score, task.batch_size).to(ids.device)
            ids, weights = ids[kept], weights[kept.to(weights.device)]
        loss = task.loss(self.model, ids, weights, self.state)
        done = self.step / self.steps
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(
                (done + 1 / self.steps) / WARMUP, (1 - done) / (1 - WARMUP)
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        if task.device.type == "cuda" and (self.done or self.step % WAITED_EVERY == 0):
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - start

    def _drawn(self, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """`size` ids, the next epoch's where one ends, and their weights in the epoch that drew."""
        parts, weights, left = [], [], size
        while left:
            self._epoch = self._epoch or iter(self.sampler)
            part = torch.tensor(list(itertools.islice(self._epoch, left)), dtype=torch.int64)
            parts.append(part)
            weights.append(self.sampler.weights[part])
            left -= len(part)
            self._epoch = None if left else self._epoch
        return torch.cat(parts), torch.cat(weights)

    def save(self, file: Path) -> None:
        """Write all that the rest depends on; a file is whole or not there."""
        own = {"step": self.step, "seconds": self.seconds}
        parts = {name: getattr(self, name).state_dict() for name in self._parts}
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(".part")
        torch.save(own | parts, part)
        part.rename(file)

    def load(self, file: Path) -> None:
        """Go on from what `save` wrote."""
        found: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        for name in self._parts:
            getattr(self, name).load_state_dict(found[name])
        self.step, self.seconds = found["step"], found["seconds"]
