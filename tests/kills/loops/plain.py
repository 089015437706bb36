"""A plain loop. With worker processes it passes the number of ids trained itself."""

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

import emp_kernels as emp

from .. import task
from ..life import Life


def train(life: Life) -> None:
    net, optimizer = task.parts()
    state, sampler = task.state_and_sampler()
    loader = DataLoader(
        emp.IndexedDataset(task.points()),
        batch_size=task.BATCH_SIZE,
        sampler=sampler,
        num_workers=life.workers,
        generator=torch.Generator(),
    )
    kept = {"net": net, "optimizer": optimizer, "state": state, "sampler": sampler}
    folder = life.checkpoint()
    if folder is not None:
        life.now("resuming")
        saved = torch.load(folder / "checkpoint.pt", weights_only=True)
        for name, part in kept.items():
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["random"])
    model = DistributedDataParallel(net) if life.ranks > 1 else net

    life.begin(net)
    for life.epoch in range(sampler.epoch, task.EPOCHS):
        for i, (ids, (features, labels)) in enumerate(loader):
            life.now("in a batch")
            loss = emp.cross_entropy(model(features), labels, state, indices=ids)
            life.trained(net, ids, loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with life.saving() as beside:
                if life.ranks > 1:
                    emp.distributed.sync(state)
                contents = {name: part.state_dict() for name, part in kept.items()}
                contents["sampler"] = sampler.state_dict(position=(i + 1) * task.BATCH_SIZE)
                if life.rank == 0:
                    contents["random"] = torch.get_rng_state()
                    torch.save(contents, beside / "checkpoint.pt")
        life.now("between epochs")
    life.finish(net, state)
