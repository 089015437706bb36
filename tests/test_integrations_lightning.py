"""EMPCallback in the real Lightning Trainer: epochs of different lengths, checkpoints, errors."""

import logging
import warnings

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
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


@pytest.mark.parametrize(("kill_at", "workers"), [(2, 0), (7, 0), (8, 0), (8, 1), (10, 0), (12, 0)])
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
