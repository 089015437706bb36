"""A plain loop around torchdata's loader, which saves the sampler's position with its own."""

import torch
from torch.nn.parallel import DistributedDataParallel
from torchdata.stateful_dataloader import StatefulDataLoader

import emp_kernels as emp

from .. import task
from ..life import Life


def train(life: Life) -> None:
    net, optimizer = task.parts()
    state, sampler = task.state_and_sampler()
    loader = StatefulDataLoader(
        emp.IndexedDataset(task.points()),
        batch_size=task.BATCH_SIZE,
        sampler=sampler,
        num_workers=life.workers,
        generator=torch.Generator(),
    )
    kept = {"net": net, "optimizer": optimizer, "state": state, "loader": loader}
    folder, epoch = life.checkpoint(), 0
    if folder is not None:
        life.now("resuming")
        saved = torch.load(folder / "checkpoint.pt", weights_only=False)  # the loader keeps more
        for name, part in kept.items():
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["random"])
        epoch = saved["epoch"]
    model = DistributedDataParallel(net) if life.ranks > 1 else net

    life.begin(net)
    for life.epoch in range(epoch, task.EPOCHS):
        for ids, (features, labels) in loader:
            life.now("in a batch")
            loss = emp.cross_entropy(model(features), labels, state, indices=ids)
            life.trained(net, ids, loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            save(life, kept, state)
        life.now("between epochs")
        life.epoch += 1
        save(life, kept, state)
        life.now("between epochs")
    life.finish(net, state)


def save(life: Life, kept: dict, state: emp.EMPState) -> None:
    with life.saving() as beside:
        if life.ranks > 1:
            emp.distributed.sync(state)
        contents = {name: part.state_dict() for name, part in kept.items()}
        if life.rank == 0:
            contents |= {"random": torch.get_rng_state(), "epoch": life.epoch}
            torch.save(contents, beside / "checkpoint.pt")
