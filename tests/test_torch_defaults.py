"""torch's default dtype and device do not affect the package, and everything works under
deterministic algorithms."""

from contextlib import contextmanager

import calls
import oracle
import pytest
import torch
from ranks import on_ranks

import emp_kernels as emp
from emp_kernels.distributed import score_vocab_parallel

DTYPES = [torch.float64, torch.bfloat16]


@contextmanager
def defaults(dtype, device="meta"):
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def assert_same(got, want):
    assert [x.dtype for x in got] == [x.dtype for x in want]
    assert [x.device.type for x in got] == ["cpu"] * len(got)
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_of_rows_and_of_no_rows(dtype, backend):
    weight = torch.randn(3, 4)

    def results(logits, labels):
        selection = emp.score_and_select(logits, labels, None, 0.5, backend=backend)
        found = [selection.indices, *selection.scores, selection.threshold, selection.num_invalid]
        found += emp.score(logits, labels, backend=backend)
        found += emp.sample_statistics(logits, labels, backend=backend)
        found += emp.score_linear(logits, weight, labels % 3, backend=backend)
        found += emp.score_contrastive(logits, logits + 1, backend=backend)
        return [*found, emp.cross_entropy(logits, labels, reduction="none", backend=backend)]

    logits, labels = torch.randn(6, 4), torch.arange(6) % 4
    for rows in (6, 0):
        want = results(logits[:rows], labels[:rows])
        with defaults(dtype):
            got = results(logits[:rows], labels[:rows])
        assert_same(got, want)
        assert {x.dtype for x in want} == {torch.float32, torch.int64, torch.int32, torch.bool}


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", calls.CALLS)
def test_deterministic_algorithms(name, as_default):
    tensors = calls.CALLS[name].tensors
    want = calls.run(name, tensors(), as_default)
    with deterministic():
        got = calls.run(name, tensors(), as_default)
    assert oracle.fingerprint(*got) == oracle.fingerprint(*want)


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_sampler_draws_ids_of_the_cpu(ranks, as_default):
    def epochs():
        sampler = emp.EMPSampler(emp.EMPState(10, device="cpu"), num_replicas=ranks, rank=0)
        return [list(sampler) for _ in range(3)]

    want = epochs()
    with defaults(torch.float64):
        assert epochs() == want


def together(rank, world):
    """Computations of several ranks, three times, then under other defaults."""

    def results():
        device = torch.device("cpu")
        generator = torch.Generator(device).manual_seed(rank)
        scores = torch.randn(20, generator=generator, device=device, dtype=torch.float32).round()
        labels = torch.arange(4, device=device)
        logits = torch.randn(4, 2, generator=generator, device=device, dtype=torch.float32)
        state = emp.EMPState(20, device=device)
        ids = torch.arange(rank, 20, 3, device=device)
        state.update(ids, emp.Scores(*[scores[ids]] * 4))
        emp.distributed.sync(state)
        return [
            emp.distributed.select(scores, 0.3),
            *score_vocab_parallel(logits, labels, vocab_start=2 * rank, check=True),
            *(x for x in state.state_dict().values() if isinstance(x, torch.Tensor)),
        ]

    want = results()
    for switched in (defaults(torch.float64), deterministic()):
        with switched:
            assert_same(results(), want)
    return oracle.fingerprint(*want)


def test_ranks():
    assert len(on_ranks(2, together)) == 2
