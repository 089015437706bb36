"""What is run, and the families of comparisons, named before the test split was looked at.

A method's learning rate is tuned for each length of training, by its accuracy with the tuning seeds
on the validation split; other seeds then use the test split, once each.

A family: every method of it less full data of as many steps, with the same seeds, in accuracy and
in macro-F1, for each of its data sets and each of their lengths where the method differs from full
data. Holm's correction counts all of it, run or not. What is compared in equal time is a family of
its own.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bench.methods.fair.looks import Learnability, Quotas, Remembered, RePB, SeTa, Uncertainty
from bench.methods.fair.methods import Balanced, Candidates, Full, Method, Sampling
from bench.methods.fair.proxy import Proxied

KEY = ("data", "method", "epochs", "rate", "seed", "split")
Rates = Mapping[tuple[str, str, float], float]  # of (data, method, length)
Seeds = Sequence[int]


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


class Recipe(NamedTuple):
    """How every method is trained on a data set.

    Attributes:
        lengths: of the training: its steps, in passes over all data.
        rates: of which each method's is tuned.
        batch_size: B.
        tuning_seeds: on the validation split.
    """

    lengths: tuple[float, ...]
    rates: tuple[float, ...]
    batch_size: int
    tuning_seeds: tuple[int, ...] = (100,)


_TEXTS = Recipe((0.5, 1.0, 2.0), (0.2, 0.4, 0.8), 256)
RECIPES = {
    "wordnet": _TEXTS,
    "debian": _TEXTS,
    "debian-wide": Recipe((0.5, 1.0), (0.1, 0.2, 0.4), 512),
    "digits": Recipe((0.5, 2.0, 8.0), (0.1, 0.2, 0.4), 32, (100, 101, 102)),
    "cifar100": Recipe((0.5, 1.0, 2.0, 6.0), (0.2, 0.4, 0.8), 128),
}
SEEDS = tuple(range(8))
FULL = Full()


@dataclass(frozen=True)
class Family:
    """Comparisons with full data that were named together.

    Attributes:
        methods: of each data set, in the order of their runs.
        equal_time: steps of full data for one of a method's, where choosing takes time to speak of.
        shortest: where it is set, each method has one length, its first from this one on.
        longest: lengths above it are left for later.
    """

    methods: Mapping[str, tuple[Method, ...]]
    equal_time: Mapping[Method, float] = field(default_factory=dict)
    shortest: float = 0.0
    longest: float = math.inf

    def lengths(self, data: str, method: Method) -> list[float]:
        """Of the training, where the method differs from full data: an epoch-wise one begins with
        all of it. Full data's are those of all methods."""
        if method == FULL:
            found = {n for other in self.methods[data] for n in self.lengths(data, other)}
            return sorted(found)
        least = 1.0 if method.by_epoch else 0.0
        found = [n for n in RECIPES[data].lengths if n > least and n >= self.shortest]
        return [n for n in (found[:1] if self.shortest else found) if n <= self.longest]

    def compared(self) -> Iterator[tuple[str, Method, float]]:
        """Each (data, method, length) that differs from full data."""
        for data, methods in self.methods.items():
            for method in methods:
                yield from ((data, method, epochs) for epochs in self.lengths(data, method))

    def tuning(self, data: str, method: Method) -> Iterator[Trial]:
        """The runs on the validation split that choose a method's rates."""
        recipe = RECIPES[data]
        for epochs in self.lengths(data, method):
            for rate in recipe.rates:
                for seed in recipe.tuning_seeds:
                    yield Trial(data, method, epochs, rate, seed, "validation")

    def testing(self, data: str, method: Method, rates: Rates, seeds: Seeds) -> Iterator[Trial]:
        """The runs on the test split, at the tuned rates."""
        for epochs in self.lengths(data, method):
            for seed in seeds:
                yield Trial(data, method, epochs, rates[data, method.name, epochs], seed, "test")

    def longer(self, data: str, rates: Rates, seeds: Seeds) -> Iterator[Trial]:
        """Full data for as long as the methods of `equal_time` take, at the rate of the equal
        steps."""
        for times in dict.fromkeys(self.equal_time.values()):
            for epochs in self.lengths(data, FULL):
                rate = rates[data, FULL.name, epochs]
                for seed in seeds:
                    yield Trial(data, FULL, round(times * epochs, 6), rate, seed, "test")

    def trials(
        self, data: Iterable[str], seeds: Seeds, rates: Callable[[], Rates]
    ) -> Iterator[Trial]:
        """All of these, full data's first; `rates`: those tuned so far."""
        for name in data:
            if name in self.methods:
                for method in (FULL, *self.methods[name]):
                    yield from self.tuning(name, method)
                    yield from self.testing(name, method, rates(), seeds)
                yield from self.longer(name, rates(), seeds)


_ON_TEXTS = (
    Candidates(),
    Candidates(2),
    Balanced(),
    Candidates(beta=0.0),
    Sampling("importance"),
    Sampling("gumbel"),
    Candidates(choose="importance"),
    Sampling("pool"),
)
_ON_DIGITS = (
    Candidates(2),
    Candidates(),
    Sampling("importance"),
    Sampling("gumbel"),
    Sampling("pool"),
)
# Two candidates cost less than two fifths more time, four a little more (timing.py).
TEXTS = Family(
    dict.fromkeys(("wordnet", "debian"), _ON_TEXTS), {Candidates(): 1.4, Candidates(2): 1.4}
)
IMAGES = Family(
    {"digits": _ON_DIGITS, "cifar100": (Candidates(2), Sampling("gumbel"), Candidates())}
)
# Named late, once two candidates were seen to lose on CIFAR-100 (findings_details.md).
UNBIASED = Family(
    dict.fromkeys(
        ("wordnet", "debian", "digits", "cifar100"), (Candidates(2, choose="importance"),)
    )
)
PARTS = Family(
    {"wordnet": (Remembered(), Quotas(), Uncertainty(), RePB(), Learnability(), SeTa())},
    shortest=1.0,
)
# A proxy costs a step of the large network about an eighth, which full data gets as more steps.
PROXY = Family({"debian-wide": (Candidates(2), Proxied())}, {Proxied(): 1.2})
FAMILIES = (TEXTS, IMAGES, UNBIASED, PARTS, PROXY)
