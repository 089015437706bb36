"""A small version of a large training stack: sharded vocabulary, loss on selected tokens only.

    torchrun --nproc-per-node 2 examples/vocab_parallel.py

A language model whose output head is split over the ranks as in torchtitan and Megatron-LM, so that
no rank holds a whole row of logits. Each step scores every token, stores the scores under the
tokens' ids and trains on the highest 60 %.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

import emp_kernels as emp

VOCABULARY, WIDTH, LENGTH, SEQUENCES, BATCH = 131, 32, 16, 128, 16


def sequences() -> torch.Tensor:
    """Token ids (SEQUENCES, LENGTH + 1): each usually follows from the previous one."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (SEQUENCES, LENGTH + 1), generator=generator)
    surprise = torch.rand(tokens.shape, generator=generator) < 0.2
    for i in range(LENGTH):
        follows = (3 * tokens[:, i] + 7) % VOCABULARY
        tokens[:, i + 1] = torch.where(surprise[:, i + 1], tokens[:, i + 1], follows)
    return tokens


class LanguageModel(nn.Module):
    """One layer of a causal transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.tokens(tokens) + self.places.weight
        causal = nn.Transformer.generate_square_subsequent_mask(LENGTH)
        return self.head(self.layer(hidden, src_mask=causal, is_causal=True))


def train(folder: Path, epochs: int = 3) -> emp.EMPState:
    """Train on all ranks of the default process group; save model and state to `folder`."""
    torch.manual_seed(0)
    model = LanguageModel()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    # Rows of the head's weight are sharded, and so are columns of the logits: (batch, length,
    # vocabulary) as a DTensor. 131 tokens over 2 ranks are 66 and 65.
    style = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
    parallelize_module(model, mesh, {"head": style})
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, foreach=False)

    tokens = sequences()
    state = emp.EMPState(SEQUENCES * LENGTH)  # a sample is a token
    for epoch in range(epochs):
        losses = []
        order = torch.randperm(SEQUENCES, generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(BATCH):
            inputs, targets = tokens[batch, :-1], tokens[batch, 1:]
            ids = (batch[:, None] * LENGTH + torch.arange(LENGTH)).flatten()
            logits = model(inputs)
            scores = emp.distributed.score_vocab_parallel(logits, targets)
            state.update(ids, emp.Scores(*(field.flatten() for field in scores)))
            kept = emp.select(scores.score.flatten(), 0.6)
            loss = emp.cross_entropy(logits, targets, rows=kept)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        if dist.get_rank() == 0:
            print(f"epoch {epoch}: loss of the selected tokens {sum(losses) / len(losses):.3f}")
    # These ranks saw the same tokens, but data-parallel ranks would not: merge to one state.
    emp.distributed.sync(state)
    checkpoint.save({"model": model.state_dict(), "emp": state}, checkpoint_id=folder)
    return state


def report(folder: Path) -> None:
    """Train, and read the state back from the checkpoint."""
    state = train(folder)
    resumed = emp.EMPState(state.num_samples)
    checkpoint.load({"emp": resumed}, checkpoint_id=folder)
    same = torch.equal(resumed.score, state.score) and bool((resumed.updates > 0).all())
    # Each rank ranks its share of the data set; together they find the highest 5 % of all.
    rank, share = dist.get_rank(), state.num_samples // dist.get_world_size()
    own = resumed.score[rank * share : (rank + 1) * share]
    hardest = emp.distributed.select(own, 0.05, group=dist.group.WORLD)
    print(f"rank {rank}: state restored {same}, {len(hardest)} of the hardest tokens are here")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to keep the distributed checkpoint")
    dist.init_process_group("gloo")
    with tempfile.TemporaryDirectory() as name:
        chosen = [parser.parse_args().folder or Path(name)]
        dist.broadcast_object_list(chosen)  # rank 0's
        report(chosen[0])
        dist.barrier()
    dist.destroy_process_group()
