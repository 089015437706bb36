"""Selection, state updates and gather on CUDA: exact, without synchronisation, on any stream."""

import oracle
import pytest
import torch
from test_gpu_scoring import nobody_waiting
from test_triton_selection import KINDS, scores_of

import emp_kernels as emp
from emp_kernels import backends

FIELDS = ("score", "loss", "entropy", "updates", "selections", "seen_at", "clock")


def available(name: str) -> bool:
    try:
        backends.load(name)
    except backends.Unavailable:
        return False
    return True


@pytest.fixture(params=["triton", "cuda"])
def backend(request):
    if not available(request.param):
        pytest.skip(f"backend {request.param} is not available")
    return request.param


@pytest.mark.parametrize("kind", [*KINDS, "misleading"])
@pytest.mark.parametrize("n", [1, 255, 2048, 2049, 8192, 8193, 40_000, 3_000_001])
def test_select(n, kind, backend):
    scores = scores_of(kind, n)
    for count in {1, max(1, n // 3), n}:
        got = emp.select(scores.cuda(), count, backend=backend)
        assert torch.equal(got.cpu(), oracle.select(scores, count)), count


def test_select_many(backend):
    """1e8 scores: the threshold and the counts around it are right."""
    scores = torch.randn(10**8, device="cuda")
    scores[::1000] = 0.5244
    count = 30_000_000
    got = emp.select(scores, count, backend=backend)
    assert len(got) == count
    assert (got.diff() > 0).all()
    kept = torch.zeros(len(scores), dtype=torch.bool, device="cuda")
    kept[got] = True
    threshold = scores[got].min()
    assert scores[~kept].max() <= threshold
    ties = (scores == threshold).nonzero()[:, 0]
    taken = kept[ties]
    assert taken[: int(taken.sum())].all()  # ties go to the lowest positions


@pytest.mark.parametrize("n", [200, 2048, 5000, 10_000])
@pytest.mark.parametrize("ids", ["none", "distinct", "duplicate"])
def test_main_call_as_the_reference(n, ids):
    logits = torch.randn(n, 50, device="cuda")
    logits[3], logits[4, 2], logits[5] = torch.nan, torch.inf, -torch.inf
    labels = torch.randint(50, (n,), device="cuda")
    labels[6], size = 50, n if ids == "none" else 2 * n
    indices = {
        "none": None,
        "distinct": torch.randperm(size, device="cuda")[:n],
        "duplicate": torch.randint(n // 3, (n,), device="cuda"),
    }[ids]
    if indices is not None:
        indices[7] = size
    states = [emp.EMPState(size, device="cuda") for _ in range(2)]
    for keep, ignore_index in ((0.3, None), (1.0, None), (0.5, 4)):
        got, want = (
            emp.score_and_select(
                logits, labels, state, keep, indices=indices, ignore_index=ignore_index,
                backend=name,
            )
            for state, name in zip(states, ("triton", "reference"), strict=True)
        )  # fmt: skip
        assert torch.equal(got.indices, want.indices)
        assert got.num_invalid == want.num_invalid
        torch.testing.assert_close(got.threshold, want.threshold)
        torch.testing.assert_close(got.scores, want.scores, equal_nan=True, rtol=1e-5, atol=1e-6)
    for name in FIELDS:
        left, right = getattr(states[0], name), getattr(states[1], name)
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n", [256, 5000, 10_000])
def test_graph_and_streams(n):
    """No call synchronises; a graph replays on new data; other streams and runs agree."""
    logits = torch.randn(n, 1000, device="cuda")
    labels = torch.randint(1000, (n,), device="cuda")
    ids = torch.randperm(n, device="cuda")
    state, replayed = (emp.EMPState(n, device="cuda") for _ in range(2))
    emp.score_and_select(logits, labels, emp.EMPState(n, device="cuda"), 0.3, indices=ids)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with nobody_waiting(), torch.cuda.stream(side):
        want = emp.score_and_select(logits, labels, state, 0.3, indices=ids)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = emp.score_and_select(logits, labels, replayed, 0.3, indices=ids)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(got.indices, want.indices)
    assert replayed.clock == 3
    assert (replayed.updates == 3).all()
    logits.neg_()
    graph.replay()
    fresh = emp.score_and_select(logits, labels, state, 0.3, indices=ids)
    assert torch.equal(got.indices, fresh.indices)
    assert torch.equal(got.scores.score, fresh.scores.score)


def test_update():
    state = emp.EMPState(1000, device="cuda")
    ids = torch.randint(-5, 1005, (5000,), device="cuda")
    fields = torch.rand(4, 5000, device="cuda")
    fields[0, ::7], fields[1, ::9] = torch.nan, torch.inf
    state.update(ids, emp.Scores(*fields))
    model = oracle.StateModel(1000)
    valid = (fields[:3].isfinite().all(0) & (ids >= 0) & (ids < 1000)).cpu().numpy()
    model.update(ids.tolist(), emp.Scores(*fields), valid)
    model.assert_equal(state)


@pytest.mark.skipif(not available("cuda"), reason="emp_kernels._cuda is not built")
def test_gather():
    generator = torch.Generator(device="cuda").manual_seed(0)
    batch = {
        "bytes": torch.randint(256, (1000, 3), device="cuda", generator=generator).to(torch.uint8),
        "wide": torch.randn(1000, 4, 129, device="cuda", generator=generator),
        "half": torch.randn(1000, 64, device="cuda", generator=generator).bfloat16(),
        "strided": torch.randn(1000, 80, device="cuda", generator=generator)[:, 5:69],
        "offset": torch.randn(1001, device="cuda", generator=generator)[1:],
        "many": [torch.randn(1000, i + 1, device="cuda") for i in range(60)],
        "empty": torch.randn(1000, 0, device="cuda"),
    }
    for indices in (
        torch.randint(1000, (777,), device="cuda", generator=generator),
        torch.arange(300, device="cuda", dtype=torch.int32),
        torch.empty(0, dtype=torch.int64, device="cuda"),
    ):
        got = emp.gather(batch, indices)
        for name, source in batch.items():
            pairs = zip(got[name], source, strict=True) if name == "many" else [(got[name], source)]
            for left, right in pairs:
                assert torch.equal(left, right.index_select(0, indices)), name
    wild = torch.tensor([3, -1, 1000, 1 << 40], device="cuda")
    rows = emp.gather(batch["wide"], wild)
    assert torch.equal(rows[0], batch["wide"][3])
    assert (rows[1:] == 0).all()
    out = torch.empty(5, 64, dtype=torch.bfloat16, device="cuda")
    assert emp.gather(batch["half"], torch.arange(5, device="cuda"), out=out) is out
    assert torch.equal(out, batch["half"][:5])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
def test_another_device():
    logits = torch.randn(300, 100, device="cuda:1")
    labels = torch.randint(100, (300,), device="cuda:1")
    state = emp.EMPState(300, device="cuda:1")
    with torch.cuda.device(0):
        got = emp.score_and_select(logits, labels, state, 0.3)
        kept = emp.gather(logits, got.indices)
    want = emp.score_and_select(logits.cpu(), labels.cpu(), None, 0.3, backend="reference")
    assert torch.equal(got.indices.cpu(), want.indices)
    assert torch.equal(kept, logits[got.indices])
