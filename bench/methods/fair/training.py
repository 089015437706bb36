"""One run: a fixed number of steps of B samples, evaluated on another split."""

import itertools
import time
from typing import NamedTuple

import torch

import emp_kernels as emp
from bench.methods.fair.data import Data, Split
from bench.methods.fair.methods import Method, Run
from emp_kernels.integrations.candidates import looking

EVALUATED = 4096  # samples at a time


class Result(NamedTuple):
    """The result of a run.

    Attributes:
        accuracy, macro_f1: in percent; the mean of F1 is over the classes of the split.
        loss: mean cross-entropy, nats.
        steps, samples: trained, all batches of one size.
        seconds: CPU time of this process, including selection but not testing.
    """

    accuracy: float
    macro_f1: float
    loss: float
    steps: int
    samples: int
    seconds: float


def steps_of(samples: int, epochs: float, batch_size: int) -> int:
    """Steps of `epochs` passes over so many samples."""
    return round(epochs * samples / batch_size)


def train(
    data: Data, method: Method, rate: float, steps: int, seed: int, split: str, *, batch_size: int
) -> Result:
    """Train with `method` for `steps` at `rate`, which falls linearly to 0, and evaluate on
    `split`."""
    model = data.network(data.classes, seed)
    state = emp.EMPState(len(data.train.labels), beta=method.beta)
    run = Run(data.train, model, state, batch_size, seed, steps)
    start, samples = time.process_time(), 0
    for step, (ids, weights) in enumerate(itertools.islice(method.batches(run), steps)):
        loss = emp.cross_entropy(
            model(data.train, ids),
            data.train.labels[ids],
            state,
            indices=ids,
            sample_weight=weights,
        )
        model.step(loss, rate * (1 - step / steps))
        samples += len(ids)
    seconds = time.process_time() - start
    return Result(*evaluate(model, getattr(data, split)), steps, samples, seconds)


def evaluate(model: torch.nn.Module, split: Split) -> tuple[float, float, float]:
    """(accuracy, macro-F1, mean loss) on a split."""
    ids = torch.arange(len(split.labels)).split(EVALUATED)
    with looking(model):
        logits = torch.cat([model(split, part) for part in ids])
    predicted = logits.argmax(1)
    accuracy = 100 * float((predicted == split.labels).double().mean())
    f1 = macro_f1(predicted, split.labels, logits.shape[1])
    return accuracy, f1, float(emp.score(logits, split.labels).loss.double().mean())


def macro_f1(predicted: torch.Tensor, labels: torch.Tensor, classes: int) -> float:
    """Mean over the classes that `labels` has of 2 hits / (predicted + there), in percent."""
    hits = torch.bincount(labels[predicted == labels], minlength=classes).double()
    there = torch.bincount(labels, minlength=classes)
    f1 = 2 * hits / (torch.bincount(predicted, minlength=classes) + there).clamp_min(1)
    return 100 * float(f1[there > 0].mean())
