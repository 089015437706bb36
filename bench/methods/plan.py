"""The runs: methods, recipes, and their order."""

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from bench.methods import networks
from bench.methods.choosing import PER_BATCH, STALE, Full, InfoBatch, Ranking
from emp_kernels.experiments.methods import Method, Recipe

BETAS = (0.3, 1.0, 3.0, 10.0)
RANDOM, LFL = Ranking("random", None), Ranking("LFL", 0.0)
FULL, INFOBATCH = Full("full", None), InfoBatch("InfoBatch", 0.0)
EMP = tuple(Ranking("EMP", beta) for beta in BETAS)
MINUS = Ranking("EMP", -1.0)
EL2N = Ranking("EL2N", 0.0, statistic="el2n")
ENTROPY = Ranking("entropy", 0.0, statistic="entropy")
LFL_GUMBEL = Ranking("LFL Gumbel", 0.0, draw="gumbel")
GUMBEL = Ranking("EMP Gumbel", 1.0, draw="gumbel")
HALF = Ranking("EMP half random", 1.0, draw="mixed")
HALF_3 = Ranking("EMP half random", 3.0, draw="mixed")
AGED = Ranking("EMP aged", 1.0, draw="aged")

BY_BATCH = (RANDOM, LFL, EL2N, *EMP, ENTROPY, MINUS, LFL_GUMBEL, GUMBEL, HALF, HALF_3)
BY_EPOCH = (FULL, *BY_BATCH[:3], INFOBATCH, *BY_BATCH[3:], AGED)
REGIME = (RANDOM, LFL, *EMP, ENTROPY, GUMBEL, HALF_3)
LARGE = (RANDOM, LFL, EMP[1], EMP[2], GUMBEL, HALF_3, INFOBATCH, FULL, EMP[3], ENTROPY)
# Down to keeps that cannot reach the target; long runs first, to balance two parallel workers.
TIMED = (
    (FULL, 1.0),
    *((method, keep) for keep in (0.85, 0.7) for method in (FULL, EMP[1], INFOBATCH)),
    *((FULL, 0.3), (EMP[1], 0.3)),
)


@dataclass(frozen=True)
class Study:
    """How a data set is trained on.

    Attributes:
        samples: size of its training split.
        recipe: of every run.
        seeds: number of seeds.
        methods: only these, at keep 0.3, stale, without noise; by default the whole grid.
        data: the data set, if different from the study's name.
        threads: of a run.
        evaluations: points of a run's accuracy curve.
        timed: methods and keeps of the timed runs.
    """

    samples: int
    recipe: Recipe
    seeds: int
    methods: tuple[Method, ...] | None = None
    data: str | None = None
    threads: int = 1
    evaluations: int = 1
    timed: tuple[tuple[Method, float], ...] = ()


def _signals(width: int, epochs: int) -> Study:
    """mnist1d under another regime: the network's width and the epochs determine how well it
    fits."""
    network = functools.partial(networks.signal_cnn, width=width)
    return Study(5_000, Recipe(epochs, 64, 0.05, network), 10, REGIME, "mnist1d")


STUDIES = {
    "digits": Study(1_297, Recipe(15, 32), 5),
    "mnist1d": Study(5_000, Recipe(20, 64, 0.05, networks.signal_cnn), 5),
    "mnist1d-tiny": _signals(4, 20),
    "mnist1d-narrow": _signals(8, 20),
    "mnist1d-long": _signals(24, 60),
    "cifar100": Study(
        50_000, Recipe(24, 128, 0.1, networks.small_resnet), 3, LARGE, evaluations=10, timed=TIMED
    ),
}


KEY = ("data", "method", "beta", "protocol", "keep", "noise", "seed", "epochs", "batch_size")


@dataclass(frozen=True)
class Trial:
    """One run: `keep` is the share of an epoch, and with it the number of steps; `noise` the
    share of training labels that are wrong."""

    data: str
    method: Method
    keep: float
    noise: float
    seed: int

    @property
    def protocol(self) -> str | None:
        """When scores are refreshed; None if nothing is selected by score."""
        return getattr(self.method, "protocol", None)

    @property
    def key(self) -> dict[str, Any]:
        """The key of this run's row."""
        recipe, method = STUDIES[self.data].recipe, self.method
        own = (self.data, method.name, method.beta, self.protocol, self.keep, self.noise, self.seed)
        return dict(zip(KEY, (*own, recipe.epochs, recipe.batch_size), strict=True))


def trials(data: str, keeps: Iterable[float] = (0.3, 0.5, 0.1)) -> Iterator[Trial]:
    """The runs of a data set, whole seeds first; each seed ends with keep 1, the upper bound."""
    study = STUDIES[data]
    for seed in range(study.seeds):
        if study.methods is not None:
            yield from (Trial(data, method, 0.3, 0.0, seed) for method in study.methods)
            yield Trial(data, FULL, 1.0, 0.0, seed)
            continue
        for keep in keeps:
            for noise in (0.0, 0.1):
                yield from (Trial(data, method, keep, noise, seed) for method in BY_EPOCH)
                for method in BY_BATCH:
                    yield Trial(data, by_batch(method), keep, noise, seed)
        yield from (Trial(data, FULL, 1.0, noise, seed) for noise in (0.0, 0.1))


def timed_trials(data: str) -> Iterator[Trial]:
    """The timed runs, seed by seed, so that drift of the machine affects all methods."""
    study = STUDIES[data]
    for seed in range(study.seeds):
        yield from (Trial(data, method, keep, 0.0, seed) for method, keep in study.timed)


def by_batch(method: Ranking) -> Ranking:
    """The same method under the other protocol."""
    assert method.protocol == STALE
    return Ranking(method.name, method.beta, method.statistic, method.draw, PER_BATCH)
