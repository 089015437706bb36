"""EpochMask: EMPSampler's choice in shared memory, whose changes all kinds of workers see."""

import copy
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
from ranks import on_ranks
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

import emp_kernels as emp
from emp_kernels.choosing import SAMPLINGS

PACKAGES = Path(emp.__file__).parent.parent


def trained(state, seed):
    """Half of the samples get scores, some of them equal."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(len(state), generator=generator)[: len(state) // 2]
    score = torch.randint(0, 50, ids.shape, generator=generator) / 7
    state.update(ids, emp.Scores(score, score, score, score))


def mask_of(n=1001, **options):
    return emp.EpochMask(emp.EMPState(n), 0.3, **options)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize(("n", "keep"), [(1, 0.3), (7, 3), (8, 0.5), (1001, 0.3), (4096, 1.0)])
def test_it_keeps_what_the_sampler_draws(n, keep, sampling):
    states = [emp.EMPState(n) for _ in range(2)]
    options = {"sampling": sampling, "seed": 5, "warmup_epochs": 2}
    mask = emp.EpochMask(states[0], keep, **options)
    sampler = emp.EMPSampler(states[1], keep, **options)
    for epoch in range(7):
        mask.set_epoch(epoch)
        want = sorted(sampler)
        assert mask.epoch == epoch
        assert mask.ids().tolist() == want
        assert [i for i in range(n) if i in mask] == want
        assert mask[torch.arange(n)].nonzero()[:, 0].tolist() == want
        assert len(mask) == len(want)
        assert torch.equal(states[0].selections, states[1].selections)
        for state in states:
            trained(state, epoch)
    found = [state.diagnostics() for state in states]
    assert torch.equal(found[0].windows, found[1].windows)
    if n > 8:
        assert 0 < len(mask) < n or keep == 1.0


def test_asking_for_ids_of_any_kind():
    mask = mask_of(20)
    trained(mask._choice.state, 0)
    mask.set_epoch(3)
    kept = mask.ids()
    assert len(kept) == len(mask) == 6
    first, out = int(kept[0]), next(i for i in range(20) if i not in kept)
    for dtype in (torch.int64, torch.int32, torch.uint8, torch.int16, torch.uint64):
        found = mask[torch.tensor([[first, out], [out, first]]).to(dtype)]
        assert found.dtype == torch.bool
        assert found.tolist() == [[True, False], [False, True]]
    assert mask[[out, first]].tolist() == [False, True]
    assert mask[first].item() is True
    assert mask[[]].shape == (0,)
    assert torch.tensor(first) in mask
    assert torch.tensor(out).numpy() not in mask
    assert bool(mask)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: -1 in m, ValueError, "EpochMask: id must be at least 0, got -1"),
        (lambda m: "a" in m, TypeError, "EpochMask: id must be an int, got str"),
        (lambda m: 0.5 in m, TypeError, "EpochMask: id must be an int, got float"),
        (lambda m: m[torch.tensor([3, -2])], ValueError, "ids must be at least 0, got -2"),
        (lambda m: m[torch.ones(2)], TypeError, "ids must be an integer tensor, got torch.float32"),
        (lambda m: m["a"], TypeError, "EpochMask: ids must be an integer tensor, got str"),
        (lambda m: m.set_epoch(-1), ValueError, "EpochMask.set_epoch: epoch must be at least 0"),
        (lambda m: m.set_epoch(0.5), TypeError, "EpochMask.set_epoch: epoch must be an int"),
        (lambda m: m.set_epoch(2**63), ValueError, "epoch must be below"),
        (lambda m: emp.EpochMask(None), TypeError, "EpochMask: state must be an EMPState, got"),
        (lambda m: mask_of(keep=0.5), TypeError, "multiple values for argument 'keep'"),
        (lambda m: emp.EpochMask(emp.EMPState(3), 4), ValueError, "^EpochMask: keep must be betw"),
        (lambda m: mask_of(sampling="best"), ValueError, "^EpochMask: sampling must be top or"),
        (lambda m: mask_of(seed=0.5), TypeError, "^EpochMask: seed must be an int"),
        (lambda m: mask_of(warmup_epochs=-1), ValueError, "^EpochMask: warmup_epochs must be at"),
    ],
)
def test_errors(call, error, message):
    mask = mask_of(9)
    before = mask._choice.state.state_dict()
    with pytest.raises(error, match=message):
        call(mask)
    assert mask.epoch is None
    assert torch.equal(mask._choice.state.selections, before["selections"])


def test_before_the_first_epoch_everything_is_in():
    mask = mask_of(10)
    assert all(i in mask for i in range(10))
    assert mask[torch.arange(10)].all()
    assert (len(mask), mask.epoch, len(mask.ids())) == (10, None, 0)


def test_the_running_epoch_is_chosen_and_counted_once():
    mask = mask_of(100, warmup_epochs=0)
    state = mask._choice.state
    mask.set_epoch(4)
    first = mask.ids()
    trained(state, 0)
    mask.set_epoch(4)
    assert torch.equal(mask.ids(), first)
    assert int(state.selections.sum()) == 30
    mask.set_epoch(3)  # another one, also an earlier one, is chosen
    assert int(state.selections.sum()) == 60
    assert not torch.equal(mask.ids(), first)


def test_an_empty_state():
    mask = mask_of(0)
    for epoch in range(3):
        mask.set_epoch(epoch)
        assert len(mask) == 0
        assert 0 in mask  # came since
    assert mask[torch.tensor([], dtype=torch.int64)].shape == (0,)


# ---- growth


def test_samples_that_came_since_are_in_and_come_first_in_the_next_epoch():
    mask = mask_of(50, warmup_epochs=0)
    state = mask._choice.state
    state.update(torch.arange(50), emp.Scores(*[torch.rand(50)] * 4))
    mask.set_epoch(1)
    state.grow(60)
    assert len(mask) == 15
    assert all(i in mask for i in range(50, 70))
    assert mask[torch.arange(50, 60)].all()
    mask.set_epoch(2)
    kept = mask.ids()
    assert len(kept) == 18
    assert kept[-10:].tolist() == list(range(50, 60))
    best = emp.select(state.score[:50], 8)
    assert kept[:8].tolist() == best.tolist()


# ---- other processes


class Stream(IterableDataset):
    """Ids from 0 on, divided among the workers and filtered by the mask, and its epoch."""

    def __init__(self, mask, length):
        self.mask, self.length = mask, length

    def __iter__(self):
        worker = get_worker_info()
        own = torch.arange(worker.id, self.length, worker.num_workers)
        ids = [i for i in own.tolist() if i in self.mask]
        assert own[self.mask[own]].tolist() == ids
        yield torch.tensor(ids), self.mask.epoch


def read(loader):
    """All ids of an epoch, ascending, and the epochs that workers saw."""
    ids, epochs = zip(*loader, strict=True)
    return torch.cat(ids).sort().values.tolist(), set(epochs)


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
def test_persistent_workers_see_each_epoch(context):
    mask = mask_of(3000)
    state = mask._choice.state
    loader = DataLoader(
        Stream(mask, 40_000),
        batch_size=None,
        num_workers=2,
        persistent_workers=True,
        multiprocessing_context=context,
    )
    sizes = []
    for epoch in range(5):
        mask.set_epoch(epoch)
        ids, epochs = read(loader)
        assert epochs == {epoch}
        known = [i for i in ids if i < len(state)]
        assert known == mask.ids().tolist()
        assert len(ids) - len(known) == 40_000 - len(state)  # came since
        sizes.append(len(known))
        trained(state, epoch)
        if epoch == 2:  # to more than a page of bits, which the workers have not mapped yet
            state.grow(40_000)
    assert sizes == [3000, 900, 900, 12_000, 12_000]


def writes(mask, results):
    """The restrictions on a copy in a worker, and what it sees."""
    with pytest.raises(RuntimeError) as first:
        mask.set_epoch(5)
    with pytest.raises(RuntimeError) as second:
        mask.load_state_dict(mask.state_dict())
    results.put(([str(first.value), str(second.value)], len(mask), mask.ids().tolist()))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_copy_in_another_process_only_reads(context):
    mask = mask_of(40)
    mask.set_epoch(0)
    state = mask._choice.state
    trained(state, 1)
    mask.set_epoch(1)
    processes = torch.multiprocessing.get_context(context)
    results = processes.SimpleQueue()
    child = processes.Process(target=writes, args=(mask, results))
    child.start()
    said, length, ids = results.get()
    child.join()
    assert child.exitcode == 0
    assert (length, ids) == (12, mask.ids().tolist())
    assert mask.epoch == 1
    for text, name in zip(said, ("set_epoch", "load_state_dict"), strict=True):
        rule = "the mask must be written by the process"
        assert text.startswith(f"EpochMask.{name}: {rule} {os.getpid()} that made it")
    assert not state.score.is_shared()  # it was not sent


def test_copies_share_the_bits():
    mask = mask_of(100)
    copies = [copy.copy(mask), copy.deepcopy(mask), pickle.loads(pickle.dumps(mask))]
    trained(mask._choice.state, 2)
    mask.set_epoch(1)
    for other in copies:
        assert torch.equal(other.ids(), mask.ids())
        assert len(other) == 30
        with pytest.raises(RuntimeError, match="must be written by the process"):
            other.set_epoch(2)
    want = mask.ids()
    del mask
    assert torch.equal(copies[0].ids(), want)


def test_a_pickle_of_a_process_that_is_gone():
    program = "import emp_kernels as e, pickle, sys; m = e.EpochMask(e.EMPState(3)); "
    program += "sys.stdout.buffer.write(pickle.dumps(m))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGES)},
    )
    with pytest.raises(RuntimeError, match="EpochMask: a copy must be made on the machine of"):
        pickle.loads(done.stdout)


def test_another_file_of_that_name_is_not_taken_for_the_bits():
    mask = mask_of(3)
    saved = pickle.dumps(mask)
    mask._bits._head()[0] += 1
    with pytest.raises(RuntimeError, match="EpochMask: a copy must be made"):
        pickle.loads(saved)


def test_descriptors_are_given_back():
    def count():
        return len(os.listdir("/proc/self/fd"))

    before = count()
    for _ in range(20):
        mask = mask_of(100)
        mask.set_epoch(0)
        other = copy.deepcopy(mask)
        assert len(other) == 100
    del mask, other
    assert count() == before


def test_without_memory_files_a_file_serves_and_goes(monkeypatch, tmp_path):
    """As on systems without memfd_create."""
    monkeypatch.delattr(os, "memfd_create")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mask = mask_of(3000)
    loader = DataLoader(
        Stream(mask, 3000),
        batch_size=None,
        num_workers=1,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )
    for epoch in range(2):
        mask.set_epoch(epoch)
        assert read(loader) == (mask.ids().tolist(), {epoch})
    assert len(list(tmp_path.iterdir())) == 1
    del loader, mask
    assert not list(tmp_path.iterdir())


# ---- checkpoints


@pytest.mark.parametrize("n", [1, 8, 100, 1001])
def test_a_resume_restores_the_mask_and_counts_nothing(n):
    mask = mask_of(n)
    state = mask._choice.state
    for epoch in range(3):
        mask.set_epoch(epoch)
        trained(state, epoch)
    file = io.BytesIO()
    torch.save({"state": state.state_dict(), "mask": mask.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    again = mask_of(n)
    resumed = again._choice.state
    resumed.load_state_dict(saved["state"])
    again.load_state_dict(saved["mask"])
    again.set_epoch(2)  # what a loop does as it begins
    assert torch.equal(again.ids(), mask.ids())
    assert (again.epoch, len(again)) == (2, len(mask))
    assert torch.equal(resumed.selections, state.selections)
    for each in (mask, again):
        each.set_epoch(3)
    assert torch.equal(again.ids(), mask.ids())
    assert torch.equal(resumed.selections, state.selections)


def test_a_snapshot_is_no_view_and_none_is_one_too():
    mask = mask_of(30)
    none, other = mask.state_dict(), mask_of(30)
    mask.set_epoch(0)
    saved = mask.state_dict()
    trained(mask._choice.state, 0)
    mask.set_epoch(1)
    other.load_state_dict(saved)
    assert len(other) == 30
    assert (other.ids() == torch.arange(30)).all()
    other.load_state_dict(none)
    assert other.epoch is None
    assert 29 in other


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_distributed_checkpoint(tmp_path):
    mask, again = mask_of(100), mask_of(100)
    trained(mask._choice.state, 0)
    mask.set_epoch(1)
    checkpoint.save({"mask": mask}, checkpoint_id=tmp_path)
    again.set_epoch(0)
    checkpoint.load({"mask": again}, checkpoint_id=tmp_path)
    assert torch.equal(again.ids(), mask.ids())
    assert again.epoch == 1


def test_a_grown_state_takes_the_mask_of_a_smaller_one():
    mask = mask_of(40, warmup_epochs=0)
    mask.set_epoch(2)
    saved = mask.state_dict()
    again = mask_of(45, warmup_epochs=0)
    again.load_state_dict(saved)
    assert torch.equal(again.ids(), mask.ids())
    assert 44 in again


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"version": 2}, ValueError, "version must be 1, got 2"),
        ({"num_samples": 101}, ValueError, "num_samples must be at most the state's 100"),
        ({"num_samples": 92}, ValueError, "bits must hold 12 bytes for 92 samples, got 13"),
        ({"num_samples": 98}, ValueError, "bits must be 0 after the last sample, got 0xf"),
        ({"epoch": -1}, ValueError, "epoch must be at least 0"),
        ({"epoch": "1"}, TypeError, "epoch must be an int"),
        ({"bits": torch.zeros(13).byte()}, TypeError, "bits must be a tuple of one tensor"),
        ({"bits": (torch.zeros(13),)}, TypeError, "bits must hold torch.uint8, got torch.float32"),
        ({"bits": None}, TypeError, "bits must be a tuple of one tensor"),
    ],
)
def test_checkpoints_that_are_none(entries, error, message):
    mask = mask_of(100)
    mask.set_epoch(0)
    saved = mask.state_dict()
    trained(mask._choice.state, 0)
    mask.set_epoch(1)
    before = mask.ids()
    with pytest.raises(error, match=f"^EpochMask.load_state_dict: {message}"):
        mask.load_state_dict(saved | entries)
    del saved["bits"]
    with pytest.raises(ValueError, match="got one without bits"):
        mask.load_state_dict(saved)
    assert mask.epoch == 1
    assert torch.equal(mask.ids(), before)


# ---- ranks


def refuses_parts(rank, world):
    state = emp.distributed.ShardedState(9, dist.group.WORLD)
    with pytest.raises(TypeError, match="EpochMask: state must be a whole EMPState, got Sharded"):
        emp.EpochMask(state)
    with pytest.raises(TypeError, match=r"ShardedState.grow: a state must be held whole to grow"):
        state.grow(12)
    return state.num_samples, len(state.score)


def test_a_state_that_is_shared_out_neither_masks_nor_grows():
    assert on_ranks(2, refuses_parts) == [(9, 5), (9, 4)]


def chooses(rank, world):
    """Masks of three epochs, each rank scoring its own samples between them."""
    mask = mask_of(60)
    state = mask._choice.state
    found = []
    for epoch in range(3):
        mask.set_epoch(epoch)
        found.append((mask.ids().tolist(), int(state.selections.sum())))
        own = torch.arange(rank, 60, dist.get_world_size())
        score = (own * 37 % 60 + epoch).float()
        state.update(own, emp.Scores(score, score, score, score))
    return found


def test_ranks_keep_the_same_samples():
    found = on_ranks(3, chooses)
    assert found[0] == found[1] == found[2]
    assert [len(ids) for ids, _ in found[0]] == [60, 18, 18]
    assert [count for _, count in found[0]] == [60, 78, 96]
    assert found[0][1][0] == sorted(i for i in range(60) if i * 37 % 60 >= 42)
