"""WebDataset and Hugging Face streams, with real shards and workers: kept samples are read, others
are not decoded, and training resumes in mid-epoch."""

import io
import json
from itertools import islice

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch.utils.data import DataLoader

import emp_kernels as emp
from emp_kernels.integrations.streams import NAME, Kept, epoch_steps, indices_of, named

N, SHARD, KEEP, EPOCHS = 300, 40, 0.3, 4
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def score_of(indices, epoch):
    score = ((indices * 7919) % 1013).float() / 10 + epoch
    return emp.Scores(score, score, score, score)


def drawn():
    """The draws of EMPSampler in the same training, where row i is sample i."""
    state = emp.EMPState(N)
    sampler = emp.EMPSampler(state, KEEP)
    epochs = []
    for epoch in range(EPOCHS):
        epochs.append(sorted(sampler))
        state.update(torch.tensor(epochs[-1]), score_of(torch.tensor(epochs[-1]), epoch))
    return epochs


# ---- without a library


def test_what_is_kept_by_id_and_by_key():
    ids = emp.KeyIds(f"s{i}" for i in range(20))
    state = emp.EMPState(20)
    state.update(torch.arange(20), score_of(torch.arange(20), 0))
    mask = emp.EpochMask(state, 5, warmup_epochs=0)
    mask.set_epoch(0)
    by_id, by_key = Kept(mask, "id"), Kept(mask, "key", ids)
    want = state.select(5).tolist()
    assert [i for i in range(20) if by_id({"id": i})] == want
    assert [i for i in range(20) if by_key({"key": f"s{i}"})] == want
    assert by_key({"key": "new"})
    assert len(ids) == 20
    with pytest.raises(TypeError, match="Kept: mask must be an EpochMask, got Tensor"):
        Kept(torch.ones(3))
    with pytest.raises(TypeError, match="Kept: ids must be KeyIds or None, got dict"):
        Kept(mask, "key", {})
    stale = Kept(mask, "key", emp.KeyIds(["s0"]))
    assert stale({"key": "s0"}) == (0 in mask)
    with pytest.raises(RuntimeError, match="got a copy with 1 of 20"):
        stale({"key": "s1"})


def test_indices_of_new_keys_grow_the_state():
    ids, state = emp.KeyIds(), emp.EMPState(0)
    assert indices_of(["b", "a", "b"], ids, state).tolist() == [0, 1, 0]
    assert len(state) == 2
    state.update(torch.tensor([0, 1]), score_of(torch.tensor([0, 1]), 0))
    assert indices_of(["c", "a"], ids, state).tolist() == [2, 1]
    assert state.select(1).tolist() == [2]
    assert indices_of([], ids, state).shape == (0,)


# ---- WebDataset


class Labels:
    """Decodes labels and notes which, where the process is this one."""

    def __init__(self):
        self.decoded = []

    def __call__(self, sample):
        label = json.loads(sample["y.txt"])
        self.decoded.append(sample[NAME])
        return {NAME: sample[NAME], "y": label}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    wds = pytest.importorskip("webdataset")
    folder = tmp_path_factory.mktemp("wds")
    pattern = str(folder / "s-%03d.tar")
    with wds.ShardWriter(pattern, maxcount=SHARD, verbose=0) as writer:
        for i in range(N):  # keys begin anew in each shard
            writer.write({"__key__": f"{i % SHARD:04d}", "y.txt": str(i)})
    return sorted(str(path) for path in folder.glob("*.tar"))


def web_loader(urls, kept, epoch=0, workers=2, decode=None, **options):
    import webdataset as wds

    dataset = (
        wds.WebDataset(urls, shardshuffle=8, detshuffle=True, seed=epoch, empty_check=False)
        .map(named)
        .select(kept)
        .map(decode or Labels())
        .shuffle(50, rng=None, seed=epoch)
        .to_tuple(NAME, "y")
    )
    options |= {"persistent_workers": workers > 0} if not options else {}
    return wds.WebLoader(dataset, batch_size=None, num_workers=workers, **options).batched(10)


def names(urls):
    """All names, in the order of the shards."""
    import webdataset as wds

    stream = wds.WebDataset(urls, shardshuffle=False, nodesplitter=None).map(named)
    return [sample[NAME] for sample in stream]


def test_names_are_unique_over_shards(shards):
    ids = emp.KeyIds(names(shards))
    assert len(ids) == N
    assert ids[f"{shards[1]}/0000"] == SHARD


def test_persistent_workers_decode_what_each_epoch_keeps(shards):
    ids, state = emp.KeyIds(names(shards)), emp.EMPState(N)
    mask = emp.EpochMask(state, KEEP)
    loader = web_loader(shards, Kept(mask, ids=ids))
    for epoch, want in enumerate(drawn()):
        mask.set_epoch(epoch)
        seen = []
        for keys, labels in loader:
            indices = indices_of(keys, ids, state)
            assert indices.tolist() == list(labels)
            state.update(indices, score_of(indices, epoch))
            seen += indices.tolist()
        assert sorted(seen) == want


