"""Cases that could crash a process or corrupt its memory, each in a separate process:
floating-point modes, threads that write what a call reads, sizes beyond 2^63, failed
allocations."""

import os
import subprocess
import sys
import textwrap

import pytest

from emp_kernels import backends

PRELUDE = """
import ctypes, resource, threading, time
import torch
import emp_kernels as emp

torch.set_num_threads(2)
generator = torch.Generator().manual_seed(0)


class Writer:
    "Calls `write` over and over in another thread, while the block runs."

    def __init__(self, write):
        self.stop, self.thread = False, threading.Thread(target=self.run, args=(write,))

    def run(self, write):
        while not self.stop:
            write()

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.stop = True
        self.thread.join()


def assert_positions(found, n, k):
    assert len(found) == k, (len(found), k)
    assert 0 <= int(found[0]) and int(found[-1]) < n, found
    assert bool((found[1:] > found[:-1]).all()), "not ascending"
"""


@pytest.fixture(params=["highest", "lowest"])
def run(request):
    """Runs code in a process of this SIMD level; it must end well."""

    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    if request.param == "lowest":
        environment["EMP_SIMD"] = backends.load("cpu").require().simd_levels()[-1]

    def run(code, timeout=120):
        result = subprocess.run(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(code)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert result.returncode == 0, f"{result.returncode}\n{result.stdout}{result.stderr}"

    return run


def test_flushed_denormals_change_nothing(run):
    run("""
    tiny = torch.rand(5000, generator=generator) * 1e-38  # denormals, most of them
    many = torch.rand(40_000, generator=generator) * 1e-41
    opposite = -tiny
    logits = torch.full((4096, 10), -200.0)
    logits[:, 3] = 200.0  # every loss is 0
    half = (torch.rand(700, 50, generator=generator) * 6e-5).to(torch.float16)  # subnormal ones
    labels = torch.full((4096,), 3)

    def results():
        state = emp.EMPState(4096)
        found = emp.score_and_select(logits, labels, state, keep=0.3)
        z = half.clone().requires_grad_()
        loss = emp.cross_entropy(z, labels[:700])
        loss.backward()
        return [
            emp.select(torch.zeros(5000), 500), emp.select(tiny, 500), emp.select(opposite, 499),
            emp.select(many, 7), found.indices, state.score, state.selections,
            *emp.score(half, labels[:700]), loss.detach(), z.grad,
        ]

    want = results()
    assert want[0].tolist() == list(range(500))
    assert torch.set_flush_denormal(True)
    got = results()
    torch.set_flush_denormal(False)
    for ours, undisturbed in zip(got, want, strict=True):
        assert ours.numpy().tobytes() == undisturbed.numpy().tobytes()
    """)


def test_upward_rounding_changes_nothing(run):
    run("""
    logits = torch.randn(3000, 37, generator=generator)
    labels = torch.randint(37, (3000,), generator=generator)
    want = emp.score(logits, labels)
    fesetround = ctypes.CDLL("libm.so.6").fesetround
    upward = {"x86_64": 0x800, "aarch64": 0x400000}[__import__("platform").machine()]
    assert fesetround(upward) == 0
    got = emp.score(logits, labels)
    assert fesetround(0) == 0
    for ours, undisturbed in zip(got, want, strict=True):
        assert torch.equal(ours, undisturbed)
    """)


@pytest.mark.parametrize("n", [700, 20_000, 300_000])
def test_selecting_beside_a_thread_that_updates(run, n):
    run(f"""
    n = {n}
    state, ids = emp.EMPState(n), torch.randperm(n, generator=generator)
    kinds = [torch.rand(n, generator=generator), torch.zeros(n), torch.rand(n).mul(4).floor()]
    turn = iter(range(10**9))

    def write():
        values = kinds[next(turn) % 3]
        state.update(ids, emp.Scores(values, values, values, values))

    write()
    with Writer(write):
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            for keep in (1, n // 3, n // 2, n - 1):
                assert_positions(state.select(keep), n, keep)
    """)


def test_snapshots_beside_a_thread_that_updates(run):
    run("""
    n = 50_000
    state, ids = emp.EMPState(n), torch.randperm(n, generator=generator)
    values = [torch.full((n,), 1.5), torch.full((n,), 2.5)]
    turn = iter(range(10**9))

    def write():
        v = values[next(turn) % 2]
        state.update(ids, emp.Scores(v, v, v, v))

    write()
    with Writer(write):
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            for name in ("score", "loss", "entropy"):
                entries = state.state_dict()[name]
                assert bool(((entries == 1.5) | (entries == 2.5)).all()), name
    """)


@pytest.mark.parametrize("what", ["labels", "ids"])
def test_labels_and_ids_that_another_thread_overwrites(run, what):
    run(f"""
    n = 20_000
    logits = torch.randn(n, 10, generator=generator)
    labels = torch.randint(10, (n,), generator=generator)
    ids = torch.randint(n, (n,), generator=generator)
    buffer = {what}
    good, wild = buffer.clone(), torch.full_like(buffer, 2**40)
    state, done = emp.EMPState(n), 0

    def write():
        buffer.copy_(wild)
        buffer.copy_(good)

    def calls():
        yield lambda: emp.score_and_select(logits, labels, state, 0.3, indices=ids)
        yield lambda: emp.cross_entropy(logits, labels, state=state, indices=ids)
        yield lambda: emp.score(logits, labels)
        yield lambda: emp.sample_statistics(logits, labels)
        yield lambda: emp.gather(logits, ids)
        yield lambda: state.update(ids, scores)

    scores = emp.score(logits, good.clone() if {what!r} == "labels" else labels)
    with Writer(write):
        end = time.monotonic() + 2
        while time.monotonic() < end:
            for call in calls():
                try:
                    call()
                    done += 1
                except (ValueError, IndexError):
                    pass
    assert int(state.selections.sum()) >= 0
    """)


def test_sizes_past_memory(run):
    run("""
    for source, indices in (
        (torch.empty(0, 2**61), torch.zeros(8, dtype=torch.long)),
        (torch.zeros(1).expand(4, 2**50), torch.zeros(2**14, dtype=torch.long)),
    ):
        try:
            emp.gather(source, indices)
        except (ValueError, IndexError, MemoryError, RuntimeError) as error:
            assert str(error)
        else:
            raise AssertionError("no error")
    """)


def test_memory_that_runs_out(run):
    """In parallel work and for results: MemoryError names the requested number of bytes. The last
    bytes are a tensor's own record, which torch allocates and cannot do without."""
    run("""
    logits = torch.randn(20_000, 200, generator=generator)
    labels = torch.zeros(20_000, dtype=torch.long)
    emp.score(logits, labels)
    pages = int(open("/proc/self/statm").read().split()[0])
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**21, most))
    kept, refused, text = [], {20_000: 0, 300: 0, 1: 0}, ""
    for rows in refused:
        few = logits[:rows], labels[:rows]
        while refused[rows] < 100:
            try:
                kept.append(emp.score(*few))
            except MemoryError as error:
                refused[rows] += 1
                text = text or str(error)  # there is room for the first one
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    assert "bytes cannot be allocated" in text
    torch.testing.assert_close(emp.score(logits, labels), emp.score(logits, labels))
    """)


def test_update_from_the_states_own_tensors(run):
    run("""
    for n in (4, 5000):
        state = emp.EMPState(n)
        first = torch.arange(1.0, n + 1)
        state.update(torch.arange(n), emp.Scores(first, first, first, first))
        state.update(
            torch.arange(n).flip(0), emp.Scores(state.score, state.loss, state.entropy, state.loss)
        )
        for name in ("score", "loss", "entropy"):
            assert torch.equal(getattr(state, name), first.flip(0)), name
    """)
