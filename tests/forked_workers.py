"""Script of test_fork.py: calls everything in the parent, then again in forked children.

Run in a separate process, so that a hang ends in a timeout instead of a hung test suite.
Usage: python forked_workers.py loader|process|first BACKEND
"""

import multiprocessing
import sys

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

import emp_kernels as emp

ROWS, CLASSES = 30_000, 40
LOGITS = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(0))
LONG = torch.randn(2, 128_256, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(ROWS) % CLASSES
IDS = torch.arange(ROWS - 1, -1, -1)
SCORES = torch.randn(1_000_000, generator=torch.Generator().manual_seed(2))
ASCENDING = torch.arange(0, ROWS, 3)
TIMEOUT = 60


def everything(backend: str) -> list[np.ndarray]:
    """Results of every CPU function, on sizes that use more than one thread."""
    state = emp.EMPState(ROWS)
    selection = emp.score_and_select(
        LOGITS, LABELS, state, 0.3, indices=IDS, ignore_index=3, backend=backend
    )
    scores = emp.score(LOGITS, LABELS, backend=backend)
    state.update(IDS, scores)
    found = [
        *scores,
        *emp.score(LONG, LABELS[:2], backend=backend),
        *emp.sample_statistics(LOGITS, LABELS, backend=backend),
        emp.select(SCORES, 0.3, backend=backend),
        emp.gather(LOGITS, ASCENDING),
        emp.gather(LOGITS, ASCENDING, out=torch.empty(len(ASCENDING), CLASSES)),
        selection.indices, selection.threshold, selection.num_invalid, *selection.scores,
        state.score, state.loss, state.entropy, state.updates, state.selections, state.select(0.3),
    ]  # fmt: skip
    return [x.numpy() for x in found]


class Worker(Dataset):
    """Each item compares everything with the parent's results."""

    def __init__(self, backend: str, want: list[np.ndarray]) -> None:
        self.backend, self.want = backend, want

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> bool:
        return equal(everything(self.backend), self.want)


def equal(got: list[np.ndarray], want: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


def in_loader(backend: str, want: list[np.ndarray]) -> None:
    loader = DataLoader(
        emp.IndexedDataset(Worker(backend, want)),
        num_workers=2,
        timeout=TIMEOUT,
        multiprocessing_context="fork",
    )
    for _ in range(2):  # the second epoch forks again
        results = [bool(item) for _, item in loader]
        assert results == [True] * 4, results
        assert equal(everything(backend), want)  # the parent's threads still work


def in_process(backend: str, want: list[np.ndarray]) -> None:
    """A bare fork: nobody has set the child's number of threads to 1."""

    def child(threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        sys.exit(0 if equal(everything(backend), want) else 3)

    for threads in (None, 1, 4):
        process = multiprocessing.get_context("fork").Process(target=child, args=(threads,))
        process.start()
        process.join(TIMEOUT)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"the forked child hangs, set_num_threads {threads}")
        assert process.exitcode == 0, f"exit code {process.exitcode}, set_num_threads {threads}"
        assert equal(everything(backend), want)


def first_in_child(backend: str) -> None:
    """The parent's only threads are torch's: the child is the first to call the library."""
    assert "emp_kernels._cpu" not in sys.modules
    assert LOGITS.exp().sum() > 0  # leaves the threads of OpenMP waiting
    process = multiprocessing.get_context("fork").Process(target=everything, args=(backend,))
    process.start()
    process.join(TIMEOUT)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError("the forked child hangs on its first call")
    assert process.exitcode == 0, process.exitcode


if __name__ == "__main__":
    mode, name = sys.argv[1:]
    torch.set_num_threads(2)
    if mode == "first":
        first_in_child(name)
    else:
        (in_loader if mode == "loader" else in_process)(name, everything(name))
    print("forked and done")
