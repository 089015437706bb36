"""`prepare` in real Accelerate loops: one and two processes, accumulation, resumes, set_epoch."""

import os

import pytest
import torch
from ranks import on_ranks
from torch.utils.data import DataLoader, RandomSampler

import emp_kernels as emp

accelerate = pytest.importorskip("accelerate")
from accelerate.state import AcceleratorState, GradientState  # noqa: E402
from accelerate.utils import DataLoaderConfiguration  # noqa: E402

from emp_kernels.integrations.accelerate import prepare  # noqa: E402

SAMPLES, KEEP, BATCH_SIZE, EPOCHS = 45, 21, 4, 4


@pytest.fixture(autouse=True)
def _fresh():
    """Resets Accelerate's process-wide singletons."""
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


class Loop:
    """Everything that a training script makes before its loop."""

    def __init__(self, workers=0, accumulate=1, keep=KEEP, **options):
        self.accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=accumulate)
        self.state = emp.EMPState(SAMPLES)
        self.sampler = emp.EMPSampler(self.state, keep, epochs=EPOCHS, **options)
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Dropout(0.1))
        optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9)
        inputs = torch.randn(SAMPLES, 5, generator=torch.Generator().manual_seed(1))
        data = emp.IndexedDataset([(x, int(x[0] > 0)) for x in inputs])
        loader = DataLoader(data, batch_size=BATCH_SIZE, sampler=self.sampler, num_workers=workers)
        self.model, self.optimizer = self.accelerator.prepare(net, optimizer)
        self.loader = prepare(self.accelerator, loader)
        self.drawn, self.losses, self.syncs, self.lengths = [], [], [], []

    def train(self, epochs, save_at=None, folder=None, name=None):
        """Drawn ids and losses of `epochs`; stop at batch `save_at` once its step is saved."""
        for epoch in epochs:
            if name is not None:
                self.loader.set_epoch(name(epoch))
            for i, (ids, (x, y)) in enumerate(self.loader):
                with self.accelerator.accumulate(self.model):
                    loss = emp.cross_entropy(self.model(x), y, self.state, indices=ids)
                    self.accelerator.backward(loss)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                self.drawn.append((epoch, ids.tolist()))
                self.losses.append(loss.item())
                self.syncs.append(self.accelerator.sync_gradients)
                self.lengths.append((i + 1, len(self.loader)))
                if len(self.drawn) == save_at:
                    self.accelerator.save_state(folder)
                    return self
        return self


def counts(loop):
    return [sum(len(ids) for e, ids in loop.drawn if e == epoch) for epoch in range(EPOCHS)]


FIELDS = ("score", "loss", "entropy", "seen_at", "updates")


def assert_same_end(resumed, whole, start, fields=FIELDS):
    assert resumed.drawn == whole.drawn[start:]
    assert resumed.losses == whole.losses[start:]
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for name in fields:
        assert torch.equal(getattr(resumed.state, name), getattr(whole.state, name)), name


def test_every_epoch_is_drawn_whole_and_its_length_holds():
    loop = Loop(anneal_epochs=1).train(range(EPOCHS))
    assert counts(loop) == [45, 21, 21, 45]
    for epoch in range(EPOCHS):
        drawn = [i for e, ids in loop.drawn if e == epoch for i in ids]
        assert len(set(drawn)) == len(drawn)
    steps = [12, 6, 6, 12]
    assert loop.lengths == [(i + 1, n) for n in steps for i in range(n)]
    assert int(loop.state.updates.sum()) == int(loop.state.selections.sum()) == 132


def test_accumulation_ends_with_the_epoch():
    loop = Loop(accumulate=4).train(range(3))
    steps = [i % 4 == 0 or i == n for i, n in loop.lengths]
    assert loop.syncs == steps
    assert sum(steps) == 3 + 2 + 2


