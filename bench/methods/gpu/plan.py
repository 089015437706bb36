"""What is run on a GPU, the most telling first."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple


class Choice(NamedTuple):
    """A way of choosing: EMPSampler's `keep` and `sampling`, and so many candidates for each place
    of a batch, of which the highest scores are trained."""

    name: str
    keep: float = 1.0
    sampling: str = "top"
    candidates: int = 1
    beta: float = 1.0


FULL = Choice("full")
TWO = Choice("2x candidates by EMP", candidates=2)
GUMBEL = Choice("EMPSampler gumbel, keep 0.3", 0.3, "gumbel")
TOP = Choice("EMPSampler top, keep 0.3", 0.3)
CHOICES = (
    FULL,
    TWO,
    GUMBEL,
    Choice("4x candidates by EMP", candidates=4),
    Choice("EMPSampler importance, keep 0.3", 0.3, "importance"),
    TOP,
    Choice("EMPSampler pool, keep 0.3", 0.3, "pool"),
    Choice("2x candidates by loss", candidates=2, beta=0.0),
)


class Study(NamedTuple):
    """Trainings of one task and length.

    Attributes:
        task: a name that tasks.py knows.
        epochs: the steps, in passes over all data.
        choices: full data first.
        rates: the highest of a run; of several each choice's is tuned on the validation split.
        seeds: of the runs that look at the test split.
    """

    task: str
    epochs: float
    choices: tuple[Choice, ...]
    rates: tuple[float, ...]
    seeds: int


STUDIES = {
    "crossover-24": Study("fast-resnet", 24, CHOICES, (0.1, 0.2, 0.4), 5),
    "glosses-1": Study("sentence-encoder", 1, (FULL, TWO), (2e-5, 5e-5, 1e-4), 5),
    "crossover-60": Study("fast-resnet", 60, CHOICES, (0.1, 0.2, 0.4), 5),
    "resnet50-30": Study("resnet50", 30, (FULL, TWO, GUMBEL, TOP), (0.1,), 3),
    "simclr-100": Study("simclr", 100, (FULL, TWO, GUMBEL), (0.3,), 3),
    "resnet18-200": Study("resnet18", 200, (FULL, TWO, GUMBEL, TOP), (0.1,), 3),
}
# The same in little, to prove the code where there is no GPU.
TOY = {
    name: study._replace(epochs=2, rates=study.rates[:2], seeds=1)
    for name, study in STUDIES.items()
    if name != "crossover-60"
}
TUNING_SEED = 100
KEY = ("study", "method", "rate", "seed", "split")


class Trial(NamedTuple):
    """One run."""

    study: str
    choice: Choice
    rate: float
    seed: int
    split: str

    @property
    def key(self) -> tuple[Any, ...]:
        """What tells its row from others, in the order of KEY."""
        return (self.study, self.choice.name, *self[2:])


def trials(studies: Mapping[str, Study], rows: list[dict[str, Any]]) -> Iterator[Trial]:
    """All runs, whole seeds first within a study; `rows` grow while they are run, and tell the
    rates that were tuned."""
    for name, study in studies.items():
        for choice in study.choices if len(study.rates) > 1 else ():
            yield from (
                Trial(name, choice, rate, TUNING_SEED, "validation") for rate in study.rates
            )
        for seed in range(study.seeds):
            for choice in study.choices:
                yield Trial(name, choice, tuned(name, study, choice, rows), seed, "test")


def tuned(name: str, study: Study, choice: Choice, rows: Iterable[Mapping[str, Any]]) -> float:
    """The rate of the highest accuracy on the validation split."""
    if len(study.rates) == 1:
        return study.rates[0]
    found = {
        row["rate"]: row["accuracy"]
        for row in rows
        if (row["study"], row["method"], row["split"]) == (name, choice.name, "validation")
    }
    return max(study.rates, key=found.__getitem__)
