"""No result depends on the number of threads, and Python threads can share the library."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import oracle
import pytest
import torch

import emp_kernels as emp

SHAPES = [
    (1, 10), (1, 128_256), (3, 50_257), (2, 1000), (64, 100), (700, 10), (5000, 1), (4099, 2),
    (30_000, 10), (9000, 100), (400, 1000), (40, 32_000),
]  # fmt: skip
CASES = [("cpu", shape) for shape in SHAPES]
# torch's own sums may split long rows by the number of threads.
CASES += [("reference", shape) for shape in SHAPES if shape[0] * shape[1] <= 500_000]


def batch(rows, classes, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed + rows)
    logits = (2 * torch.randn(rows, classes, generator=generator)).to(dtype)
    logits[torch.rand(rows, generator=generator) < 0.05, 0] = torch.nan
    labels = torch.randint(classes, (rows,), generator=generator)
    ids = torch.randint(max(1, rows // 2), (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < 0.05] = -1
    return logits, labels, ids


def everything(logits, labels, ids, backend, keep=0.3):
    """Every tensor that the functions return or write."""
    rows = len(logits)
    state = emp.EMPState(max(1, rows // 2), beta=0.5)
    options = {"ignore_index": -1, "backend": backend}
    selection = emp.score_and_select(logits, labels, state, keep, indices=ids, **options)
    scores = emp.score(logits, labels, **options)
    results = [
        *scores,
        *emp.sample_statistics(logits, labels, **options),
        selection.indices, selection.threshold, selection.num_invalid, *selection.scores,
        emp.select(scores.score, keep, backend=backend),
        state.score.clone(), state.loss.clone(), state.entropy.clone(),
    ]  # fmt: skip
    state.update(ids.flip(0), scores)
    results += [state.score, state.loss, state.entropy, state.updates, state.selections]
    results += emp.gather([logits, labels], selection.indices)
    # One NaN is as good as another.
    results = [
        torch.where(x.isnan(), torch.nan, x) if x.is_floating_point() else x for x in results
    ]
    return [mark for _, mark in oracle.fingerprint(*results)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("backend", "shape"), CASES, ids=str, indirect=["backend"])
def test_the_number_of_threads_changes_nothing(shape, dtype, as_default, threads):
    arguments = batch(*shape, dtype)
    torch.set_num_threads(1)
    want = everything(*arguments, as_default)
    for count in threads:
        torch.set_num_threads(count)
        assert everything(*arguments, as_default) == want, f"{count} threads"


def test_python_threads_share_the_library(as_default):
    """Many concurrent callers, each with its own rows and state."""
    calls = [
        batch(rows, classes, torch.float32, seed)
        for seed in range(4)
        for rows, classes in [(3000, 10), (100, 1000), (1, 50_257), (20_000, 3)]
    ]
    want = [everything(*call, as_default) for call in calls]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            got = list(pool.map(lambda call: everything(*call, as_default), calls))
            assert got == want


def test_a_caller_with_more_threads_than_work(as_default):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(32)
        assert everything(*batch(5, 3, torch.float32), as_default)
        assert emp.select(torch.zeros(3), 2, backend=as_default).tolist() == [0, 1]
    finally:
        torch.set_num_threads(before)


RUNTIMES = """
import re, torch
import emp_kernels as emp

def runtimes():
    return sorted(set(re.findall(r"/\\S*lib(?:g|i)?omp\\S*", open("/proc/self/maps").read())))

torch.set_num_threads(2)
torch.zeros(1 << 20).exp()
before = runtimes()
emp.score(torch.zeros(20000, 100), torch.arange(20000) % 100, backend="cpu")
print(before, runtimes() == before)
assert emp.backends.load("cpu").require().share_openmp_of("libtorch_cpu.so")
"""


def test_the_threads_are_torchs_own():
    """A second OpenMP runtime would compete with it for the cores."""
    done = subprocess.run([sys.executable, "-c", RUNTIMES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "omp" in done.stdout
    assert done.stdout.endswith("True\n"), done.stdout
