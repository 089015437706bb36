"""FSDP2 (fully_shard) with torch.distributed.checkpoint: the loss is torch's own, and a checkpoint,
also one that is written in the background, goes on in mid-epoch on 1, 2 or 4 ranks."""

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from ranks import on_ranks
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import emp_kernels as emp

SAMPLES, BATCH, KEEP = 120, 12, 0.4  # an epoch of 10 steps, then one of 4
FIELDS = ("score", "loss", "entropy", "updates", "selections", "seen_at")


class Training:
    """Model, optimizer, state and sampler of one rank, and what they train on."""

    def __init__(self, world, keep=KEEP, shared=False):
        torch.manual_seed(0)
        inputs = torch.randn(SAMPLES, 8)
        labels = (inputs[:, 0] > 0).long() + 2 * (inputs[:, 1] > 0).long()
        self.data = TensorDataset(inputs, labels)
        mesh = init_device_mesh("cpu", (world,))
        self.model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
        for layer in (self.model[0], self.model[2], self.model):
            fully_shard(layer, mesh=mesh)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), 0.01, foreach=False)
        kind = emp.distributed.ShardedState if shared else emp.EMPState
        self.state = kind(SAMPLES)
        self.sampler = emp.EMPSampler(self.state, keep)
        data = emp.IndexedDataset(self.data)
        self.loader = DataLoader(data, batch_size=BATCH // world, sampler=self.sampler)
        self.drawn, self.losses = [], []

    def step(self, ids, inputs, labels, ours=True):
        logits = self.model(inputs)
        if ours:
            loss = emp.cross_entropy(logits, labels, self.state, indices=ids)
        else:
            loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.drawn.append(ids.tolist())
        self.losses.append(loss.item())

    def train(self, steps, ours=True, behind=None):
        """So many steps; `behind` is called behind each with its number."""
        while True:
            for ids, (inputs, labels) in self.loader:
                self.step(ids, inputs, labels, ours)
                if behind is not None:
                    behind(len(self.drawn))
                if len(self.drawn) == steps:
                    return self

    def state_dict(self):
        model, optimizer = get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer}

    def load_state_dict(self, saved):
        model, optimizer = saved["model"], saved["optimizer"]
        set_state_dict(
            *(self.model, self.optimizer), model_state_dict=model, optim_state_dict=optimizer
        )

    def parts(self):
        return {"training": self, "emp": self.state, "sampler": self.sampler}

    def end(self):
        """Ids and losses of each step, and everything whole: weights, state, sampler's epoch."""
        emp.distributed.sync(self.state)
        whole = emp.EMPState(SAMPLES)
        whole.load_state_dict(self.state.state_dict())
        return {
            "drawn": self.drawn,
            "losses": self.losses,
            "weights": [p.full_tensor().tolist() for p in self.model.parameters()],
            "state": [getattr(whole, name).tolist() for name in FIELDS],
            "epoch": self.sampler.epoch,
        }


def whole_and_stopped(rank, world, folder, shared):
    """13 steps, with checkpoints behind the 11th: one at once, one while the others are trained."""
    stock = Training(world, keep=1.0).train(11, ours=False)
    ours = Training(world, keep=1.0).train(11)
    training, group, written = Training(world, shared=shared), dist.new_group(backend="gloo"), []

    def save(step):
        if step == 11:
            emp.distributed.sync(training.state)
            checkpoint.save(training.parts(), checkpoint_id=f"{folder}/saved")
            parts = {name: part.state_dict() for name, part in training.parts().items()}
            options = {"checkpoint_id": f"{folder}/async", "process_group": group}
            written.append(checkpoint.async_save(parts, **options))

    training.train(13, behind=save)
    written[0].result()
    return stock.losses, ours.losses, training.end()


def resumed(rank, world, folder, kind, shared):
    training = Training(world, shared=shared)
    checkpoint.load(training.parts(), checkpoint_id=f"{folder}/{kind}")
    return training.train(2).end()


def together(ranks):
    """The ids of each step, those of all ranks in the order of one process."""
    steps = zip(*(rank["drawn"] for rank in ranks), strict=True)
    return [[i for row in zip(*parts, strict=True) for i in row] for parts in steps]


@pytest.mark.parametrize("shared", [False, True], ids=["EMPState", "ShardedState"])
def test_checkpoints_of_two_ranks_go_on_on_any_number(shared, tmp_path):
    found = on_ranks(2, whole_and_stopped, tmp_path, shared)
    for stock, ours, _ in found:
        assert ours == pytest.approx(stock, rel=1e-6)
    whole = [end for *_, end in found]
    assert whole[0]["epoch"] == 1
    for world, kind in ((1, "saved"), (4, "async")):
        ranks = on_ranks(world, resumed, tmp_path, kind, shared)
        assert together(ranks) == together(whole)[11:]
        for end in ranks:
            assert end["state"][-3:] == whole[0]["state"][-3:]
            for name in ("weights", "state"):
                for ours, want in zip(end[name], whole[0][name], strict=True):
                    torch.testing.assert_close(torch.tensor(ours), torch.tensor(want))
