"""Methods that choose among candidates by more than their current score, or by a window of losses.

All use what the package scores and remembers: current losses, losses of the previous look, and how
often a sample was drawn. A look is a forward pass in evaluation mode.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch

import emp_kernels as emp
from bench.methods.fair.methods import Batch, Method, Run, drawn, in_order


class Look(NamedTuple):
    """A step's candidates (N,): their current `loss` and `entropy`, and `before`, the loss of the
    previous look or training step, NaN if there was none."""

    ids: torch.Tensor
    labels: torch.Tensor
    loss: torch.Tensor
    entropy: torch.Tensor
    before: torch.Tensor


def looks(run: Run, times: int) -> Iterator[Look]:
    """Endless passes over all samples, with `times` candidates for each sample of a batch."""
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
    """Candidates by their score, where only scores older than `passes` passes over all samples are
    computed anew; the others are taken from the state."""

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
    """Of `times` candidates for each sample of a batch, those whose loss has fallen most, by a
    moving average over their looks with weight `new` for the newest; candidates without an average
    come first."""

    times: int = 4
    beta: float = 0.0
    new: float = 0.5

    @property
    def name(self) -> str:
        return f"{self.times}x candidates by learnability"

    def batches(self, run: Run) -> Iterator[Batch]:
        falls = torch.full((run.state.num_samples,), torch.inf)
        for ids, _, loss, _, before in looks(run, self.times):
            seen = ~before.isnan()
            fall, last = (before - loss)[seen], falls[ids[seen]]
            mean = torch.where(last.isinf(), fall, self.new * fall + (1 - self.new) * last)
            falls[ids[seen]] = mean
            yield ids[emp.select(falls[ids], run.batch_size)], None


@dataclass(frozen=True)
class Uncertainty(Method):
    """Of `times` candidates for each sample of a batch, those of highest difficulty times
    uncertainty (DUAL, Cho et al., arXiv 2502.06905): 1 - mean, times the standard deviation, of the
    label's probability over the looks. DUAL takes both over a window of epochs; here they are
    moving, with weight `new` for the newest, and begin with a deviation of sqrt(p (1 - p))."""

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
    """Of `times` candidates for each sample of a batch, each class's hardest, in numbers
    proportional to its number of candidates to the power `power`: 1 keeps the classes' shares, 0
    gives all classes the same."""

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
    """For each row (N,), the number of its class that score higher, or as high at a lower index."""
    order = scores.argsort(descending=True, stable=True)
    order = order[labels[order].argsort(stable=True)]
    sizes = torch.bincount(labels)
    starts = sizes.cumsum(0) - sizes
    places = torch.empty_like(labels)
    places[order] = torch.arange(len(labels)) - starts[labels[order]]
    return places


@dataclass(frozen=True)
class RePB(Method):
    """Of each batch of candidates, those whose loss is at least the batch's mean are trained, and
    each of the others with probability `others`; a loss is weighted by how often its sample was a
    candidate over how often it was trained, at most `clip` (Zhou et al., "Inconsistency biases in
    dynamic data pruning", ICLR 2026). Kept samples are collected until they fill a batch."""

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
    """The first epoch draws everything. Each later one draws from a random share `pool` the samples
    whose remembered loss is in a window of `width` of `groups` quantile groups, which starts at the
    easiest, moves up by one group an epoch, and starts again after the hardest. The last share
    `anneal` of the steps draws everything (Zhou et al., CVPR 2025, arXiv 2503.13385, who group by
    k-means instead of quantiles)."""

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
        """The ids of each epoch."""
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
    """Ascending positions of the losses (N,) whose rank is in groups [start, start + width) of
    `groups` equal ones."""
    ranks = losses.argsort(stable=True).argsort()
    n = len(losses)
    low, high = (round(n * at / groups) for at in (start, start + width))
    return ((ranks >= low) & (ranks < high)).nonzero()[:, 0]
