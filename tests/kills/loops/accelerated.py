"""An Accelerate loop with accumulation; save_state after each optimiser step."""

from accelerate import Accelerator
from torch.utils.data import DataLoader

import emp_kernels as emp
from emp_kernels.integrations.accelerate import prepare

from .. import task
from ..life import Life


def train(life: Life) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=life.accumulate)
    net, optimizer = task.parts()
    state, sampler = task.state_and_sampler()
    loader = DataLoader(
        emp.IndexedDataset(task.points()),
        batch_size=task.BATCH_SIZE,
        sampler=sampler,
        num_workers=life.workers,
    )
    model, optimizer = accelerator.prepare(net, optimizer)
    loader = prepare(accelerator, loader)
    folder = life.checkpoint()
    if folder is not None:
        life.now("resuming")
        accelerator.load_state(folder)

    life.begin(net)
    for life.epoch in range(sampler.epoch, task.EPOCHS):
        for ids, (features, labels) in loader:
            life.now("in a batch")
            with accelerator.accumulate(model):
                loss = emp.cross_entropy(model(features), labels, state, indices=ids)
                life.trained(net, ids, loss)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                with life.saving() as beside:
                    accelerator.save_state(beside)
            life.now("before a batch")
        life.now("between epochs")
    life.finish(net, state)
