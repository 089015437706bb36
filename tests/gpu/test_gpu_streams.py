"""Calls that run at the same time: on two streams, beside a graph's replay, and on two devices."""

import pytest
import torch

import emp_kernels as emp

N = 300


def batch(classes, seed):
    generator = torch.Generator(device="cuda").manual_seed(seed)
    logits = torch.randn(N, classes, device="cuda", generator=generator)
    return logits, torch.randint(classes, (N,), device="cuda", generator=generator)


def assert_same(got, want):
    assert torch.equal(got.indices, want.indices)
    assert torch.equal(got.threshold, want.threshold)
    assert torch.equal(got.num_invalid, want.num_invalid)
    assert all(map(torch.equal, got.scores, want.scores))


@pytest.mark.parametrize("classes", [1000, 50257])
def test_two_streams_at_once(classes):
    """Neither counts the other's rows: programs of one call alone wait for its last."""
    batches = [batch(classes, seed) for seed in range(2)]
    batches[1][0][5] = torch.nan
    want = [emp.score_and_select(*each, None, 0.3) for each in batches]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    for _ in range(100):
        got = []
        for stream, each in zip(streams, batches, strict=True):
            with torch.cuda.stream(stream):
                got.append(emp.score_and_select(*each, None, 0.3))
        torch.cuda.synchronize()
        for found, wanted in zip(got, want, strict=True):
            assert_same(found, wanted)


@pytest.mark.parametrize("classes", [1000, 50257])
def test_a_replay_beside_another_call(classes):
    batches = [batch(classes, seed) for seed in range(2)]
    want = [emp.score_and_select(*each, None, 0.3) for each in batches]
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = emp.score_and_select(*batches[0], None, 0.3)
    for _ in range(100):
        with torch.cuda.stream(side):
            graph.replay()
        beside = emp.score_and_select(*batches[1], None, 0.3)
        torch.cuda.synchronize()
        assert_same(captured, want[0])
        assert_same(beside, want[1])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_second_device():
    """The tensors' device is the one that is launched on, whichever is current."""
    logits, labels = batch(1000, 0)
    want = emp.score_and_select(logits, labels, None, 0.3)
    with torch.cuda.device(0):
        got = emp.score_and_select(logits.to("cuda:1"), labels.to("cuda:1"), None, 0.3)
    assert got.indices.device.index == 1
    assert torch.equal(got.indices.cpu(), want.indices.cpu())