@pytest.mark.parametrize("save_at", [1, 3, 11, 12, 13, 17, 18, 20, 24])
def test_it_resumes_bit_for_bit(save_at, tmp_path):
    """In mid-epoch, at an epoch's last batch, and where the loop's next epoch begins."""
    whole = Loop().train(range(EPOCHS))
    Loop().train(range(EPOCHS), save_at, tmp_path)
    resumed = Loop()
    resumed.accelerator.load_state(tmp_path)
    assert resumed.sampler.epoch == (0 if save_at < 12 else save_at // 6 - 1)
    resumed.train(range(resumed.sampler.epoch, EPOCHS))
    assert_same_end(resumed, whole, save_at)


@pytest.mark.parametrize("workers", [1, 2])
def test_it_resumes_behind_prefetching_workers(workers, tmp_path):
    whole = Loop(workers).train(range(3))
    assert whole.drawn == Loop().train(range(3)).drawn
    Loop(workers).train(range(3), 14, tmp_path)
    resumed = Loop(workers)
    resumed.accelerator.load_state(tmp_path)
    assert_same_end(resumed.train(range(1, 3)), whole, 14)


def test_a_resume_between_epochs_and_one_in_the_same_process(tmp_path):
    whole = Loop().train(range(EPOCHS))
    loop = Loop().train(range(2))
    loop.accelerator.save_state(tmp_path)
    loop.train(range(2, EPOCHS))
    loop.accelerator.load_state(tmp_path)  # back from epoch 4 to 2
    loop.drawn.clear(), loop.losses.clear()
    assert loop.sampler.epoch == 2
    assert_same_end(loop.train(range(2, EPOCHS)), whole, 18)


@pytest.mark.parametrize(
    "name", [lambda epoch: epoch, lambda epoch: epoch - 1], ids=["its own", "from 0"]
)
def test_set_epoch_behind_a_resume_loses_nothing(name, tmp_path):
    """By the epoch's number, or by a counter that begins at 0 again."""
    whole = Loop().train(range(EPOCHS), name=lambda epoch: epoch)
    Loop().train(range(EPOCHS), 14, tmp_path)
    resumed = Loop()
    resumed.accelerator.load_state(tmp_path)
    assert_same_end(resumed.train(range(1, EPOCHS), name=name), whole, 14)


def test_set_epoch_chooses_the_epoch():
    loop = Loop()
    loop.loader.set_epoch(1)
    assert sum(len(ids) for ids, _ in loop.loader) == 21
    loop.loader.set_epoch(0)
    assert sum(len(ids) for ids, _ in loop.loader) == 45


def test_a_look_at_a_batch_uses_nothing_up(tmp_path):
    want = Loop().train(range(1)).drawn
    loop = Loop()
    next(iter(loop.loader))
    assert loop.train(range(1)).drawn == want
    loop = Loop()
    running = iter(loop.loader)
    assert [next(running)[0].tolist() for _ in range(3)] == [ids for _, ids in want[:3]]
    next(iter(loop.loader))
    loop.accelerator.save_state(tmp_path)
    assert [ids.tolist() for ids, _ in running] == [ids for _, ids in want[3:]]
    resumed = Loop()
    resumed.accelerator.load_state(tmp_path)
    assert [ids.tolist() for ids, _ in resumed.loader] == [ids for _, ids in want[3:]]


def test_a_loop_that_stops_behind_the_last_batch_ends_the_epoch():
    loop = Loop()
    for _ids, _ in loop.loader:
        if loop.accelerator.gradient_state.end_of_dataloader:
            break
    assert loop.sampler.epoch == 1
    assert sum(len(ids) for ids, _ in loop.loader) == 21


def test_gather_for_metrics_keeps_every_row():
    loop = Loop(keep=22)  # whose last batch is larger than that of 45
    for size in (45, 22):
        rows = sum(len(loop.accelerator.gather_for_metrics(ids)) for ids, _ in loop.loader)
        assert rows == size


def two_processes(rank, world, folder, workers, options):
    """Ids of each batch, which were steps, rows gathered in a fourth epoch; and a resume in mid-
    epoch compared with the rest of it."""
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    whole = Loop(workers, 2, **options).train(range(3))
    Loop(workers, 2, **options).train(range(3), 8, folder)
    resumed = Loop(workers, 2, **options)
    resumed.accelerator.load_state(folder)
    resumed.train(range(resumed.sampler.epoch, 3))
    for loop in (whole, resumed):
        emp.distributed.sync(loop.state)
    # The padding's second update is counted where a save has merged the states in between.
    assert_same_end(resumed, whole, 8, FIELDS[:-1])
    gathered = [len(whole.accelerator.gather_for_metrics(ids)) for ids, _ in whole.loader]
    return whole.drawn, whole.syncs, gathered, int((whole.state.updates > 0).sum())


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("options", [{}, {"num_replicas": 1, "rank": 0}], ids=["of two", "of one"])
def test_two_processes_share_out_each_epoch(options, workers, tmp_path):
    """Also if the sampler was made for one process, before the group existed."""
    found = on_ranks(2, two_processes, tmp_path, workers, options)
    for epoch, size in enumerate((45, 21, 21)):
        parts = [[i for e, ids in drawn if e == epoch for i in ids] for drawn, *_ in found]
        assert [len(part) for part in parts] == [size // 2 + 1] * 2
        assert len({*parts[0], *parts[1]}) == size  # the first id is drawn twice
    for _, syncs, gathered, seen in found:
        assert syncs == [False, True] * 3 + [False, True, True] * 2
        assert gathered == [8, 8, 5]  # without the id drawn twice
        assert seen == 45


def test_what_it_refuses():
    accelerator = accelerate.Accelerator(cpu=True)
    state = emp.EMPState(10)
    data = emp.IndexedDataset(list(range(10)))
    loader = DataLoader(data, batch_size=2, sampler=emp.EMPSampler(state))
    with pytest.raises(TypeError, match=r"prepare: loader must be a DataLoader, got list"):
        prepare(accelerator, [])
    with pytest.raises(ValueError, match=r"prepare: loader must have an EMPSampler as its sampler"):
        prepare(accelerator, DataLoader(data, batch_size=2, sampler=RandomSampler(data)))
    with pytest.raises(ValueError, match=r"prepare: loader must have a batch_size, got None"):
        prepare(accelerator, DataLoader(data, batch_size=None, sampler=emp.EMPSampler(state)))
    with pytest.raises(ValueError, match=r"prepare: loader must be a plain DataLoader"):
        prepare(accelerator, accelerator.prepare(loader))
    AcceleratorState._reset_state(True)
    config = DataLoaderConfiguration(dispatch_batches=True)
    accelerator = accelerate.Accelerator(cpu=True, dataloader_config=config)
    with pytest.raises(ValueError, match=r"prepare: accelerator must leave each process its own"):
        prepare(accelerator, loader)
