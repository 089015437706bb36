"""A small network that scores candidates for a large one, and is trained along with it."""

from collections.abc import Iterator
from dataclasses import dataclass

import emp_kernels as emp
from bench.methods.fair.methods import Batch, Method, Run, drawn
from bench.methods.fair.network import Bags
from emp_kernels.integrations.candidates import looking


@dataclass(frozen=True)
class Proxied(Method):
    """Candidates by their score, as scored by a network of the usual size, which is then trained on
    the same batch at learning rate `rate`, falling linearly to 0."""

    times: int = 2
    beta: float = 1.0
    rate: float = 0.4

    @property
    def name(self) -> str:
        return f"{self.times}x candidates by a proxy's EMP"

    def batches(self, run: Run) -> Iterator[Batch]:
        all_labels = run.split.labels
        proxy = Bags(int(all_labels.max()) + 1, run.seed + 1)
        state = emp.EMPState(run.state.num_samples, beta=self.beta)
        everything = emp.EMPSampler(state, 1.0, seed=run.seed)
        for step, (ids, _) in enumerate(drawn(everything, self.times * run.batch_size)):
            labels = all_labels[ids]
            with looking(proxy):
                logits = proxy(run.split, ids)
            kept = emp.score_and_select(logits, labels, state, run.batch_size, indices=ids).indices
            yield ids[kept], None
            loss = emp.cross_entropy(proxy(run.split, ids[kept]), labels[kept])
            proxy.step(loss, self.rate * max(0.0, 1 - step / run.steps))