def test_only_what_is_kept_is_decoded(shards):
    ids, state, decode = emp.KeyIds(names(shards)), emp.EMPState(N), Labels()
    state.update(torch.arange(N), score_of(torch.arange(N), 0))
    mask = emp.EpochMask(state, KEEP, warmup_epochs=0)
    mask.set_epoch(0)
    seen = list(web_loader(shards, Kept(mask, ids=ids), workers=0, decode=decode))
    assert sum(len(keys) for keys, _ in seen) == len(decode.decoded) == 90
    assert sorted(ids[name] for name in decode.decoded) == mask.ids().tolist()


def test_a_stream_that_is_numbered_as_it_is_read(shards):
    """Without a pass over the keys; the last shard comes later. Workers start anew each epoch."""
    ids, state = emp.KeyIds(), emp.EMPState(0)
    mask = emp.EpochMask(state, KEEP)
    before, sizes = set(), []
    for epoch in range(EPOCHS):
        urls = shards if epoch > 1 else shards[:-1]
        mask.set_epoch(epoch)
        kept = Kept(mask, ids=ids)
        seen = []
        for keys, _ in web_loader(urls, kept, epoch, persistent_workers=False):
            indices = indices_of(keys, ids, state)
            state.update(indices, score_of(indices, epoch))
            seen += keys
        assert len(set(seen)) == len(seen)
        old = {key for key in seen if key in before}
        assert {ids[key] for key in old} == {i for i in mask.ids().tolist() if i < len(before)}
        assert epoch == 0 or all(key.startswith(shards[-1]) for key in set(seen) - old)
        sizes.append(len(seen))
        before = set(ids)
    last = N % SHARD
    assert sizes == [N - last, round(KEEP * (N - last)), round(KEEP * (N - last)) + last, 90]
    assert len(state) == len(ids) == N


def test_stale_persistent_workers_are_an_error(shards):
    ids, state = emp.KeyIds(), emp.EMPState(0)
    mask = emp.EpochMask(state, KEEP)
    loader = web_loader(shards, Kept(mask, ids=ids))
    mask.set_epoch(0)
    for keys, _ in loader:
        indices = indices_of(keys, ids, state)
        state.update(indices, score_of(indices, 0))
    mask.set_epoch(1)
    with pytest.raises(RuntimeError, match="Kept: ids must be those among which the epoch chose"):
        list(loader)


@pytest.mark.parametrize("stop", [7, 30 + 4, 30 + 9 + 5])
def test_a_webdataset_resume_in_mid_epoch(stop, shards):
    def life(saved, stop):
        ids, state = emp.KeyIds(), emp.EMPState(0)
        mask = emp.EpochMask(state, KEEP)
        first = step = skip = 0
        if saved is not None:
            ids.load_state_dict(saved["ids"])
            state.grow(saved["state"]["num_samples"]).load_state_dict(saved["state"])
            mask.load_state_dict(saved["mask"])
            first, step, skip = saved["epoch"], saved["step"], saved["batch"]
        seen = []
        for epoch in range(first, EPOCHS):
            mask.set_epoch(epoch)
            loader = web_loader(shards, Kept(mask, ids=ids), epoch, persistent_workers=False)
            for batch, (keys, _) in islice(enumerate(loader), skip, None):
                indices = indices_of(keys, ids, state)
                state.update(indices, score_of(indices, epoch))
                seen.append((epoch, list(keys), indices.tolist()))
                step += 1
                if step == stop:
                    parts = {"ids": ids, "state": state, "mask": mask}
                    saved = {name: part.state_dict() for name, part in parts.items()}
                    return seen, saved | {"epoch": epoch, "step": step, "batch": batch + 1}
            skip = 0
        return seen, state.state_dict()

    undisturbed, final = life(None, None)
    before, saved = life(None, stop)
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    after, resumed = life(torch.load(file, weights_only=True), None)
    assert before + after == undisturbed
    assert len(after) == len(undisturbed) - stop > 0
    for name in ("score", "updates", "selections", "seen_at"):
        assert torch.equal(resumed[name], final[name]), name


