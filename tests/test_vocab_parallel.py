"""Rows with sharded columns: scores, losses and gradients equal those of whole rows.

Mostly on threads, for every backend and family of rows; then on gloo processes, as in actual use.
"""

import functools
import itertools
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import hard_rows
import oracle
import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from test_loss import assert_gradient
from test_scoring import LABEL_DTYPES, assert_scores, hard_batch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.nn import functional as F

import emp_kernels as emp
from emp_kernels.distributed import columns, score_vocab_parallel, term_shards

INF = float("inf")


def cuts_of(classes, world, seed=0):
    """[(start, stop)] of the ranks: uneven, some empty, not in the order of the ranks."""
    generator = torch.Generator().manual_seed(classes * 31 + world * 7 + seed)
    inner = torch.randint(classes + 1, (world - 1,), generator=generator).sort().values.tolist()
    shards = list(itertools.pairwise([0, *inner, classes]))
    return [shards[i] for i in torch.randperm(world, generator=generator)]


# ---- threads


@pytest.fixture
def on_threads(monkeypatch):
    """Runs `target(rank, world)` on threads that act as ranks. They alternate, as Triton's
    interpreter requires."""
    own, turn = threading.local(), threading.Lock()

    def wait(barrier):
        turn.release()
        try:
            barrier.wait(60)
        finally:
            turn.acquire()

    def gather(function, tensor, group):
        sent, barrier = own.group
        sent[own.rank] = tensor.clone()
        wait(barrier)
        parts = list(sent)
        wait(barrier)
        return parts

    def add(function, tensor, group):
        return torch.stack(gather(function, tensor, group)).sum(0)

    def place(function, group):
        sent, _ = own.group
        return len(sent), own.rank

    monkeypatch.setattr(columns, "gather_equal", gather)
    monkeypatch.setattr(columns, "check_group", place)
    monkeypatch.setattr(term_shards, "sum_equal", add)

    def run(world, target):
        shared = [None] * world, threading.Barrier(world)

        def one(rank):
            own.rank, own.group = rank, shared
            with turn:
                return target(rank, world)

        with ThreadPoolExecutor(world) as pool:
            return list(pool.map(one, range(world)))

    return run


def shard(logits, rank, world, seed=0):
    """(columns, first column) of `rank`, as a view."""
    start, stop = cuts_of(logits.shape[-1], world, seed)[rank]
    return logits[..., start:stop], start


def same_on_all_ranks(results):
    for other in results[1:]:
        for mine, theirs in zip(results[0], other, strict=True):
            assert oracle.fingerprint(mine)[0][1] == oracle.fingerprint(theirs)[0][1]
    return results[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 7, 48, 49, 130, 1000, 3001])
def test_scores_of_hard_rows(classes, dtype, as_default, on_threads):
    logits, labels, names, truth = hard_batch(classes, dtype)
    for world in (1, 2, 5):

        def score(rank, world):
            local, start = shard(logits, rank, world)
            return score_vocab_parallel(local, labels, vocab_start=start, beta=0.7)

        got = same_on_all_ranks(on_threads(world, score))
        assert_scores(got, truth, 0.7, names)
        nan = logits.isnan().any(1)
        assert got.loss[nan].isnan().all()
        assert got.lse[nan].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_at_scale_1_within_8_ulp(dtype, as_default, on_threads):
    logits = torch.randn(64, 3000, generator=torch.Generator().manual_seed(3)).to(dtype)
    labels = torch.arange(64) * 40
    truth = oracle.statistics(logits, labels)

    def score(rank, world):
        local, start = shard(logits, rank, world)
        return score_vocab_parallel(local, labels, vocab_start=start)

    got = on_threads(4, score)[0]
    for field in ("loss", "entropy"):
        assert oracle.ulps(getattr(got, field), getattr(truth, field)).max() <= 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [1, 2, 7, 65, 257, 1000])
