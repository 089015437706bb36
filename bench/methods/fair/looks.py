"""Ways of choosing among candidates by more than their score of the moment, and by window.

All of them take what the package scores and remembers: losses now, losses at the last look, how
often a sample was drawn. "A look" is a forward pass in evaluation mode.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

import emp_kernels as emp
from bench.methods.fair.methods import Batch, Method, Run, drawn, in_order


class Look(NamedTuple):
    """Candidates (N,) of a step: `loss` and `entropy` now, `before` at the last look or training,
    NaN where there was none."""

    ids: torch.Tensor
    labels: torch.Tensor
    loss: torch.Tensor
    entropy: torch.Tensor
    before: torch.Tensor


def looks(run: Run, times: int) -> Iterator[Look]:
    """For ever passes over all samples, so many for each place of a batch."""
    everything = emp.EMPSampler(run.state, 1.0, seed=run.seed)
    for ids, _ in drawn(everything, times * run.batch_size):
        logits, labels = run.look(ids)
        scores = emp.score(logits, labels, beta=run.state.beta)
        seen = run.state.updates[ids] > 0
        before = run.state.loss[ids].where(seen, torch.tensor(torch.nan))
        run.state.update(ids, scores)
        yield Look(ids, labels, scores.loss, scores.entropy, before)


@dataclass(frozen=True)
class Remembered(Method):
    """As candidates by their score, of whom only those are looked at whose score is older than
    `passes` passes over all samples; the others go by what the state remembers."""

    times: int = 2
    beta: float = 1.0
    passes: float = 1.5

    @property
    def name(self) -> str:
        return f"{self.times}x candidates by EMP, remembered"

    def batches(self, run: Run) -> Iterator[Batch]:
        state, size = run.state, self.times * run.batch_size
        written = torch.full((state.num_samples,), -torch.inf)  # the step of each sample's score
        everything = emp.EMPSampler(state, 1.0, seed=run.seed)
        for step, (ids, _) in enumerate(drawn(everything, size)):
            due = ids[written[ids] < step - self.passes * state.num_samples / size]
            if len(due):
                logits, labels = run.look(due)
                state.update(due, emp.score(logits, labels, beta=self.beta))
            kept = ids[emp.select(state.score[ids], run.batch_size)]
            written[due], written[kept] = step, step
            yield kept, None


@dataclass(frozen=True)
class Learnability(Method):
    """Of `times` candidates for each place those whose loss has fallen most, by a moving average
    over their looks with weight `new` for the newest; who has none yet goes first."""

    times: int = 4
    beta: float = 0.0
    new: float = 0.5

    @property
    def name(self) -> str:
        return f"{self.times}x candidates by learnability"

    def batches(self, run: Run) -> Iterator[Batch]:
        falls = torch.full((run.state.num_samples,), torch.inf)
        for ids, _, loss, _, before in looks(run, self.times):
            known = ~before.isnan()
            fall, last = (before - loss)[known], falls[ids[known]]
            mean = torch.where(last.isinf(), fall, self.new * fall + (1 - self.new) * last)
            falls[ids[known]] = mean
            yield ids[emp.select(falls[ids], run.batch_size)], None


@dataclass(frozen=True)
class Uncertainty(Method):
    """Of `times` candidates for each place those of the highest difficulty x uncertainty (DUAL,
    Cho et al., arXiv 2502.06905): one less the mean, times the deviation, of their label's
    probability over the looks. Theirs are over a window of epochs, ours moving, with weight `new`
    for the newest; at its first look a sample's is that of being right, sqrt(p (1 - p))."""

    times: int = 2
    beta: float = 0.0
    new: float = 0.3

    @property
    def name(self) -> str:
        return f"{self.times}x candidates by uncertainty"

    def batches(self, run: Run) -> Iterator[Batch]:
        means = torch.full((run.state.num_samples,), torch.nan)
        variances = torch.zeros(run.state.num_samples)
        for ids, _, loss, _, _ in looks(run, self.times):
            p = (-loss).exp()
            first = means[ids].isnan()
            far = torch.where(first, 0.0, p - means[ids])
            means[ids] = torch.where(first, p, means[ids] + self.new * far)
            moved = (1 - self.new) * (variances[ids] + self.new * far.square())
            variances[ids] = torch.where(first, p * (1 - p), moved)
            keys = (1 - means[ids]) * variances[ids].sqrt()
            yield ids[emp.select(keys, run.batch_size)], None


