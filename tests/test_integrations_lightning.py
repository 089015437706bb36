"""EMPCallback in the real Lightning Trainer: epochs of different lengths, checkpoints, errors."""

import logging
import warnings

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader

import emp_kernels as emp
from emp_kernels.integrations.lightning import EMPCallback

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Killed(BaseException):  # Lightning writes no checkpoint for it
    pass


class Module(lightning.LightningModule):
    def __init__(self, state, kill_at=None):
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Linear(6, 3), torch.nn.Dropout(0.1))
        self.state, self.kill_at, self.losses, self.drawn = state, kill_at, [], []

    def training_step(self, batch, step):
        if self.global_step == self.kill_at:
            raise Killed
        ids, (inputs, labels) = batch
        # Dropout from the ids, for Lightning does not keep the generators' states.
        torch.manual_seed(int(ids[0]))
        loss = emp.cross_entropy(self.layer(inputs), labels, self.state, indices=ids)
        self.losses.append(loss.item())
        self.drawn.append((self.current_epoch, ids.tolist()))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1, 0.9)


def parts(folder, kill_at=None, save_every=None, workers=0, epochs=4, **options):
    torch.manual_seed(0)
    inputs = torch.randn(50, 6)
    data = emp.IndexedDataset([(x, int(x[0] > 0)) for x in inputs])
    state = emp.EMPState(50)
    sampler = emp.EMPSampler(state, 0.4, epochs=epochs, **options)
    loader = DataLoader(data, batch_size=8, sampler=sampler, num_workers=workers)
    callbacks: list[Callback] = [EMPCallback(state, sampler)]
    if save_every:
        callbacks.append(
            ModelCheckpoint(folder, "{step}", every_n_train_steps=save_every, save_top_k=-1)
        )
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=callbacks,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=bool(save_every),
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    return trainer, Module(state, kill_at), loader, state


def test_every_epoch_is_drawn_whole(tmp_path):
    trainer, module, loader, state = parts(tmp_path, anneal_epochs=1, epochs=4)
    trainer.fit(module, loader)
    counts = [sum(len(ids) for e, ids in module.drawn if e == epoch) for epoch in range(4)]
    assert counts == [50, 20, 20, 50]
    assert state.epoch == 4
    assert int(state.updates.sum()) == int(state.selections.sum()) == 140
    assert trainer.callback_metrics["emp/never_seen"] == 0
    assert trainer.callback_metrics["emp/share"] == 1


@pytest.mark.parametrize(
    ("kill_at", "workers"),
    [(2, 0), (2, 2), (7, 0), (7, 1), (8, 0), (8, 1), (9, 2), (10, 0), (10, 1), (12, 0), (12, 2)],
)
def test_it_resumes_in_mid_epoch_bit_for_bit(tmp_path, kill_at, workers):
    whole_trainer, whole, loader, want = parts(tmp_path / "whole")
    whole_trainer.fit(whole, loader)
    trainer, killed, loader, _ = parts(tmp_path, kill_at, 1, workers)
    with pytest.raises(Killed):
        trainer.fit(killed, loader)
    trainer, resumed, loader, state = parts(tmp_path, workers=workers)
    trainer.fit(resumed, loader, ckpt_path=str(tmp_path / f"step={kill_at}.ckpt"))
    assert killed.drawn[:kill_at] + resumed.drawn == whole.drawn
    assert killed.losses[:kill_at] + resumed.losses == whole.losses
    for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(state.score, want.score)
    assert torch.equal(state.updates, want.updates)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_it_resumes_after_several_kills(tmp_path, workers):
    """In the middle and at the end of an epoch, and twice in one."""
    whole_trainer, whole, loader, want = parts(tmp_path / "whole", anneal_epochs=1)
    whole_trainer.fit(whole, loader)
    drawn, losses, last = [], [], None
    for kill_at in (1, 3, 7, 9, 10, 13, 18, None):  # 7, 10 and 13 are epochs' ends
        options = {"anneal_epochs": 1}
        trainer, module, loader, state = parts(tmp_path / "run", kill_at, 1, workers, **options)
        if kill_at is None:
            trainer.fit(module, loader, ckpt_path=last)
        else:
            with pytest.raises(Killed):
                trainer.fit(module, loader, ckpt_path=last)
            last = str(tmp_path / "run" / f"step={kill_at}.ckpt")
        drawn += module.drawn
        losses += module.losses
    assert drawn == whole.drawn
    assert losses == whole.losses
    assert torch.equal(state.score, want.score)
    assert torch.equal(state.updates, want.updates)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_it_resumes_at_an_epochs_end(tmp_path, workers, epochs):
    whole_trainer, whole, loader, want = parts(tmp_path / "whole")
    whole_trainer.fit(whole, loader)
    trainer, first, loader, _ = parts(tmp_path, workers=workers, epochs=epochs)
    trainer.callbacks.append(ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1))
    trainer.fit(first, loader)
    trainer, second, loader, state = parts(tmp_path, workers=workers)
    trainer.fit(second, loader, ckpt_path=str(tmp_path / f"epoch={epochs - 1}.ckpt"))
    assert first.drawn + second.drawn == whole.drawn
    assert torch.equal(state.score, want.score)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_lightning_cuts_short(tmp_path, workers):
    """The next one is the next one, and as long as Lightning lets it be."""
    trainer, module, loader, _ = parts(tmp_path, workers=workers, anneal_epochs=1)
    trainer.limit_train_batches = 5
    trainer.fit(module, loader)
    counts = [sum(len(ids) for e, ids in module.drawn if e == epoch) for epoch in range(4)]
    assert counts == [40, 20, 20, 40]