def test_gradients_of_hard_rows(classes, dtype, as_default, on_threads):
    logits, labels, names, truth = hard_batch(classes, dtype)
    logits, labels = logits[truth.valid], labels[truth.valid]
    names = [name for name, valid in zip(names, truth.valid, strict=True) if valid]
    upstream = torch.randn(len(labels), generator=torch.Generator().manual_seed(2))

    def train(rank, world):
        local, start = shard(logits, rank, world)
        leaf = local.detach().requires_grad_()
        loss = emp.cross_entropy(leaf, labels, vocab_start=start, reduction="none")
        return torch.autograd.grad(loss, leaf, upstream)[0], loss.detach(), start

    for world in (2, 3):
        parts = sorted(on_threads(world, train), key=lambda part: (part[2], part[0].shape[1]))
        for _, loss, _ in parts:
            assert oracle.relative_errors(loss, truth.loss[truth.valid]).max() <= 1e-5
        whole = torch.cat([gradient for gradient, _, _ in parts], 1)
        assert whole.dtype == dtype
        assert_gradient(whole, logits, labels, upstream, names)


def test_ignored_rows_and_labels_of_any_dtype(as_default, on_threads):
    """Ignored rows are not read; a start that is subtracted may wrap nothing into range."""
    logits, labels, names = hard_rows.batch(40, torch.float32, ["scale 1", "confident", "masked"])
    for dtype, ignored in itertools.product(LABEL_DTYPES, (None, 3, -1)):
        if ignored == -1 and not dtype.is_signed:
            continue
        mine = labels.clone()
        if ignored is not None:
            mine[::3] = ignored
        rows = logits.clone()
        rows[mine == ignored] = math.nan
        truth = oracle.statistics(rows, mine, ignored)

        def score(rank, world, rows=rows, y=mine, dtype=dtype, ignored=ignored):
            local, start = shard(rows, rank, world)
            y = y.to(dtype)
            return score_vocab_parallel(local, y, vocab_start=start, ignore_index=ignored)

        assert_scores(same_on_all_ranks(on_threads(3, score)), truth, names=names)


def test_a_label_that_looks_ignored_from_where_the_shard_starts(as_default, on_threads):
    logits, labels = torch.randn(40, 40), torch.arange(40)
    for ignored in (3, 0, 39, -20, 2**63 - 1, -(2**63)):
        truth = oracle.statistics(logits, labels, ignored)

        def score(rank, world, ignored=ignored):
            local, start = shard(logits, rank, world)
            return score_vocab_parallel(local, labels, vocab_start=start, ignore_index=ignored)

        assert_scores(on_threads(4, score)[0], truth)


def test_extreme_labels_are_out_of_range(as_default, on_threads):
    logits = torch.zeros(3, 8)
    for value, dtype in ((-1, torch.int64), (8, torch.int8), (-(2**63), torch.int64)):
        labels = torch.tensor([0, value, 1]).to(dtype)

        def score(rank, world, labels=labels, value=value):
            local, start = shard(logits, rank, world)
            state = emp.EMPState(3)
            before = oracle.state_fingerprint(state)
            message = rf"labels must be in \[0, 8\), got {value} in row 1"
            with pytest.raises(ValueError, match=f"distributed.score_vocab_parallel: {message}"):
                score_vocab_parallel(local, labels, vocab_start=start)
            with pytest.raises(ValueError, match=f"cross_entropy: {message}"):
                emp.cross_entropy(local, labels, state, vocab_start=start)
            return oracle.state_fingerprint(state) == before

        assert on_threads(2, score) == [True] * 2
    huge = torch.tensor([0, 2**63 + 5, 1], dtype=torch.uint64)

    def score_huge(rank, world):
        with pytest.raises(ValueError, match=f"got {2**63 - 1} in row 1"):
            score_vocab_parallel(logits[:, 4 * rank : 4 * rank + 4], huge, vocab_start=4 * rank)

    on_threads(2, score_huge)


