"""Pruned StreamingDatasets, with real shards and workers: which samples and shards are read."""

import shutil
from itertools import pairwise

import pytest
import torch

import emp_kernels as emp

streaming = pytest.importorskip("streaming", exc_type=ImportError)
from emp_kernels.integrations.mosaicml import PrunedStreamingDataset  # noqa: E402

N, SIZE = 1000, 600
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mds")
    with streaming.MDSWriter(out=str(folder), columns={"x": "int"}, size_limit=SIZE) as writer:
        for i in range(N):
            writer.write({"x": 3 * i})
    return folder


@pytest.fixture
def made():
    """Makes data sets and takes down what they share between processes."""
    streaming.base.util.clean_stale_shared_memory()
    yield PrunedStreamingDataset
    streaming.base.util.clean_stale_shared_memory()


def options(folder, **more):
    own = {"local": str(folder), "shuffle": True, "batch_size": 10, "shuffle_seed": 1}
    return own | {"num_canonical_nodes": 1} | more


def loader_of(dataset, workers=2):
    return streaming.StreamingDataLoader(
        dataset, batch_size=10, num_workers=workers, persistent_workers=workers > 0
    )


def trained(batch, state):
    """Score a batch by its ids; return them."""
    ids, sample = batch
    assert torch.equal(sample["x"], 3 * ids)
    score = ((ids * 7919) % 1013).float() / 10 + state.epoch
    state.update(ids, emp.Scores(score, score, score, score))
    return ids.tolist()