@dataclass(frozen=True)
class Quotas(Method):
    """Of `times` candidates for each place each class's hardest: as many of a class as its number
    among the candidates to the power `power` gives it: 1 for its share, 0 for as many as others."""

    times: int = 2
    beta: float = 1.0
    power: float = 0.5

    @property
    def name(self) -> str:
        return f"{self.times}x candidates by EMP, class quotas {self.power:g}"

    def batches(self, run: Run) -> Iterator[Batch]:
        for ids, labels, loss, entropy, _ in looks(run, self.times):
            places = places_in_class(loss + self.beta * entropy, labels)
            quotas = torch.bincount(labels).double().pow(self.power)[labels]
            yield ids[emp.select(-(places + 0.5) / quotas, run.batch_size)], None


def places_in_class(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many of its class score higher than each (N,), or as high and stand before it."""
    order = scores.argsort(descending=True, stable=True)
    order = order[labels[order].argsort(stable=True)]
    sizes = torch.bincount(labels)
    starts = sizes.cumsum(0) - sizes
    places = torch.empty_like(labels)
    places[order] = torch.arange(len(labels)) - starts[labels[order]]
    return places


@dataclass(frozen=True)
class RePB(Method):
    """Batches of candidates of one moment, of each of which those are trained whose loss is the
    batch's mean or more, and of the others each with probability `others`; a loss counts by how
    often its sample was a candidate over how often it was trained, at most `clip` (Zhou et al.,
    "Inconsistency biases in dynamic data pruning", ICLR 2026). What is kept waits until it fills a
    batch."""

    times: int = 2
    beta: float = 0.0
    others: float = 0.25
    clip: float = 4.0

    @property
    def name(self) -> str:
        return "RePB"

    def batches(self, run: Run) -> Iterator[Batch]:
        draws = torch.Generator().manual_seed(run.seed)
        asked = torch.zeros(run.state.num_samples)
        trained = torch.zeros(run.state.num_samples)
        waiting = torch.zeros(0, dtype=torch.int64)
        for ids, _, loss, _, _ in looks(run, self.times):
            asked[ids] += 1
            kept = (loss >= loss.mean()) | (torch.rand(len(ids), generator=draws) < self.others)
            trained[ids[kept]] += 1
            waiting = torch.cat([waiting, ids[kept]])
            while len(waiting) >= run.batch_size:
                batch, waiting = waiting.split([run.batch_size, len(waiting) - run.batch_size])
                yield batch, (asked[batch] / trained[batch]).clamp_max(self.clip)


@dataclass(frozen=True)
class SeTa(Method):
    """Everything in the first epoch; then of a random share `pool` those whose remembered loss is
    in a window over its quantiles, `width` of `groups` of them, which begins with the easiest and
    moves up by a group an epoch, and begins anew above the hardest; the last `anneal` of the steps
    draw from everything (Zhou et al., CVPR 2025, arXiv 2503.13385; theirs are clusters by k-means,
    ours quantiles)."""

    by_epoch: ClassVar[bool] = True

    pool: float = 0.6
    groups: int = 4
    width: int = 2
    anneal: float = 0.125
    beta: float = 0.0

    @property
    def name(self) -> str:
        return "SeTa"

    def batches(self, run: Run) -> Iterator[Batch]:
        return in_order(self.epochs(run), run.batch_size)

    def epochs(self, run: Run) -> Iterator[torch.Tensor]:
        """The ids of one epoch after the other."""
        n, draws = run.state.num_samples, torch.Generator().manual_seed(run.seed)
        yield torch.randperm(n, generator=draws)
        taken, starts = n, self.groups - self.width + 1
        for epoch in range(10**9):
            if taken >= (1 - self.anneal) * run.steps * run.batch_size:
                ids = torch.randperm(n, generator=draws)
            else:
                pool = torch.randperm(n, generator=draws)[: round(self.pool * n)]
                ids = pool[in_window(run.state.loss[pool], epoch % starts, self.width, self.groups)]
            taken += len(ids)
            yield ids


def in_window(losses: torch.Tensor, start: int, width: int, groups: int) -> torch.Tensor:
    """Positions of the losses (N,) whose rank is in groups [start, start + width) of equal size, in
    their order."""
    ranks = losses.argsort(stable=True).argsort()
    n = len(losses)
    low, high = (round(n * at / groups) for at in (start, start + width))
    return ((ranks >= low) & (ranks < high)).nonzero()[:, 0]