def test_float64_is_answered_in_float64(on_threads):
    logits = torch.randn(9, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(9) * 3

    def score(rank, world):
        local, start = shard(logits, rank, world)
        return score_vocab_parallel(local, labels, vocab_start=start)

    got, want = on_threads(3, score)[1], emp.score(logits, labels)
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == torch.float64
        torch.testing.assert_close(mine, theirs, rtol=1e-14, atol=0)

    def check(rank, world):
        local, start = shard(logits, rank, world)

        def loss(z):
            return emp.cross_entropy(z, labels, vocab_start=start)

        leaf = local.detach().requires_grad_()
        loss(leaf).backward()
        return leaf.grad, start

    grads = sorted(on_threads(3, check), key=lambda part: (part[1], part[0].shape[1]))
    leaf = logits.clone().requires_grad_()
    F.cross_entropy(leaf, labels).backward()
    torch.testing.assert_close(torch.cat([g for g, _ in grads], 1), leaf.grad, rtol=1e-12, atol=0)


def test_rows_without_a_softmax_have_no_gradient(as_default, on_threads):
    """NaN on every shard, wherever the NaN or +inf is; and rows that are not trained keep it."""
    logits, labels = torch.randn(5, 12), torch.tensor([1, 5, 9, 11, 0])
    logits[0, 3], logits[1, 11], logits[2] = math.nan, INF, -INF

    def train(rank, world):
        leaf = logits[:, 4 * rank : 4 * rank + 4].clone().requires_grad_()
        loss = emp.cross_entropy(leaf, labels, vocab_start=4 * rank, reduction="none")
        grad = torch.autograd.grad(loss, leaf, torch.ones(5))[0]
        some = emp.cross_entropy(leaf, labels, vocab_start=4 * rank, rows=torch.tensor([3, 4]))
        return loss.detach(), grad, torch.autograd.grad(some, leaf)[0]

    for loss, grad, some in on_threads(3, train):
        assert loss[:3].isnan().all()
        assert loss[3:].isfinite().all()
        assert grad[:3].isnan().all()
        assert grad[3:].isfinite().all()
        assert not some[:3].any()
        assert some[3:].isfinite().all()
    labels[0] = 3  # the label's own logit is the NaN: in range all the same
    results = on_threads(
        3,
        lambda rank, world: score_vocab_parallel(
            logits[:, 4 * rank : 4 * rank + 4], labels, vocab_start=4 * rank
        ),
    )
    assert same_on_all_ranks(results).score.isnan().tolist() == [True] * 3 + [False] * 2


def test_a_selection_of_whole_rows_lends_its_losses(as_default, on_threads):
    logits = 3 * torch.randn(40, 30, generator=torch.Generator().manual_seed(5))
    labels = torch.arange(40) % 30
    whole = emp.score_and_select(logits, labels, None, 0.3)

    def train(rank, world):
        local, start = shard(logits, rank, world)
        leaf = local.detach().requires_grad_()
        emp.cross_entropy(leaf, labels, vocab_start=start, rows=whole).backward()
        return leaf.grad, start

    leaf = logits.clone().requires_grad_()
    F.cross_entropy(leaf[whole.indices], labels[whole.indices]).backward()
    grads = sorted(on_threads(3, train), key=lambda part: (part[1], part[0].shape[1]))
    torch.testing.assert_close(torch.cat([g for g, _ in grads], 1), leaf.grad)


# ---- processes


def scored(rank, world):
    """Hard rows over the group, twice: equal bits."""
    results = {}
    for classes, dtype in itertools.product((3, 65, 1000), (torch.float32, torch.bfloat16)):
        logits, labels, _ = hard_rows.batch(classes, dtype)
        local, start = shard(logits, rank, world)
        options = {"vocab_start": start, "group": dist.group.WORLD}
        first = score_vocab_parallel(local, labels, **options)
        again = score_vocab_parallel(local, labels, check=True, **options)
        assert oracle.fingerprint(*first) == oracle.fingerprint(*again)
        results[classes, dtype] = first
    return results


def trained(rank, world):
    """Loss, gradient and state of a batch of sequences, all reductions, some rows."""
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(4, 6, 50, generator=generator)
    labels = torch.randint(50, (4, 6), generator=generator)
    labels[1, 2:] = -100
    rows = torch.tensor([0, 3, 9, 23, 20])
    ids = torch.randperm(60, generator=generator)[:24]
    results = []
    for reduction, chosen in itertools.product(("mean", "sum", "none"), (None, rows)):
        local, start = shard(logits, rank, world)
        leaf = local.detach().requires_grad_()
        state = emp.EMPState(60)
        loss = emp.cross_entropy(
            leaf, labels, state, indices=ids, rows=chosen, ignore_index=-100, reduction=reduction,
            group=dist.group.WORLD, vocab_start=start,
        )  # fmt: skip
        loss.sum().backward()
        whole = logits.clone().requires_grad_()
        flat, target = whole.view(-1, 50), labels.view(-1)
        if chosen is not None:
            flat, target = flat[chosen], target[chosen]
        want = F.cross_entropy(flat, target, ignore_index=-100, reduction=reduction)
        want.sum().backward()
        torch.testing.assert_close(loss.flatten(), want.flatten())
        torch.testing.assert_close(leaf.grad, shard(whole.grad, rank, world)[0])
        scores = emp.score(logits.view(-1, 50), labels.view(-1), ignore_index=-100)
        expected = emp.EMPState(60)
        expected.update(ids, scores)
        torch.testing.assert_close(state.score, expected.score)
        assert torch.equal(state.updates, expected.updates)
        results.append(oracle.state_fingerprint(state)[0])
    return results


def of_dtensors(rank, world):
    """Columns are taken from torch's sharding; gradients are returned as DTensors."""
    mesh = init_device_mesh("cpu", (world,))
    grid = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("data", "tensor"))
    generator = torch.Generator().manual_seed(1)
    outcomes = []
    for classes in (13, 64, 5, 1):
        logits = torch.randn(6, classes, generator=generator)
        labels = torch.arange(6) % classes
        whole = logits.clone().requires_grad_()
        F.cross_entropy(whole, labels).backward()
        want = emp.score(logits, labels)
        for where, placements in (
            (mesh, [Shard(-1)]), (grid, [Replicate(), Shard(1)]), (grid, [Shard(0), Shard(1)]),
        ):  # fmt: skip
            sharded = distribute_tensor(logits.clone(), where, placements)
            y = labels
            if placements[0] == Shard(0):
                y = distribute_tensor(labels, where, [Shard(0), Replicate()])
            got = score_vocab_parallel(sharded, y, check=True)
            mine = labels.chunk(2)[where.get_local_rank(0)] if y is not labels else labels
            half = slice(3 * where.get_local_rank(0), None) if y is not labels else slice(None)
            for ours, theirs in zip(got, want, strict=True):
                torch.testing.assert_close(ours, theirs[half][: len(mine)])
            leaf = sharded.detach().requires_grad_()
            loss = emp.cross_entropy(leaf, y, reduction="sum")
            (loss / 6).backward()
            assert isinstance(leaf.grad, DTensor)
            torch.testing.assert_close(leaf.grad.full_tensor(), whole.grad)
            outcomes.append(loss.item())
    logits, labels = torch.randn(4, 8), torch.zeros(4, dtype=torch.int64)
    rows = distribute_tensor(logits, mesh, [Shard(0)])
    with pytest.raises(ValueError, match="a DTensor must be sharded once on its last dimension 1"):
        score_vocab_parallel(rows, labels)
    with pytest.raises(ValueError, match="vocab_start and group must be None for a DTensor"):
        score_vocab_parallel(distribute_tensor(logits, mesh, [Shard(1)]), labels, vocab_start=9)
    own = DTensor.from_local(
        torch.zeros(4, rank + 1), mesh, [Shard(1)], run_check=False,
        shape=torch.Size([4, world * (world + 1) // 2]), stride=(world * (world + 1) // 2, 1),
    )  # fmt: skip
    even = rank + 1 == min(-(-world * (world + 1) // 2 // world), world)
    if not even:
        with pytest.raises(ValueError, match="a DTensor must be sharded evenly"):
            score_vocab_parallel(own, labels)
    return outcomes


def refused(rank, world):
    """The errors of calls in which the ranks' arguments differ."""
    logits, labels = torch.randn(5, 4), torch.arange(5)
    last = rank == world - 1
    calls = {
        "rows": ((logits[: 4 if last else 5], labels[: 4 if last else 5]), {}),
        "dtype": ((logits.half() if last else logits, labels), {}),
        "labels": ((logits, labels + 1 if last else labels), {}),
        "beta": ((logits, labels), {"beta": 0.25 if last else 1.0}),
        "ignore_index": ((logits, labels), {"ignore_index": 2 if last else None}),
        "overlap": ((logits, labels), {"vocab_start": 0}),
        "gap": ((logits, labels), {"vocab_start": 4 * rank + 1}),
    }
    messages = {}
    for name, (arguments, options) in calls.items():
        options = {"vocab_start": 4 * rank, "group": None, "check": True} | options
        with pytest.raises(ValueError, match=r"distributed\.score_vocab_parallel: ") as caught:
            score_vocab_parallel(*arguments, **options)
        messages[name] = str(caught.value)
    with pytest.raises(ValueError, match="follow one another"):
        score_vocab_parallel(logits, labels, vocab_start=0, group=None)
    return messages


def everything(rank, world):
    return [step(rank, world) for step in (scored, trained, of_dtensors, refused)]


@functools.cache
def outcome(world, step):
    """What each rank returned of one step; all steps are one launch."""
    return [results[step] for results in launched(world)]


@functools.cache
def launched(world):
    return on_ranks(world, everything)


WORLDS = pytest.mark.parametrize("world", [2, 4])


@WORLDS
def test_processes_score_as_one(world):
    for key in outcome(world, 0)[0]:
        got = same_on_all_ranks([results[key] for results in outcome(world, 0)])
        logits, labels, names = hard_rows.batch(*key)
        assert_scores(got, oracle.statistics(logits, labels), names=names)


@WORLDS
def test_processes_train_as_one_and_their_states_agree(world):
    states = outcome(world, 1)
    assert len(states[0]) == 6
    assert all(state == states[0] for state in states)


@WORLDS
def test_dtensors(world):
    losses = outcome(world, 2)
    assert len(losses[0]) == 12


@WORLDS
def test_calls_that_differ_are_named_on_all_ranks(world):
    said = outcome(world, 3)
    assert all(messages == said[0] for messages in said)
    last = world - 1
    want = {
        "rows": f"the same number of rows on all ranks, got 5 on rank 0, 4 on rank {last}",
        "dtype": f"got torch.float32 on rank 0, torch.float16 on rank {last}",
        "labels": "labels must be the same on all ranks, got labels of checksum",
        "beta": f"beta must be the same on all ranks, got 1.0 on rank 0, 0.25 on rank {last}",
        "ignore_index": f"on all ranks, got None on rank 0, 2 on rank {last}",
        "overlap": "columns follow one another from 0 on, got [0, 4) on rank 0",
        "gap": "columns follow one another from 0 on, got [1, 5) on rank 0",
    }
    for name, text in want.items():
        assert text in said[0][name]


def test_without_a_process_group_or_a_place():
    logits, labels = torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(RuntimeError, match="a process group must be initialised"):
        score_vocab_parallel(logits, labels, vocab_start=0)
    with pytest.raises(RuntimeError, match="cross_entropy: a process group must be initialised"):
        emp.cross_entropy(logits, labels, vocab_start=0)


def alone(rank, world):
    """A group of one rank; and what is wrong before anything is sent."""
    logits, labels = torch.randn(2, 3), torch.tensor([0, 2])
    got = score_vocab_parallel(logits, labels, vocab_start=0)
    for ours, theirs in zip(got, emp.score(logits, labels), strict=True):
        torch.testing.assert_close(ours, theirs)
    for error, message, arguments, options in (
        (ValueError, "vocab_start must say which", (logits, labels), {"group": dist.group.WORLD}),
        (ValueError, "vocab_start must be at least 0", (logits, labels), {"vocab_start": -1}),
        (TypeError, "vocab_start must be an int", (logits, labels), {"vocab_start": 0.0}),
        (TypeError, "group must be a", (logits, labels), {"vocab_start": 0, "group": "tp"}),
        (TypeError, "local_logits must be", (logits.long(), labels), {"vocab_start": 0}),
        (ValueError, "labels must have", (logits, labels[:1]), {"vocab_start": 0}),
        (TypeError, "beta must be", (logits, labels), {"vocab_start": 0, "beta": "1"}),
    ):
        with pytest.raises(error, match=f"distributed.score_vocab_parallel: {message}"):
            score_vocab_parallel(*arguments, **options)
    none = score_vocab_parallel(logits[:0], labels[:0], vocab_start=0)
    return [len(field) for field in none]


def test_one_rank():
    assert on_ranks(1, alone) == [[0, 0, 0, 0]]
