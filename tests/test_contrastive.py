"""score_contrastive: against dense float64, in every form, on every backend."""

import itertools
import warnings

import numpy as np
import oracle
import pytest
import torch

import emp_kernels as emp
from bench import memory
from emp_kernels.backends.cpu import contrastive as tiled

FORMS = ("infonce", "clip", "ntxent")
FIELDS = ("loss", "entropy", "lse")
SLOW = ("triton",)  # interpreted: small shapes
EPS = 2.0**-23


def dense_rows(first, second, form, temperature):
    """For each direction the rows of similarities (N, columns) and the positives' columns, as in
    the papers: with the whole matrix, in the views' dtype."""
    n = len(first)
    first, second = (torch.nn.functional.normalize(x, dim=1) for x in (first, second))
    own = torch.arange(n)
    if form != "ntxent":
        rows = first @ second.T / temperature
        return [(rows, own)] if form == "infonce" else [(rows, own), (rows.T, own)]
    both = torch.cat([first, second])
    rows = (both @ both.T / temperature).fill_diagonal_(-torch.inf)
    return [(rows[:n], own + n), (rows[n:], own)]


def truth(z, form, temperature=0.1, hidden=None, hidden_temperature=None):
    """loss, entropy, lse (N,) float64 of the dense matrices."""

    def means(pair, temperature):
        found = []
        for rows, positives in dense_rows(*(x.double() for x in pair), form, temperature):
            found.append(oracle.statistics(rows.contiguous(), positives))
        return found

    projections = means(z, temperature)
    entropies = projections if hidden is None else means(hidden, hidden_temperature or temperature)
    return {
        "loss": np.mean([x.loss for x in projections], 0),
        "entropy": np.mean([x.entropy for x in entropies], 0),
        "lse": np.mean([x.lse for x in projections], 0),
    }


def by_torch(z, form, temperature=0.1, hidden=None, hidden_temperature=None):
    """The straightforward implementation in the tensors' dtype, returned in float32."""

    def means(pair, temperature, of):
        return torch.stack([of(*x) for x in dense_rows(*pair, form, temperature)]).mean(0)

    def entropy(rows, positives):
        log_p = rows.log_softmax(1)
        return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(1)

    def loss(rows, positives):
        return -rows.log_softmax(1).gather(1, positives[:, None])[:, 0]

    return {
        "loss": means(z, temperature, loss).float(),
        "entropy": means(hidden or z, hidden_temperature or temperature, entropy).float(),
        "lse": means(z, temperature, lambda rows, _: rows.logsumexp(1)).float(),
    }


def views(n, width, dtype=torch.float32, noise=0.5, seed=0):
    generator = torch.Generator().manual_seed(1000 * seed + n)
    first, other = torch.randn(2, n, width, generator=generator, dtype=torch.float64)
    return first.to(dtype), (first + noise * other).to(dtype)


def sizes(backend, tile):
    return (
        (3, tile + 1) if backend in SLOW else (1, 2, 3, 17, tile - 1, tile, tile + 1, 2 * tile + 5)
    )


@pytest.fixture
def small_tiles(monkeypatch):
    """Tiles of 64 rows (32 above a diagonal) by 16 columns, so that small batches have many."""
    monkeypatch.setattr(tiled, "_ROWS", 64)
    monkeypatch.setattr(tiled, "_COLUMNS", 16)