class Named(Module):
    """Batches are dicts."""

    def training_step(self, batch, step):
        return super().training_step((batch["id"], (batch["inputs"], batch["label"])), step)


def named(items):
    ids, pairs = zip(*items, strict=True)
    inputs, labels = zip(*pairs, strict=True)
    return {
        "inputs": torch.stack(inputs),
        "label": torch.tensor(labels),
        "id": torch.tensor(ids),
    }


class Several(Module):
    """Batches are dicts of several loaders' batches; `None` where one has ended."""

    def training_step(self, batch, step):
        others = sum(x.sum() for x in (batch["other"],) if x is not None)
        if batch["ours"] is None:
            return self.layer(torch.zeros(1, 6)).sum() * 0
        return super().training_step(batch["ours"], step) + 0 * others


def in_several(loader, mode, others=45):
    other = DataLoader(torch.ones(others), batch_size=8)
    loaders = {"other": other, "ours": loader}
    return loaders if mode is None else CombinedLoader(loaders, mode)


def test_batches_that_are_dicts(tmp_path):
    def run(folder, kill_at=None, save_every=None, ckpt=None):
        trainer, module, loader, _ = parts(folder, kill_at, save_every)
        loader = DataLoader(loader.dataset, 8, sampler=loader.sampler, collate_fn=named)
        other = Named(module.state, kill_at)
        other.layer = module.layer
        if kill_at is None:
            trainer.fit(other, loader, ckpt_path=ckpt)
        else:
            with pytest.raises(Killed):
                trainer.fit(other, loader)
        return other

    whole = run(tmp_path / "whole")
    killed = run(tmp_path, 9, 1)
    resumed = run(tmp_path / "resumed", ckpt=str(tmp_path / "step=9.ckpt"))
    assert killed.drawn + resumed.drawn == whole.drawn
    assert killed.losses + resumed.losses == whole.losses


@pytest.mark.parametrize(
    ("mode", "others", "counts"),
    [
        ("min_size", 16, [16, 16, 16, 16]),
        ("max_size", 70, [50, 20, 20, 20]),
        (None, 8, [50, 20, 20, 20]),
    ],
)
def test_a_loader_among_others(tmp_path, mode, others, counts):
    """As long as the mode says; and a resume in mid-epoch."""

    def run(folder, kill_at=None, save_every=None, ckpt=None):
        trainer, module, loader, state = parts(folder, kill_at, save_every)
        several = Several(state, kill_at)
        several.layer = module.layer
        loaders = in_several(loader, mode, others)
        if kill_at is None:
            trainer.fit(several, loaders, ckpt_path=ckpt)
        else:
            with pytest.raises(Killed):
                trainer.fit(several, loaders)
        return several

    whole = run(tmp_path / "whole")
    found = [sum(len(ids) for e, ids in whole.drawn if e == epoch) for epoch in range(4)]
    assert found == counts
    if mode == "min_size":
        return  # Lightning begins the other loader anew, and with it the epoch's length
    killed = run(tmp_path, 4, 1)
    resumed = run(tmp_path / "resumed", ckpt=str(tmp_path / "step=4.ckpt"))
    assert killed.drawn + resumed.drawn == whole.drawn


