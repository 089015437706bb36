"""The pruning methods under comparison: what ranks a sample, how samples are drawn, and when.

A method is one of :class:`Ranking` (every method that keeps a fixed share), :class:`Full` and
:class:`InfoBatch`; all take the same number of steps, see :mod:`emp_kernels.experiments.training`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

import emp_kernels as emp
from emp_kernels.choosing import gumbel_keys
from emp_kernels.experiments.methods import Batch, Method, TrainingContext

STALE, PER_BATCH = "stale", "per batch"


@dataclass(frozen=True)
class Ranking(Method):
    """Keeps the share of the highest ranks.

    Attributes:
        statistic: what is stored of a sample: "score" (loss + beta * entropy), "entropy" or "el2n";
            without a beta nothing is stored, and ranks are random.
        draw: how scores become ranks. "top": the highest. "gumbel": without replacement, with
            probability proportional to the score (Gumbel top-k). "mixed": half of the share the
            highest, the other half at random from the rest. "aged": a score grows by its own value
            with every epoch in which it was not refreshed.
        protocol: "stale": the share is drawn once an epoch, from scores refreshed only when their
            sample is trained. "per batch": a forward pass over a batch 1 / keep times as large,
            in evaluation mode, ranks it, and the share of it is trained.
    """

    statistic: str = "score"
    draw: str = "top"
    protocol: str = STALE

    def batches(self, context: TrainingContext) -> Iterator[Batch]:
        state = context.state
        sampler = emp.EMPSampler(state, context.keep, seed=context.seed)
        yield from context.epoch(sampler, state.score)  # the warm-up
        if self.protocol == PER_BATCH:
            yield from self._batch_by_batch(context)
        count = round(context.keep * state.num_samples)
        steps = -(-count // context.recipe.batch_size)
        while True:
            with context.timed("choosing"):
                age = state.age().clamp_min(0) // steps
                keys = self.keys(state.score, age, count, context.draws)
            yield from context.epoch(sampler, keys)

    def _batch_by_batch(self, context: TrainingContext) -> Iterator[Batch]:
        """Endless passes over all samples, keeping the share of each candidate batch."""
        state, model = context.state, context.model
        candidates = round(context.recipe.batch_size / context.keep)
        while True:
            state.close_window()
            for ids in torch.randperm(state.num_samples, generator=context.draws).split(candidates):
                batch = context.batch(ids)
                with context.timed("choosing"), torch.no_grad():
                    count = max(1, round(context.keep * len(ids)))
                    score = torch.zeros(len(ids))
                    if self.beta is not None:
                        model.eval()
                        score = self.scores(model(batch.images), batch.labels).score
                        model.train()
                    keys = self.keys(score, torch.zeros_like(score), count, context.draws)
                    kept = emp.select(keys, count)
                state.selections[ids[kept]] += 1
                yield Batch(*emp.gather(batch[:3], kept))

    def scores(self, logits: torch.Tensor, labels: torch.Tensor) -> emp.Scores:
        """Each row's loss and entropy, with the method's ranking statistic as the score."""
        scores = emp.score(logits, labels, beta=self.beta or 0.0)
        if self.statistic == "entropy":
            return scores._replace(score=scores.entropy)
        if self.statistic == "el2n":
            return scores._replace(score=emp.sample_statistics(logits, labels).el2n)
        return scores

    def keys(
        self, scores: torch.Tensor, age: torch.Tensor, count: int, draws: torch.Generator
    ) -> torch.Tensor:
        """Ranks (N,): the `count` highest are to be trained.

        Args:
            scores: (N,) stored scores, +inf for samples never scored.
            age: (N,) whole epochs since each was refreshed.
        """
        if self.beta is None:
            return torch.rand(len(scores), generator=draws)
        if self.draw == "gumbel":
            stream = torch.randint(2**63 - 1, (), generator=draws)
            return gumbel_keys(scores, int(stream))
        if self.draw == "mixed":
            keys = torch.rand(len(scores), generator=draws)
            keys[emp.select(scores, max(1, count // 2))] = 2.0
            return keys
        if self.draw == "aged":
            return scores * (1 + age)
        return scores

    def loss(self, logits: torch.Tensor, batch: Batch, state: emp.EMPState) -> torch.Tensor:
        if self.beta is None or self.statistic == "score":
            return super().loss(logits, batch, state)
        state.update(batch.ids, self.scores(logits.detach(), batch.labels))
        return emp.cross_entropy(logits, batch.labels)


@dataclass(frozen=True)
class Full(Method):
    """Trains on everything, in shuffled passes, until the steps are used up."""

    def batches(self, context: TrainingContext) -> Iterator[Batch]:
        sampler = emp.EMPSampler(context.state, 1.0, seed=context.seed)
        while True:
            yield from context.epoch(sampler, context.state.score)


@dataclass(frozen=True)
class InfoBatch(Method):
    """InfoBatch (Qin et al., ICLR 2024, arXiv 2303.04947), written from its published algorithm.

    An epoch prunes each sample whose last loss is below the mean of all last losses with
    probability `prune`, and multiplies the losses of those among them that it keeps by
    1 / (1 - prune), so that the expected gradient is that of all samples. The first epoch prunes
    nothing, because no losses are known, and neither do the last steps (a share `anneal` of all).

    How much an epoch keeps follows from this, not from `keep`. For a comparison at equal steps it
    runs as many of its longer epochs as fit into the others' budget, and anneals within that
    budget; it therefore sees a sample less often, and is not tuned to the budget.
    """

    prune: float = 0.5
    anneal: float = 0.125

    def batches(self, context: TrainingContext) -> Iterator[Batch]:
        state, size = context.state, context.recipe.batch_size
        anneal_from = round((1 - self.anneal) * context.steps)
        done = 0
        while True:
            with context.timed("choosing"):
                state.close_window()
                n = state.num_samples
                pruning = done < anneal_from
                below = (state.loss < state.loss.mean()) & pruning
                kept = ~below | (torch.rand(n, generator=context.draws) >= self.prune)
                weights = torch.where(below, 1 / (1 - self.prune), 1.0)
                ids = kept.nonzero()[:, 0]
                ids = ids[torch.randperm(len(ids), generator=context.draws)]
            for part in ids.split(size):
                if pruning and done == anneal_from:
                    break  # the remaining steps draw from everything
                done += 1
                state.selections[part] += 1
                yield context.batch(part, weights[part])

    def loss(self, logits: torch.Tensor, batch: Batch, state: emp.EMPState) -> torch.Tensor:
        losses = emp.cross_entropy(logits, batch.labels, state, indices=batch.ids, reduction="none")
        return (losses * batch.weights).mean()
