"""One run and its row: accuracy, cost, and the samples trained."""

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import emp_kernels as emp
from bench.methods.plan import STUDIES, Trial
from bench.methods.signals import mnist1d
from emp_kernels.experiments import images
from emp_kernels.experiments.training import Run, correct, run

RARE = 0.1  # the share of the training samples that were trained least
NOISE_SEED = 1_000  # the first seed of the wrong labels, far from those of the runs


@functools.cache
def load(name: str, directory: Path | None) -> images.Images:
    """The data set `name`, read or generated once a process."""
    return mnist1d() if name == "mnist1d" else images.load(name, directory)


def mislabelled(data: images.Images, share: float, seed: int) -> images.Images:
    """`data` with `share` of the training labels replaced by another class, uniformly at random."""
    n, classes = len(data.train_labels), data.num_classes
    draws = torch.Generator().manual_seed(NOISE_SEED + seed)
    wrong = torch.randperm(n, generator=draws)[: round(share * n)]
    labels = data.train_labels.clone()
    labels[wrong] += torch.randint(1, classes, (len(wrong),), generator=draws)
    return data._replace(train_labels=labels % classes)


def measured(
    trial: Trial, directory: Path | None, on_step: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Run `trial`; return its row without the origin."""
    study = STUDIES[trial.data]
    clean = load(study.data or trial.data, directory)
    data = mislabelled(clean, trial.noise, trial.seed)
    done = run(
        trial.method,
        trial.keep,
        trial.seed,
        data,
        study.recipe,
        evaluations=study.evaluations,
        on_step=on_step,
    )
    return trial.key | {
        "accuracy": round(done.accuracy, 4),
        "curve": [[step, round(s, 3), round(accuracy, 4)] for step, s, accuracy in done.curve],
        "steps": done.steps,
        "samples_trained": done.samples_trained,
        "seconds": round(done.seconds, 3),
        "choosing_seconds": round(done.parts.get("choosing", 0.0), 4),
        "loss_seconds": round(done.parts["loss"], 4),
        **frequencies(done, clean, data),
        **selections(done),
    }


def frequencies(done: Run, clean: images.Images, data: images.Images) -> dict[str, Any]:
    """How often samples were trained, and the accuracy on rarely trained ones.

    - `counts`: entry c counts the samples that were trained c times.
    - `rare_accuracy`, `other_accuracy`: in percent, by the true labels and without augmentation,
      of the tenth of the training samples trained least often (ties: the first) and of the others.
    - `wrong_share`: of all samples trained, the share whose label was wrong.
    """
    trained = done.state.selections.cpu()
    right = correct(done.model, data.train_images, clean.train_labels)
    order = trained.argsort(stable=True)
    rare, other = order.tensor_split([round(RARE * len(order))])
    wrong = data.train_labels != clean.train_labels
    return {
        "counts": torch.bincount(trained).tolist(),
        "rare_accuracy": _percent(right[rare]),
        "other_accuracy": _percent(right[other]),
        "wrong_share": round(float(trained[wrong].sum() / trained.sum()), 6),
    }


def selections(done: Run) -> dict[str, Any]:
    """How selections follow one another, and the effect of the memory term.

    - `overlap`, `chance_overlap`: mean share of an epoch's samples that the epoch before trained
      too, and what random selections of those sizes share; None where fewer than two epochs
      selected.
    - `collapse`: whether :meth:`emp_kernels.EMPState.diagnostics` warns.
    - `as_by_loss`: of the samples that the final scores rank in the kept share, the share that
      the loss alone ranks there too; None for methods without scores.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = done.state.diagnostics()
    share, overlap = found.windows[:, 0], found.windows[:, 1]
    after = [i for i in range(1, len(share)) if max(share[i - 1], share[i]) < 0.9]
    state, keep = done.state, done.keep
    by_loss = None
    if done.method.beta is not None and state.updates.min() > 0:
        top = torch.zeros(state.num_samples, dtype=torch.bool)
        top[emp.select(state.loss, keep)] = True
        by_loss = round(float(top[state.select(keep)].double().mean()), 4)
    return {
        "overlap": round(float(overlap[after].mean()), 4) if after else None,
        "chance_overlap": round(float(share[[i - 1 for i in after]].mean()), 4) if after else None,
        "collapse": found.warning is not None,
        "as_by_loss": by_loss,
    }


def _percent(right: torch.Tensor) -> float:
    return round(100 * float(right.double().mean()), 4)
