"""Losses of sharded vocabularies on gloo processes: communication, errors, DTensors, and agreeing
states."""

import functools

import oracle
import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from test_vocab_parallel import cuts_of
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn import functional as F

import emp_kernels as emp
from emp_kernels.distributed import score_vocab_parallel

OPTIONS = {"label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 8.0}


def batch():
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(4, 6, 8, generator=generator)
    weight, bias = torch.randn(50, 8, generator=generator), torch.randn(50, generator=generator)
    labels = torch.randint(50, (4, 6), generator=generator)
    labels[1, 2:] = -100
    class_weight = torch.rand(50, generator=generator) + 0.5
    temperature = torch.rand(4, 6, generator=generator) + 0.5
    return hidden, weight, bias, labels, class_weight, temperature


class Sent:
    """Counts what this process sends to others."""

    def __enter__(self):
        self.names, self.real = [], (dist.all_gather, dist.all_reduce)
        for name, real in zip(("all_gather", "all_reduce"), self.real, strict=True):
            setattr(dist, name, functools.partial(self.call, name, real))
        return self.names

    def call(self, name, real, *arguments, **options):
        self.names.append(name)
        return real(*arguments, **options)

    def __exit__(self, *_):
        dist.all_gather, dist.all_reduce = self.real


def of_logits(rank, world):
    """Loss, gradient and state of a batch of sequences with every option; log-probabilities."""
    hidden, weight, bias, labels, class_weight, temperature = batch()
    logits = F.linear(hidden, weight, bias)
    start, stop = cuts_of(50, world)[rank]
    shard = {"group": dist.group.WORLD, "vocab_start": start, "ignore_index": -100}
    adjusted = {"temperature": temperature, "softcap": 8.0}
    leaf, whole = logits[..., start:stop].clone().requires_grad_(), logits.clone().requires_grad_()
    state, want_state = emp.EMPState(24), emp.EMPState(24)
    options = {**OPTIONS, "temperature": temperature}
    with Sent() as sent:
        loss = emp.cross_entropy(
            leaf, labels, state, weight=class_weight[start:stop], **options, **shard
        )
        loss.backward()
        assert sent == ["all_gather"]
    want = emp.cross_entropy(
        whole, labels, want_state, weight=class_weight, ignore_index=-100, **options
    )
    want.backward()
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(leaf.grad, whole.grad[..., start:stop])
    torch.testing.assert_close(state.score, want_state.score)
    assert torch.equal(state.updates, want_state.updates)

    with Sent() as sent:
        found = emp.log_prob_and_entropy(leaf, labels, **adjusted, **shard)
        mine = torch.autograd.grad(sum(x.sum() for x in found), leaf)[0]
        assert sent == ["all_gather"]
    truth = emp.log_prob_and_entropy(whole, labels, ignore_index=-100, **adjusted)
    theirs = torch.autograd.grad(sum(x.sum() for x in truth), whole)[0]
    torch.testing.assert_close(tuple(found), tuple(truth))
    torch.testing.assert_close(mine, theirs[..., start:stop])

    scores = score_vocab_parallel(leaf, labels, check=True, **adjusted, **shard)
    want_scores = emp.score(logits, labels, ignore_index=-100, **adjusted)
    torch.testing.assert_close(tuple(scores), tuple(want_scores))
    state_of_it = state.score, state.loss, state.entropy, state.updates
    return oracle.fingerprint(loss, *found, *scores, *state_of_it)[0]


def of_products(rank, world):
    """A product with vocabulary rows as tensors, then as DTensors."""
    hidden, weight, bias, labels, class_weight, temperature = batch()
    start, stop = cuts_of(50, world)[rank]
    mesh = init_device_mesh("cpu", (world,))
    sharded = [Shard(0)]
    options = {**OPTIONS, "temperature": temperature, "ignore_index": -100}
    truth = [x.clone().requires_grad_() for x in (hidden, weight, bias)]
    want = emp.linear_cross_entropy(
        *truth[:2], labels, bias=truth[2], class_weight=class_weight, **options
    )
    want.backward()
    given = {"group": dist.group.WORLD, "vocab_start": start}
    mine = (hidden, weight[start:stop], bias[start:stop], class_weight[start:stop])
    spread = [distribute_tensor(x, mesh, sharded) for x in (weight, bias, class_weight)]
    replicated = distribute_tensor(hidden, mesh, [Replicate()])
    results = []
    for (x, w, b, by_class), place in (
        (mine, given), ((hidden, *spread), {}), ((replicated, *spread), {}),
        ((hidden, *spread), {"group": mesh.get_group()}),
    ):  # fmt: skip
        ours = [y.detach().clone().requires_grad_() for y in (x, w, b)]
        with Sent() as sent:
            loss = emp.linear_cross_entropy(
                *ours[:2], labels, bias=ours[2], class_weight=by_class, **options, **place
            )
            assert sent == ["all_gather"]
            loss.backward()
            assert sent == ["all_gather", "all_reduce"]
        torch.testing.assert_close(loss, want)
        for i, (got, exact) in enumerate(zip(ours, truth, strict=True)):
            expected = exact.grad
            assert type(got.grad) is type(got)
            if i and not isinstance(got, DTensor):
                expected = expected[start:stop]
            found = got.grad.full_tensor() if isinstance(got, DTensor) else got.grad
            torch.testing.assert_close(found, expected)
        adjusted = {"temperature": temperature, "softcap": 8.0, "ignore_index": -100}
        scores = emp.score_linear(x, w, labels, bias=b, **adjusted, **place)
        torch.testing.assert_close(
            tuple(scores), tuple(emp.score_linear(hidden, weight, labels, bias=bias, **adjusted))
        )
        found = emp.linear_log_prob_and_entropy(x, w, labels, bias=b, **adjusted, **place)
        assert torch.equal(found.entropy, scores.entropy)
        by_hidden = ours[0].grad
        if isinstance(by_hidden, DTensor):
            by_hidden = by_hidden.to_local()
        results += oracle.fingerprint(loss, by_hidden, *scores)[0]
    return results


def refused(rank, world):
    """Wrong labels and columns: an error on all ranks, before anything is written."""
    logits, labels = torch.randn(5, 4), torch.arange(5)
    hidden, weight = torch.randn(5, 3), torch.randn(4, 3)
    shard = {"vocab_start": 4 * rank, "group": dist.group.WORLD}
    state = emp.EMPState(5)
    before = oracle.state_fingerprint(state)
    bad = labels + 4 * world
    calls = {
        "cross_entropy": lambda y, **at: emp.cross_entropy(logits, y, state, z_loss=0.1, **at),
        "log_prob_and_entropy": lambda y, **at: emp.log_prob_and_entropy(logits, y, **at),
        "linear_cross_entropy": lambda y, **at: emp.linear_cross_entropy(hidden, weight, y, **at),
        "linear_log_prob_and_entropy": lambda y, **at: emp.linear_log_prob_and_entropy(
            hidden, weight, y, **at
        ),
        "score_linear": lambda y, **at: emp.score_linear(hidden, weight, y, **at),
        "distributed.score_vocab_parallel": lambda y, **at: score_vocab_parallel(
            logits, y, temperature=2.0, **at
        ),
    }
    for name, call in calls.items():
        with pytest.raises(
            ValueError, match=rf"^{name}: labels must be in \[0, {4 * world}\), got"
        ):
            call(bad, **shard)
        with pytest.raises(ValueError, match=f"^{name}: vocab_start must make the ranks' columns"):
            call(labels, **shard | {"vocab_start": 5 * rank + 1})
        with pytest.raises(ValueError, match=f"^{name}: vocab_start must say which column"):
            call(labels, group=dist.group.WORLD)
    assert oracle.state_fingerprint(state) == before
    mesh = init_device_mesh("cpu", (world,))
    whole = torch.randn(8, 3)
    rows = distribute_tensor(torch.randn(8, 4), mesh, [Shard(1)])
    for tensor, message in (
        (distribute_tensor(torch.randn(8, 3 * world), mesh, [Shard(1)]), "weight, a DTensor, must"),
        (distribute_tensor(whole, mesh, [Replicate()]), "weight, a DTensor, must be sharded once"),
    ):
        with pytest.raises(ValueError, match=f"^score_linear: {message}"):
            emp.score_linear(hidden, tensor, labels)
    spread = distribute_tensor(whole, mesh, [Shard(0)])
    with pytest.raises(ValueError, match="hidden, a DTensor, must be alike on all ranks"):
        emp.score_linear(rows, spread, labels)
    replicated = distribute_tensor(torch.randn(8), mesh, [Replicate()])
    with pytest.raises(ValueError, match="bias, a DTensor, must be sharded"):
        emp.score_linear(hidden, spread, labels, bias=replicated)
    with pytest.raises(ValueError, match="vocab_start and group must be None for a DTensor"):
        emp.score_linear(hidden, spread, labels, vocab_start=99)
    with pytest.raises(ValueError, match=r"weight must have shape \(C,\) = \(4,\), got \(8,\)"):
        emp.cross_entropy(logits, labels, weight=torch.ones(8), **shard)
    messages = []
    for different in (
        {"temperature": 0.5 if rank else 2.0}, {"softcap": 3.0 if rank else None},
        {"temperature": torch.rand(5) + rank + 0.5},
    ):  # fmt: skip
        if world > 1:
            with pytest.raises(ValueError, match="must be the same on all ranks, got") as caught:
                score_vocab_parallel(logits, labels, check=True, **shard, **different)
            messages.append(str(caught.value))
    return messages


def everything(rank, world):
    return [step(rank, world) for step in (of_logits, of_products, refused)]


@functools.cache
def launched(world):
    return on_ranks(world, everything)


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("step", [0, 1, 2], ids=["logits", "products", "refused"])
def test_processes_agree(world, step):
    found = [results[step] for results in launched(world)]
    assert all(result == found[0] for result in found)
    if step == 2 and world > 1:
        assert "temperature must be the same on all ranks, got 2.0 on rank 0, 0.5 on" in found[0][0]
        assert "softcap must be the same on all ranks, got None on rank 0, 3.0 on" in found[0][1]
        assert "got one of each row of checksum" in found[0][2]


def test_a_graph_break():
    """Under torch.compile sharded calls run uncompiled."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        logits, labels = torch.randn(6, 5), torch.arange(6) % 5
        for of_shard in ({"vocab_start": 0}, {"group": dist.group.WORLD, "vocab_start": 0}):

            @torch.compile(backend="eager")
            def train(z, of_shard=of_shard):
                found = emp.log_prob_and_entropy(2 * z, labels, softcap=4.0, **of_shard)
                loss = emp.cross_entropy(2 * z, labels, softcap=4.0, z_loss=0.1, **of_shard)
                return found.entropy.sum() + loss

            leaf, whole = logits.clone().requires_grad_(), logits.clone().requires_grad_()
            train(leaf).backward()
            found = emp.log_prob_and_entropy(2 * whole, labels, softcap=4.0)
            loss = emp.cross_entropy(2 * whole, labels, softcap=4.0, z_loss=0.1)
            (found.entropy.sum() + loss).backward()
            torch.testing.assert_close(leaf.grad, whole.grad)
    finally:
        dist.destroy_process_group()