@pytest.mark.parametrize("algorithm", ["naive", "py1br", "py1e", "py1s", "py2s", "none"])
def test_persistent_workers_read_what_each_epoch_keeps(algorithm, shards, made):
    shuffle = {"shuffle": False} if algorithm == "none" else {"shuffle_algo": algorithm}
    dataset = made(**options(shards, **shuffle))
    state, want = emp.EMPState(N), emp.EMPState(N)
    mask, sampler = emp.EpochMask(state, 0.3), emp.EMPSampler(want, 0.3)
    dataset.prune(mask)
    loader = loader_of(dataset)
    orders = []
    for epoch in range(4):
        mask.set_epoch(epoch)
        chosen = sorted(sampler)
        assert len(dataset) == len(chosen)
        assert len(loader) == -(-len(chosen) // 10)
        orders.append([i for batch in loader for i in trained(batch, state)])
        assert sorted(orders[-1]) == chosen == dataset.kept().tolist()
        ids = torch.tensor(chosen)
        score = ((ids * 7919) % 1013).float() / 10 + want.epoch - 1
        want.update(ids, emp.Scores(score, score, score, score))
        assert torch.equal(state.selections, want.selections)
    assert [len(order) for order in orders] == [1000, 300, 300, 300]
    if algorithm != "none":
        assert orders[2] != orders[3]  # the library's own shuffling goes on


def test_a_shard_without_a_kept_sample_is_not_fetched(shards, made, tmp_path):
    dataset = made(**options(tmp_path / "local", remote=str(shards)))
    state = emp.EMPState(N)
    score = (torch.arange(N) < 40).float() + 1  # the first shards are hard
    state.update(torch.arange(N), emp.Scores(score, score, score, score))
    mask = emp.EpochMask(state, 40, warmup_epochs=0)
    dataset.prune(mask)
    mask.set_epoch(0)
    seen = [i for batch in loader_of(dataset, 1) for i in batch[0].tolist()]
    assert sorted(seen) == list(range(40))
    first = int((torch.from_numpy(dataset.sample_offset_per_shard) < 40).sum())
    fetched = sorted(path.name for path in (tmp_path / "local").glob("shard.*"))
    assert len(fetched) == first < dataset.num_shards // 4


def test_whole_shards(shards, made, tmp_path):
    dataset = made(**options(tmp_path / "local", remote=str(shards)))
    state, of_shards = emp.EMPState(N), emp.EMPState(dataset.num_shards)
    mask = emp.EpochMask(of_shards, 0.25)
    dataset.prune(mask, unit="shard")
    loader = loader_of(dataset, 1)
    mask.set_epoch(0)
    seen = [i for batch in loader for i in trained(batch, state)]
    assert sorted(seen) == list(range(N))
    scores = dataset.shard_scores(state)
    starts = [*dataset.sample_offset_per_shard.tolist(), N]
    for shard, (begin, end) in enumerate(pairwise(starts)):
        mean = state.score[begin:end].double().mean()
        assert float(scores.score[shard]) == pytest.approx(float(mean), rel=1e-6)
    of_shards.update(torch.arange(dataset.num_shards), scores)
    mask.set_epoch(1)
    best = of_shards.select(0.25).tolist()
    want = [i for shard in best for i in range(starts[shard], starts[shard + 1])]
    seen = [i for batch in loader for i in trained(batch, state)]
    assert sorted(seen) == want == dataset.kept().tolist()
    assert len(dataset) == len(want)
    shutil.rmtree(tmp_path / "local")


def test_shards_without_a_seen_sample_have_no_score(shards, made):
    dataset = made(**options(shards))
    state, of_shards = emp.EMPState(N), emp.EMPState(dataset.num_shards)
    state.update(torch.tensor([0, 1]), emp.Scores(*torch.ones(4, 2)))
    of_shards.update(torch.arange(dataset.num_shards), dataset.shard_scores(state))
    assert of_shards.score[0] == 1
    assert (of_shards.score[1:] == torch.inf).all()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_resume_in_mid_epoch_reads_exactly_the_rest(epoch, workers, shards, made, tmp_path):
    def life(saved, stop):
        dataset = made(**options(shards))
        state = emp.EMPState(N)
        mask = emp.EpochMask(state, 0.3)
        dataset.prune(mask)
        loader = loader_of(dataset, workers)
        first, seen, step = 0, [], 0
        if saved is not None:
            state.load_state_dict(saved["state"])
            loader.load_state_dict(saved["loader"])
            first, step = saved["epoch"], saved["step"]
        for number in range(first, 4):
            mask.set_epoch(number)
            for batch in loader:
                seen.append((number, trained(batch, state)))
                step += 1
                if step == stop:
                    parts = {"state": state.state_dict(), "loader": loader.state_dict()}
                    return seen, parts | {"epoch": number, "step": step}
        return seen, state.state_dict()

    undisturbed, final = life(None, None)
    streaming.base.util.clean_stale_shared_memory()
    stop = 37 if epoch == 0 else 100 + 30 + 11
    before, saved = life(None, stop)
    streaming.base.util.clean_stale_shared_memory()
    torch.save(saved, tmp_path / "checkpoint.pt")
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert saved["epoch"] == epoch
    after, resumed = life(saved, None)
    assert before == undisturbed[:stop]
    assert after == undisturbed[stop:]
    for name in ("score", "updates", "selections"):
        assert torch.equal(resumed[name], final[name]), name


def test_errors(shards, made):
    dataset = made(**options(shards))
    with pytest.raises(TypeError, match="prune: mask must be an EpochMask of this process, got"):
        dataset.prune(torch.ones(N))
    with pytest.raises(ValueError, match="a state of the 1000 samples, got one of 7"):
        dataset.prune(emp.EpochMask(emp.EMPState(7)))
    with pytest.raises(ValueError, match="shards, got one of 1000"):
        dataset.prune(emp.EpochMask(emp.EMPState(N)), unit="shard")
    with pytest.raises(ValueError, match="unit must be sample or shard, got 'row'"):
        dataset.prune(emp.EpochMask(emp.EMPState(N)), unit="row")
    plain = dataset.state_dict(0, True)
    dataset.prune(emp.EpochMask(emp.EMPState(N)))
    with pytest.raises(ValueError, match="got no mask for a data set with one"):
        dataset.load_state_dict(plain)
    for more, message in (
        ({"batching_method": "stratified"}, "batching_method must be 'random', got 'stratified'"),
        ({"epoch_size": 500}, "an epoch must have all 1000 samples .* got 500"),
    ):
        streaming.base.util.clean_stale_shared_memory()
        other = made(**options(shards, **more))
        with pytest.raises(ValueError, match=message):
            other.prune(emp.EpochMask(emp.EMPState(N)))
