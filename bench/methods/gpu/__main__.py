"""`make evidence-gpu`: the comparison on a GPU, offline, in pieces of at most nine minutes.

One call is one piece: it goes on where the last one stopped, within a run if need be, and ends
before its time is up. Its first 30 seconds measure what a step of each task takes and say how long
each study needs. A finished run is a line of FOLDER/evidence-gpu.jsonl. What is missing on this
machine is said, and not measured; without a GPU nothing is.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bench import harness
from bench.methods.gpu import plan, sets
from bench.methods.gpu.plan import KEY, Study, Trial
from bench.methods.gpu.tasks import Task
from bench.methods.gpu.training import Training
from emp_kernels.experiments import provenance

PIECE = 500.0  # seconds, under nine minutes with the start
CALIBRATION = 30.0
SAVED_EVERY = 60.0  # what a killed piece loses at most
SPARE = 20.0  # for the end of a piece: a test, or to save
KEPT = harness.ROOT / "build/evidence-gpu"
Row = dict[str, Any]


class Piece:
    """The time, or the steps, of one call."""

    def __init__(self, seconds: float, steps: int | None = None) -> None:
        self.end, self.steps = time.monotonic() + seconds, steps
        self.saved = time.monotonic()

    @property
    def over(self) -> bool:
        return time.monotonic() > self.end - SPARE or self.steps == 0

    def train(self, training: Training, file: Path) -> None:
        """Until it is done or the piece is over; `file` is never much older than the training."""
        while not training.done and not self.over:
            training.advance()
            self.steps = None if self.steps is None else self.steps - 1
            if time.monotonic() > self.saved + SAVED_EVERY:
                training.save(file)
                self.saved = time.monotonic()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.methods.gpu", description=__doc__)
    parser.add_argument("--seconds", type=float, default=PIECE, help="of this piece")
    parser.add_argument("--steps", type=int, help="of this piece, at most")
    parser.add_argument("--cifar100", type=Path, help="the folder that holds CIFAR-100")
    parser.add_argument("--rows", type=Path, metavar="FOLDER")
    parser.add_argument("--kept", type=Path, default=KEPT, help="where an unfinished run is kept")
    parser.add_argument("--toy", action="store_true", help="all of it in little, on the CPU")
    options = parser.parse_args(arguments)
    piece = Piece(options.seconds, options.steps)
    if not (options.toy or torch.cuda.is_available()):
        say("no CUDA GPU here: nothing was run, and nothing is measured")
        return
    device = torch.device("cpu" if options.toy else "cuda")
    toys = (sets.toys(device), {}) if options.toy else None
    tasks, missing = toys or sets.tasks(device, options.cifar100)
    for task, why in missing.items():
        say(f"{task}: not measured ({why})")
    studies = plan.TOY if options.toy else plan.STUDIES
    studies = {name: study for name, study in studies.items() if study.task in tasks}
    name = None if options.toy else torch.cuda.get_device_name()
    file = (options.rows or harness.results_folder(name)) / "evidence-gpu.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = harness.read_rows(file) if file.exists() else []
    calibrate(tasks, studies, rows, min(CALIBRATION, options.seconds / 4))
    origin = harness.origin() | {"commit": provenance.commit("bench/methods"), "device": name}
    done = {tuple(row[name] for name in KEY) for row in rows}
    for trial in plan.trials(studies, rows):
        if trial.key in done:
            continue
        study = studies[trial.study]
        training = begun(trial, study, tasks[study.task])
        kept = options.kept / f"{'-'.join(map(str, trial.key)).replace(' ', '_')}.pt"
        if kept.exists():
            training.load(kept)
        piece.train(training, kept)
        if not training.done or piece.over:
            training.save(kept)
            say(f"stopped after step {training.step} of {said(trial)}: call again for the rest")
            return
        rows.append(origin | finished(trial, study, training))
        with file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(rows[-1]) + "\n")
        kept.unlink(missing_ok=True)
        say(f"{said(trial)}: {rows[-1]['accuracy']:.2f} % in {rows[-1]['seconds']:.1f} s")
    say("every run is there")


def say(text: str) -> None:
    print(f"evidence-gpu: {text}", flush=True)


def said(trial: Trial) -> str:
    return (
        f"{trial.study}, {trial.choice.name}, rate {trial.rate:g}, seed {trial.seed}, {trial.split}"
    )


def steps_of(study: Study, task: Task) -> int:
    return round(study.epochs * task.samples / task.batch_size)


def begun(trial: Trial, study: Study, task: Task) -> Training:
    return Training(task, trial.choice, steps_of(study, task), trial.rate, trial.seed)


def finished(trial: Trial, study: Study, training: Training) -> Row:
    """The row of a run, but for where it comes from."""
    torch.manual_seed(trial.seed)  # of a probe
    measures = training.task.evaluate(training.model, trial.split)
    own = dict(zip(KEY, trial.key, strict=True)) | {"task": study.task, "epochs": study.epochs}
    numbers = measures | {"seconds": training.seconds}
    batch = {"batch_size": training.task.batch_size, "steps": training.steps}
    return own | batch | {name: round(x, 4) for name, x in numbers.items()}


def calibrate(
    tasks: Mapping[str, Task], studies: Mapping[str, Study], rows: list[Row], seconds: float
) -> None:
    """Say what a step of full data takes, and how long the runs without a row."""
    times = {}
    for name, task in tasks.items():
        end = time.monotonic() + seconds / len(tasks)
        training = Training(task, plan.FULL, 10**6, 1e-3, 0)
        training.advance()  # compiles and allocates
        first, training.seconds = training.step, 0.0
        while training.step == first or time.monotonic() < end:
            training.advance()
        times[name] = training.seconds / (training.step - first)
    for name, study in studies.items():
        done = sum(row["study"] == name for row in rows)
        left = len(study.choices) * (study.seeds + len(study.rates) * (len(study.rates) > 1)) - done
        run = times[study.task] * steps_of(study, tasks[study.task])
        say(
            f"{name}: {1e3 * times[study.task]:.1f} ms a step of full data, {run:.0f} s a run; "
            f"{left} runs to go, about {left * run / PIECE:.1f} pieces, with looks up to twice that"
        )


if __name__ == "__main__":
    sys.exit(main())
