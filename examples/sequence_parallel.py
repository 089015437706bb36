"""Sequence parallelism: logits (B, T, C) split over the ranks along T, tokens selected over all.

    torchrun --nproc-per-node 2 examples/sequence_parallel.py

Each rank holds a part of every sequence. The trained tokens are the highest 40 % of all that count,
or of each sequence, found by all-reducing histograms: neither logits nor scores are sent. The
resulting model is compared with that of one process on whole sequences.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

import emp_kernels as emp

VOCABULARY, WIDTH, LENGTH, SEQUENCES, KEEP, IGNORED = 61, 32, 24, 8, 0.4, -100


def tokens() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and labels (SEQUENCES, LENGTH). Labels are shifted before sequences are split: the
    label of a part's last token is the first token of the next rank's part."""
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(VOCABULARY, (SEQUENCES, LENGTH + 1), generator=generator)
    labels = text[:, 1:].clone()
    for row in range(SEQUENCES):
        labels[row, LENGTH - 2 * row :] = IGNORED  # padding, most of it on the last rank
    return text[:, :-1], labels


def select(scores: emp.Scores, labels: torch.Tensor, per: str) -> torch.Tensor:
    """Positions of this rank's kept tokens in the flattened scores (B, T_local): equal to
    ``score_and_select(…, per=per)`` on whole sequences."""
    ignored = labels == IGNORED
    if per == "all":
        return emp.distributed.select(scores.score.flatten(), KEEP, ignored=ignored.flatten())
    length = labels.shape[1]
    rows = [  # of each sequence
        row * length + emp.distributed.select(scores.score[row], KEEP, ignored=ignored[row])
        for row in range(len(labels))
    ]
    return torch.cat(rows)


def model() -> nn.Module:
    """A token-wise model; attention across ranks would be up to the model."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(VOCABULARY, WIDTH), nn.ReLU(), nn.Linear(WIDTH, VOCABULARY))


def train(per: str, steps: int = 10) -> nn.Module:
    """Train on this rank's part of all sequences, in step with the others."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    part = slice(LENGTH * rank // ranks, LENGTH * (rank + 1) // ranks)
    inputs, labels = (whole[:, part] for whole in tokens())
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), 0.5)
    for _ in range(steps):
        logits = network(inputs)
        scores = emp.score(logits, labels, ignore_index=IGNORED)
        kept = select(scores, labels, per)
        total = torch.tensor(len(kept))
        dist.all_reduce(total)  # the mean is that over the tokens of all ranks
        options = {"rows": kept, "ignore_index": IGNORED, "reduction": "sum"}
        loss = emp.cross_entropy(logits, labels, **options) / total
        optimizer.zero_grad()
        loss.backward()
        for parameter in network.parameters():
            dist.all_reduce(parameter.grad)
        optimizer.step()
    return network


def train_alone(per: str, steps: int = 10) -> nn.Module:
    """The same on whole sequences, in one process."""
    inputs, labels = tokens()
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), 0.5)
    for _ in range(steps):
        logits = network(inputs)
        kept = emp.score_and_select(logits, labels, None, KEEP, ignore_index=IGNORED, per=per)
        loss = emp.cross_entropy(logits, labels, rows=kept, ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for per in ("all", "row"):
        ours, whole = train(per), train_alone(per)
        pairs = zip(ours.parameters(), whole.parameters(), strict=True)
        same = all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)
        print(f"rank {dist.get_rank()}, per {per}: as one process on whole sequences: {same}")
    dist.destroy_process_group()