def test_a_loader_that_others_outlast_is_not_begun_anew(tmp_path):
    trainer, _, loader, state = parts(tmp_path)
    with pytest.raises(ValueError, match=r"EMPCallback: the sampler's loader must last as long"):
        trainer.fit(Several(state), in_several(loader, None))


@pytest.mark.parametrize(("limit", "counts"), [(2, [16] * 4), (0.5, [24, 8, 8, 8])])
@pytest.mark.parametrize("kill_at", [1, 2, 3, 4])
def test_limit_train_batches(tmp_path, limit, counts, kill_at):
    """Each epoch ends early, also a resumed one."""

    def run(folder, kill_at=None, save_every=None, ckpt=None):
        trainer, module, loader, _ = parts(folder, kill_at, save_every)
        trainer.limit_train_batches = limit
        if kill_at is None:
            trainer.fit(module, loader, ckpt_path=ckpt)
        else:
            with pytest.raises(Killed):
                trainer.fit(module, loader)
        return module

    whole = run(tmp_path / "whole")
    found = [sum(len(ids) for e, ids in whole.drawn if e == epoch) for epoch in range(4)]
    assert found == counts
    killed = run(tmp_path, kill_at, 1)
    resumed = run(tmp_path / "resumed", ckpt=str(tmp_path / f"step={kill_at}.ckpt"))
    assert killed.drawn + resumed.drawn == whole.drawn
    assert killed.losses + resumed.losses == whole.losses


def test_accumulate_grad_batches_ends_with_the_epoch(tmp_path):
    trainer, module, loader, _ = parts(tmp_path)
    trainer.accumulate_grad_batches = 4
    trainer.fit(module, loader)
    assert trainer.global_step == 2 + 3  # of 7 batches, and of 3 in each of the other epochs
    assert len(module.drawn) == 7 + 3 * 3


def test_overfit_batches_is_as_without_the_callback(tmp_path):
    trainer, module, loader, state = parts(tmp_path, epochs=2)
    trainer.overfit_batches = 2
    trainer.limit_train_batches = 2
    trainer.fit(module, loader)
    assert module.drawn == [(e, list(range(8 * i, 8 * i + 8))) for e in range(2) for i in range(2)]
    assert state.updates.tolist() == [2] * 16 + [0] * 34
    trainer.save_checkpoint(tmp_path / "overfit.ckpt")


def test_the_sampler_of_no_loader(tmp_path):
    trainer, module, loader, _ = parts(tmp_path)
    with pytest.raises(ValueError, match=r"EMPCallback: sampler must be that of a training loader"):
        trainer.fit(module, DataLoader(loader.dataset, 8))


def test_what_it_refuses(tmp_path):
    state = emp.EMPState(50)
    with pytest.raises(TypeError, match=r"EMPCallback: state must be an EMPState, got int"):
        EMPCallback(3, emp.EMPSampler(state))
    with pytest.raises(ValueError, match=r"EMPCallback: sampler must be an EMPSampler of state"):
        EMPCallback(state, emp.EMPSampler(emp.EMPState(50)))
    trainer, module, loader, _ = parts(tmp_path)
    trainer.reload_dataloaders_every_n_epochs = 0
    with pytest.raises(ValueError, match=r"EMPCallback: reload_dataloaders_every_n_epochs must"):
        trainer.fit(module, loader)


def test_a_checkpoint_without_the_callback(tmp_path):
    trainer, module, loader, _ = parts(tmp_path)
    trainer.callbacks[:] = [c for c in trainer.callbacks if not isinstance(c, EMPCallback)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, loader)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    trainer, module, loader, _ = parts(tmp_path)
    with pytest.raises(ValueError, match=r"EMPCallback: checkpoint must have been saved with"):
        trainer.fit(module, loader, ckpt_path=str(tmp_path / "plain.ckpt"))