def ranks_read(rank, world, shards):
    """Two epochs of unequal shares; what this rank read, and in how many steps."""
    import webdataset as wds

    ids, state = emp.KeyIds(names(shards)), emp.EMPState(N)
    mask = emp.EpochMask(state, KEEP)
    own = shards[rank::world]
    dataset = wds.WebDataset(shards, shardshuffle=False, nodesplitter=wds.split_by_node)
    dataset = dataset.map(named).select(Kept(mask, ids=ids)).to_tuple(NAME)
    loader = wds.WebLoader(dataset, batch_size=None, num_workers=0).batched(10)
    found = []
    for epoch in range(2):
        mask.set_epoch(epoch)
        steps = epoch_steps(mask, ids, own, 10)
        seen = []
        for (keys,) in loader.with_epoch(steps):
            dist.all_reduce(torch.ones(1))  # as a training's step would wait
            indices = indices_of(keys, ids, state)
            state.update(indices, score_of(indices, epoch))
            seen.append(indices.tolist())
        found.append((steps, seen, mask.ids().tolist()))
    few, own = emp.KeyIds([*ids][: SHARD + 1]), own if rank == 0 else ["x"]
    with pytest.raises(ValueError, match="a sample of each rank's shards, got 40 on rank 0, 0 on"):
        epoch_steps(emp.EpochMask(state), few, own, 10)
    return found


def test_ranks_agree_on_an_epochs_length(shards):
    found = on_ranks(2, ranks_read, shards)
    for epoch, want in enumerate(drawn()[:2]):
        (steps, first, mask), (other, second, same) = found[0][epoch], found[1][epoch]
        assert steps == other == len(first) == len(second)
        assert mask == same == want
        counts = [sum(i // SHARD % 2 == rank for i in want) for rank in range(2)]
        assert counts[0] != counts[1]
        assert steps == -(-max(counts) // 10)
        assert {i for batch in first + second for i in batch} == set(want)


# ---- Hugging Face datasets


def hf_stream():
    datasets = pytest.importorskip("datasets")
    rows = {
        "id": list(range(N)),
        "key": [f"row {i}" for i in range(N)],
        "x": [3 * i for i in range(N)],
    }
    return datasets.Dataset.from_dict(rows).to_iterable_dataset(num_shards=6)


def hf_batch(batch, state, epoch):
    indices = torch.as_tensor(batch["id"])
    assert torch.equal(torch.as_tensor(batch["x"]), 3 * indices)
    state.update(indices, score_of(indices, epoch))
    return indices.tolist()


@pytest.mark.parametrize("by_key", [False, True])
def test_hugging_face_workers_read_what_each_epoch_keeps(by_key):
    state = emp.EMPState(N)
    mask = emp.EpochMask(state, KEEP)
    ids = emp.KeyIds(f"row {i}" for i in range(N)) if by_key else None
    stream = (
        hf_stream().filter(Kept(mask, "key" if by_key else "id", ids)).shuffle(0, buffer_size=50)
    )
    loader = DataLoader(stream, batch_size=10, num_workers=2, persistent_workers=True)
    orders = []
    for epoch, want in enumerate(drawn()):
        mask.set_epoch(epoch)
        stream.set_epoch(epoch)
        seen = [i for batch in loader for i in hf_batch(batch, state, epoch)]
        assert sorted(seen) == want
        orders.append(seen)
    assert orders[2] != orders[3]


@pytest.mark.parametrize("stop", [7, 30 + 4, 30 + 9 + 5])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_hugging_face_resume_in_mid_epoch(workers, stop):
    loaders = pytest.importorskip("torchdata.stateful_dataloader")

    def life(saved, stop):
        state = emp.EMPState(N)
        mask = emp.EpochMask(state, KEEP)
        stream = hf_stream().filter(Kept(mask, "id"))
        if workers == 0:  # datasets 5.2 cannot load a shuffled stream's state in its workers
            stream = stream.shuffle(0, buffer_size=1)
        loader = loaders.StatefulDataLoader(
            stream, batch_size=10, num_workers=workers, persistent_workers=workers > 0
        )
        first = step = 0
        if saved is not None:
            state.load_state_dict(saved["state"])
            mask.load_state_dict(saved["mask"])
            loader.load_state_dict(saved["loader"])
            first, step = saved["epoch"], saved["step"]
        seen = []
        for epoch in range(first, EPOCHS):
            mask.set_epoch(epoch)
            stream.set_epoch(epoch)
            for batch in loader:
                seen.append((epoch, hf_batch(batch, state, epoch)))
                step += 1
                if step == stop:
                    parts = {"state": state, "mask": mask, "loader": loader}
                    saved = {name: part.state_dict() for name, part in parts.items()}
                    return seen, saved | {"epoch": epoch, "step": step}
        return seen, state.state_dict()

    undisturbed, final = life(None, None)
    before, saved = life(None, stop)
    after, resumed = life(saved, None)
    assert before + after == undisturbed
    for name in ("score", "updates", "selections", "seen_at"):
        assert torch.equal(resumed[name], final[name]), name


def test_a_map_style_data_set_goes_in_as_it_is():
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"x": [3 * i for i in range(N)]}).with_format("torch")
    state = emp.EMPState(N)
    loader = DataLoader(
        emp.IndexedDataset(rows), batch_size=10, sampler=emp.EMPSampler(state, KEEP)
    )
    for epoch, want in enumerate(drawn()):
        seen = [i for i, x in loader for i in hf_batch({"id": i, "x": x["x"]}, state, epoch)]
        assert sorted(seen) == want
