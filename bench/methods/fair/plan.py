"""The runs, and the family of comparisons, fixed before the test split was used.

A method's learning rate is tuned for each length of training, by its accuracy with the tuning seed
on the validation split; other seeds then use the test split, once each.

The family: every method of METHODS but the first, minus full data with as many steps and the same
seeds, in accuracy and in macro-F1, for each data set and each of the LENGTHS in which it differs
from full data. Holm's correction counts all of it, whether run or not. The comparisons in
EQUAL_TIME are a separate family.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from bench.methods.fair.methods import Balanced, Candidates, Full, Method, Sampling

DATA = ("wordnet", "debian")
LENGTHS = (0.5, 1.0, 2.0)  # steps, as epochs over all data
RATES = (0.2, 0.4, 0.8)
TUNING_SEEDS = (100,)
SEEDS = tuple(range(8))

FULL = Full()
METHODS: tuple[Method, ...] = (
    FULL,
    Candidates(),
    Candidates(2),
    Balanced(),
    Candidates(beta=0.0),
    Sampling("importance"),
    Sampling("gumbel"),
    Candidates(choose="importance"),
    Sampling("pool"),
)
# Steps of full data per step of a method whose selection takes noticeable time: more than the cost
# of two candidates, a little less than that of four (timing.py).
EQUAL_TIME: dict[Method, float] = {Candidates(): 1.4, Candidates(2): 1.4}
LONGER_AFTER: Method = Candidates(2)  # these runs come after that method
KEY = ("data", "method", "epochs", "rate", "seed", "split")


class Trial(NamedTuple):
    """One run, with the steps of `epochs` passes."""

    data: str
    method: Method
    epochs: float
    rate: float
    seed: int
    split: str

    @property
    def key(self) -> tuple[Any, ...]:
        """The key of its row, in the order of KEY."""
        return (self.data, self.method.name, *self[2:])


def applies(method: Method, epochs: float) -> bool:
    """Whether a method differs from full data: EMPSampler's first epoch is everything."""
    return not isinstance(method, Sampling) or epochs > 1


def tuning(data: str, method: Method) -> Iterator[Trial]:
    """The runs on the validation split that choose a method's rates."""
    for epochs in LENGTHS:
        if applies(method, epochs):
            for rate in RATES:
                for seed in TUNING_SEEDS:
                    yield Trial(data, method, epochs, rate, seed, "validation")


def longer(data: str, rates: Mapping[tuple[str, str, float], float]) -> Iterator[Trial]:
    """Full data for as long as the methods of EQUAL_TIME take, at the rate of the equal steps."""
    for times in EQUAL_TIME.values():
        for epochs in LENGTHS:
            rate = rates[data, FULL.name, epochs]
            for seed in SEEDS:
                yield Trial(data, FULL, round(times * epochs, 6), rate, seed, "test")


def testing(
    data: str, method: Method, rates: Mapping[tuple[str, str, float], float]
) -> Iterator[Trial]:
    """The runs on the test split, at the tuned `rates` of (data, method, epochs)."""
    for epochs in LENGTHS:
        if applies(method, epochs):
            for seed in SEEDS:
                yield Trial(data, method, epochs, rates[data, method.name, epochs], seed, "test")