def assert_as_good_as_torch(scores, want, other):
    """At most twice torch's largest error, and a rounding of the largest similarity."""
    for field in FIELDS:
        error = np.abs(oracle.to_float64(getattr(scores, field)) - want[field]).max()
        torchs = np.abs(oracle.to_float64(other[field]) - want[field]).max()
        step = EPS * max(1.0, np.abs(want["lse"]).max())
        assert error <= 2 * torchs + step, (field, error, torchs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("form", FORMS)
def test_every_size_against_dense_float64(form, dtype, backend, small_tiles):
    for n in sizes(backend, 64):
        z, hidden = views(n, 24, dtype), views(n, 70, dtype, noise=2, seed=1)
        for own in (None, hidden):
            temperature = 0.3 if own else None
            options = {"form": form, "hidden": own, "hidden_temperature": temperature}
            scores = emp.score_contrastive(*z, beta=0.7, **options, backend=backend)
            want, other = truth(z, **options), by_torch(z, **options)
            assert_as_good_as_torch(scores, want, other)
            assert all(x.dtype == torch.float32 and x.shape == (n,) for x in scores)
            assert torch.equal(scores.score, scores.loss + 0.7 * scores.entropy)
            assert (scores.loss >= 0).all()
            assert (scores.entropy >= 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_losses_and_entropies_near_zero_keep_their_accuracy(form, backend, small_tiles):
    """Orthogonal samples at small temperatures: what float32's log_softmax rounds to zero."""
    n = 32
    first = torch.eye(n) * torch.linspace(1, 5, n)[:, None]
    for temperature in (0.1, 0.05, 0.02, 0.0125):
        scores = emp.score_contrastive(
            first, first * 3, form=form, temperature=temperature, backend=backend
        )
        want = truth((first, first * 3), form, temperature)
        for field in FIELDS:
            worst = oracle.relative_errors(getattr(scores, field), want[field]).max()
            assert worst < 1e-6 + 2 * EPS / temperature, (temperature, field, worst)
    assert 0 < want["loss"].max() < 1e-30


@pytest.mark.parametrize("form", FORMS)
def test_hard_vectors(form, backend, small_tiles):
    """Zero vectors, equal ones, opposite ones, huge and tiny ones: all rows against float64."""
    first, second = views(70, 12)
    first[3] = second[5] = second[3] = 0
    second[10:20] = first[10]
    first[30], second[31] = 1e15 * first[30], 1e-10 * second[31]
    second[40] = -first[40]
    first[50:60] = 0
    for temperature in (0.01, 1.0, 50.0):
        scores = emp.score_contrastive(
            first, second, form=form, temperature=temperature, backend=backend
        )
        want = truth((first, second), form, temperature)
        for field in FIELDS:
            found = oracle.to_float64(getattr(scores, field))
            np.testing.assert_allclose(found, want[field], rtol=2e-5, atol=2e-6 / temperature)
        assert scores.score.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_one_sample_and_none(form, backend):
    z = views(1, 5)
    scores = emp.score_contrastive(*z, form=form, backend=backend)
    assert scores.score.tolist() == scores.loss.tolist() == scores.entropy.tolist() == [0.0]
    np.testing.assert_allclose(oracle.to_float64(scores.lse), truth(z, form)["lse"], rtol=1e-6)
    hidden = views(1, 9)
    assert emp.score_contrastive(*z, form=form, hidden=hidden, backend=backend).entropy == 0
    empty = torch.empty(0, 5)
    for pair in (None, (torch.empty(0, 3), torch.empty(0, 3))):
        for field in emp.score_contrastive(empty, empty, form=form, hidden=pair, backend=backend):
            assert field.shape == (0,)
            assert field.dtype == torch.float32


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_makes_invalid_what_is_compared_with_it(bad, backend, small_tiles):
    first, second = views(100, 8)
    others = torch.arange(100) != 70
    first[70, 3] = bad
    scores = emp.score_contrastive(first, second, backend=backend)
    assert scores.score.isnan().tolist() == (~others).tolist()
    alone = emp.score_contrastive(first[others], second[others], backend=backend)
    assert alone.score.isfinite().all()
    for form in ("clip", "ntxent"):  # there it is a column, too
        assert emp.score_contrastive(first, second, form=form, backend=backend).score.isnan().all()
    assert emp.score_contrastive(second, first, backend=backend).score.isnan().all()
    # a hidden feature spoils the entropy, not the loss
    z = views(100, 4)
    hidden = emp.score_contrastive(*z, hidden=(first, second), backend=backend)
    assert hidden.score.isnan().tolist() == (~others).tolist()
    assert hidden.loss.isfinite().all()
    assert len(emp.select(hidden.score, 0.5)) == 50
    assert 70 not in emp.select(hidden.score, 99)


def test_infonce_is_score_of_the_matrix(backend):
    """The package's scoring of the similarities, whose accuracy is tested separately."""
    first, second = views(60, 16)
    scores = emp.score_contrastive(first, second, temperature=0.5, beta=2.0, backend=backend)
    ((rows, labels),) = dense_rows(first.double(), second.double(), "infonce", 0.5)
    want = emp.score(rows, labels, beta=2.0)
    for got, expected in zip(scores, want, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)


def test_clip_and_ntxent_do_not_change_when_the_views_change_places(backend, small_tiles):
    first, second = views(70, 16)
    for form in ("clip", "ntxent"):
        one, other = (
            emp.score_contrastive(*pair, form=form, backend=backend)
            for pair in ((first, second), (second, first))
        )
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-6)


def test_strided_views_and_their_scale_do_not_matter(backend):
    first, second = views(40, 12)
    wide = torch.stack([first, second], 2).repeat_interleave(2, 0)
    want = emp.score_contrastive(first, second, backend=backend)
    got = emp.score_contrastive(8 * wide[::2, :, 0], wide[::2, :, 1] / 4, backend=backend)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_without_autograd_and_autocast_and_arguments_are_not_modified(backend):
    first, second = views(50, 32)
    want = emp.score_contrastive(first, second, hidden=(second, first), backend=backend)
    first.requires_grad_()
    before = oracle.fingerprint(first, second)
    with torch.autocast("cpu", torch.bfloat16):
        got = emp.score_contrastive(first, second, hidden=(second, first), backend=backend)
    assert oracle.fingerprint(first, second) == before
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
        assert not a.requires_grad


def test_under_torch_compile(backend):
    """The call is a graph break, and our code is not traced."""
    if backend == "triton":
        pytest.skip("the interpreter under the compiler")
    first, second = views(20, 8)

    def step(x):
        return emp.score_contrastive(x * 2, second, form="ntxent", backend=backend).score + 1

    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = torch.compile(step, backend="eager")(first)
    assert torch.equal(got, step(first))


def test_identical_scores_give_identical_selections(backend, small_tiles):
    """The same samples twice: their scores tie, and the first of each pair is taken first."""
    first, second = (x.repeat(2, 1) for x in views(60, 20))
    z = emp.score_contrastive(first, second, form="clip", backend="reference")
    kept = emp.select(z.score, 60)
    assert torch.equal(kept, oracle.select(z.score, 60))
    own = emp.score_contrastive(first, second, form="clip", backend=backend).score
    assert torch.equal(emp.select(own, 60), oracle.select(own, 60))
    again = emp.score_contrastive(first, second, form="clip", backend=backend).score
    assert torch.equal(own, again)


def test_float64_is_for_the_reference():
    z = views(30, 8, torch.float64)
    scores = emp.score_contrastive(*z, form="ntxent")
    want = truth(z, "ntxent")
    for field in FIELDS:
        assert getattr(scores, field).dtype == torch.float64
        np.testing.assert_allclose(getattr(scores, field).numpy(), want[field], rtol=1e-12)
    with pytest.raises(TypeError, match="score_contrastive: backend 'cpu' must get float32"):
        emp.score_contrastive(*z, backend="cpu")


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_any_number_of_threads_and_any_tile(threads, monkeypatch, backend):
    z, hidden = views(700, 24), views(700, 40, seed=2)
    for form in FORMS:
        torch.set_num_threads(1)
        want = emp.score_contrastive(*z, form=form, hidden=hidden)
        for count, rows in itertools.product(threads, (2048, 256)):
            torch.set_num_threads(count)
            monkeypatch.setattr(tiled, "_ROWS", rows)
            monkeypatch.setattr(tiled, "_COLUMNS", rows // 4)
            got = emp.score_contrastive(*z, form=form, hidden=hidden)
            for a, b in zip(got, want, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_memory_grows_with_the_rows_and_not_with_their_square(backend):
    """The matrix would take 64 MiB."""
    z = views(4096, 4)
    with torch.profiler.profile(profile_memory=True) as profile:
        emp.score_contrastive(*z, form="clip")
    allocated = [e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage > 0]
    assert allocated
    assert max(allocated) <= 4 * 1024 * 1024


def test_memory_of_a_first_call(backend):
    """In a separate process; each of the two matrices would take 256 MiB."""
    if backend != "cpu":
        pytest.skip("about the C++ backend")
    grown = memory.of_a_first_call("bench_contrastive", "infonce", 8192)
    assert grown is None or grown <= 40 * 2**20


Z = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
BAD = [
    (TypeError, "z1 must be a float32, .* got list", lambda: ([[1.0]], Z, {})),
    (TypeError, "z2 must be a float32, .* got torch.int64", lambda: (Z, Z.long(), {})),
    (TypeError, "z1 must have layout", lambda: (Z.to_sparse(), Z, {})),
    (ValueError, r"z1 must have shape \(N, D\) .* got \(4,\)", lambda: (Z[0], Z, {})),
    (ValueError, r"z1 must have shape \(N, D\) .* got \(1, 6, 4\)", lambda: (Z[None], Z, {})),
    (ValueError, r"z1 must have shape \(N, D\) with D > 0", lambda: (Z[:, :0], Z, {})),
    (TypeError, "z2 must have z1's dtype torch.float32, got torch.float16",
     lambda: (Z, Z.half(), {})),
    (ValueError, r"z2 must have z1's shape \(6, 4\), got \(5, 4\)", lambda: (Z, Z[:5], {})),
    (ValueError, r"z2 must have z1's shape \(6, 4\), got \(6, 3\)", lambda: (Z, Z[:, :3], {})),
    (ValueError, r"z2 must be on the device of z1 \(cpu\), got meta",
     lambda: (Z, Z.to("meta"), {})),
    (TypeError, "form must be a str, got int", lambda: (Z, Z, {"form": 1})),
    (ValueError, "form must be one of infonce, clip, ntxent, got 'simclr'",
     lambda: (Z, Z, {"form": "simclr"})),
    *((ValueError, f"{name} must be positive and finite, got {text}",
       lambda name=name, value=value: (Z, Z, {"hidden": (Z, Z), name: value}))
      for name in ("temperature", "hidden_temperature")
      for value, text in ((0, "0"), (-0.1, "-0.1"), (torch.inf, "inf"), (torch.nan, "nan"))),
    (TypeError, "temperature must be a real number, got str",
     lambda: (Z, Z, {"temperature": "0.1"})),
    (TypeError, "temperature must be a real number, got bool",
     lambda: (Z, Z, {"temperature": True})),
    (ValueError, "hidden_temperature must be None without hidden, got 0.2",
     lambda: (Z, Z, {"hidden_temperature": 0.2})),
    (TypeError, r"hidden must be a pair of tensors \(h1, h2\), got torch.float32",
     lambda: (Z, Z, {"hidden": Z})),
    (TypeError, "hidden must be a pair", lambda: (Z, Z, {"hidden": (Z, Z, Z)})),
    (TypeError, r"hidden\[1\] must have hidden\[0\]'s dtype torch.float32, got torch.bfloat16",
     lambda: (Z, Z, {"hidden": (Z, Z.bfloat16())})),
    (ValueError, r"hidden\[1\] must have hidden\[0\]'s shape \(6, 4\), got \(6, 2\)",
     lambda: (Z, Z, {"hidden": (Z, Z[:, :2])})),
    (ValueError, r"hidden\[0\] must have z1's 6 rows, got 5",
     lambda: (Z, Z, {"hidden": (Z[:5], Z[:5])})),
    (TypeError, r"hidden\[0\] must be float64 if and only if z1 is",
     lambda: (Z, Z, {"hidden": (Z.double(), Z.double())})),
    (ValueError, r"hidden\[0\] must be on the device of z1 \(cpu\), got meta",
     lambda: (Z, Z, {"hidden": (Z.to("meta"), Z.to("meta"))})),
    (ValueError, "beta must be finite .*, got nan", lambda: (Z, Z, {"beta": torch.nan})),
    (ValueError, "backend must be None or one of", lambda: (Z, Z, {"backend": "gpu"})),
    (RuntimeError, "backend 'cuda' ", lambda: (Z, Z, {"backend": "cuda"})),
    (RuntimeError, "group needs torch.distributed", lambda: (Z, Z, {"group": 1})),
]  # fmt: skip


@pytest.mark.parametrize(("error", "text", "call"), BAD, ids=[text[:40] for _, text, _ in BAD])
def test_bad_arguments(error, text, call):
    first, second, options = call()
    with pytest.raises(error, match=f"^score_contrastive: {text}"):
        emp.score_contrastive(first, second, **options)
