"""Tensors between torch and the native module: made and read through DLPack, in both directions."""

import functools
import gc
import itertools
from collections.abc import Iterator

import pytest
import torch
from torch.autograd import forward_ad

import emp_kernels as emp
from emp_kernels import backends
from emp_kernels.backends import cpu

EXCHANGE = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)


@pytest.fixture(params=["exchange", "capsules"])
def way(request) -> Iterator[str]:
    """The exchange API, and the capsules that replace it with older torch versions."""
    native = backends.load("cpu").require()
    if request.param == "exchange" and EXCHANGE is None:
        pytest.skip("this torch has no exchange API")
    functions = torch.Tensor, torch._C._from_dlpack, torch._C._to_dlpack
    native.use_torch(*functions, EXCHANGE if request.param == "exchange" else None)
    yield request.param
    native.use_torch(*functions, EXCHANGE)


def test_results_equal_the_references(way):
    logits = torch.randn(3, 50, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(150).view(3, 50).to(torch.uint8) % 7
    for z in (logits, logits.bfloat16(), logits.transpose(0, 1), logits.requires_grad_()):
        y = labels.t().contiguous() if z.shape[0] == 50 else labels
        ours = emp.sample_statistics(z, y, backend="cpu")
        assert type(ours) is emp.SampleStatistics
        for got, want in zip(ours, emp.sample_statistics(z, y, backend="reference"), strict=True):
            assert got.dtype == want.dtype
            assert got.is_contiguous()
            assert not got.requires_grad
            torch.testing.assert_close(got, want, rtol=2e-5, atol=1e-6)
    states = {}
    for backend in ("cpu", "reference"):
        states[backend] = emp.EMPState(400)
        states[backend].kept = emp.score_and_select(
            logits.view(150, 7),
            labels.view(150),
            states[backend],
            0.3,
            indices=torch.arange(300, 0, -2, dtype=torch.int16),
            ignore_index=3,
            backend=backend,
        )
    ours, reference = states["cpu"], states["reference"]
    assert type(ours.kept) is emp.Selection
    assert type(ours.kept.scores) is emp.Scores
    assert torch.equal(ours.kept.indices, reference.kept.indices)
    assert ours.kept.num_invalid.dtype == torch.int32
    assert ours.kept.threshold.shape == ()
    for name in ("updates", "selections", "seen_at", "clock"):
        assert torch.equal(getattr(ours, name), getattr(reference, name)), name
    torch.testing.assert_close(ours.score, reference.score)


def test_results_are_memory_of_their_own(way):
    """Each is written in place, resized, and kept, after everything else of its call is gone."""
    logits = torch.randn(100_000, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.zeros(100_000, dtype=torch.long)
    loss = emp.score(logits, labels).loss
    want = loss.clone()
    gc.collect()
    others = [emp.score(logits, labels) for _ in range(3)]
    others[0].loss.zero_()
    assert not loss._is_view()
    assert torch.equal(loss, want)
    assert torch.equal(others[1].loss, want)
    assert loss.untyped_storage().nbytes() == 400_000
    weight = torch.ones(100_000, requires_grad=True)
    (loss * weight).sum().backward()
    assert torch.equal(weight.grad, want)


@pytest.mark.parametrize("size", [0, 1])
def test_empty_and_single_rows(way, size):
    logits, labels = torch.zeros(size, 4), torch.zeros(size, dtype=torch.long)
    found = emp.score_and_select(logits, labels, None, 0.5, backend="cpu")
    assert found.indices.tolist() == list(range(size))
    assert [field.shape for field in found.scores] == [(size,)] * 4
    assert emp.gather(labels, found.indices).shape == (size,)


def test_gathered_rows_keep_dtype_and_type(way):
    raw = torch.randint(256, (40, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    rows = torch.tensor([39, 0, 7, 7])
    names = ("float8_e4m3fn", "complex32", "complex128", "uint64", "bits8", "int1", "bfloat16")
    for dtype in (getattr(torch, name) for name in names if hasattr(torch, name)):
        got = emp.gather({"x": raw.view(dtype)}, rows)["x"]
        assert got.dtype == dtype
        assert torch.equal(got.view(torch.uint8), raw[rows]), dtype

    class Kind(torch.Tensor):
        pass

    assert type(emp.gather(raw.as_subclass(Kind), rows)) is Kind
    scaled = torch.quantize_per_tensor(raw.float(), 0.5, 3, torch.quint8)
    assert torch.equal(emp.gather(scaled, rows).dequantize(), scaled.dequantize()[rows])


def test_a_batch_is_gathered_in_one_native_call(way):
    """Batches of plain tensors are gathered; others are declined and left to Python."""
    raw = torch.randint(256, (40, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    rows = torch.tensor([39, 0, 7, 7])

    def gather(batch, indices=rows):
        return cpu.native.module.plain_gather(batch, indices)

    wide = raw.view(torch.float32)
    plain = [raw, wide, raw.view(torch.int64), raw.view(torch.complex64), raw > 99, raw[:, 3]]
    plain += [wide[:, :2], raw[:, :0], wide.view(40, 2, 2)[:, 1:], wide[:1].expand(40, 4)]
    for tensor in plain:
        got = gather(tensor)
        if way == "capsules":
            assert got is None
            continue
        assert got.dtype == tensor.dtype
        assert got.shape == (4, *tensor.shape[1:])
        assert torch.equal(got.view(torch.uint8), tensor[rows].view(torch.uint8))
    batch = {"a": raw, "b": (wide, [raw, {}]), "c": [raw[:, 0]], 3: ()}
    got = gather(batch)
    if way == "exchange":
        assert list(got) == ["a", "b", "c", 3]
        assert torch.equal(got["a"], raw[rows])
        assert type(got["b"]) is tuple
        assert torch.equal(got["b"][1][0], raw[rows])
        assert got["b"][1][1] == {}
        assert torch.equal(got["c"][0], raw[rows, 0])
        assert got[3] == ()
    unequal = torch.full((3, 2), 1j).conj()
    unplain = [None, 3, "text", {"a": raw, "b": 3}, [raw, None], raw.view(torch.int1)]
    unplain += [torch.nn.Parameter(wide), wide.clone().requires_grad_(), raw.to("meta")]
    unplain += [wide.t()[:, ::2], wide[:, ::2], torch.tensor(3), torch.eye(50).to_sparse()]
    unplain += [unequal, unequal.imag, torch._efficientzerotensor(50), {"a": raw[:39]}]
    for batch in unplain:
        assert gather(batch) is None
    with forward_ad.dual_level():
        assert gather(wide) is None
    with torch.no_grad():
        assert (gather(wide.clone().requires_grad_()) is None) == (way == "capsules")
    bad = [rows.int(), rows[None], rows[::2], rows - 1, rows + 1, rows.double(), [0], None]
    for indices in bad:
        assert gather(raw, indices) is None
    endless: list = []
    endless.append(endless)
    if way == "exchange":
        with pytest.raises(RecursionError):
            gather(endless)


def test_tensors_without_memory_are_an_error(way):
    """torch's zero tensors without memory, which index_select supports."""
    near, far = torch._efficientzerotensor(2, 5, 3), torch._efficientzerotensor(10**6, 5, 3)
    for zeros in (near[0], near[1], far[-1]):  # that begin at null, and behind it
        assert torch.equal(emp.gather({"x": zeros}, torch.tensor([4, 0]))["x"], torch.zeros(2, 3))
        with pytest.raises(TypeError, match="must lie in memory"):
            emp.score(zeros, torch.zeros(5, dtype=torch.long), backend="cpu")


def test_rows_of_many_dimensions(way):
    tensor = torch.arange(2.0).view([2] + [1] * 200)
    got = emp.gather([tensor], torch.tensor([1]))[0]
    assert got.shape == (1,) * 201
    assert got.item() == 1


def test_a_batch_that_shrinks_as_it_is_gathered(way):
    """A key's __hash__ empties the list that holds it."""

    class Key:
        armed = False

        def __hash__(self) -> int:
            if self.armed:
                batch.clear()
            return 1

    tensor = torch.arange(3.0)
    batch = [{Key(): tensor}, tensor]
    Key.armed = True
    got = emp.gather(batch, torch.tensor([2]))
    assert all(isinstance(item, dict | torch.Tensor) for item in got)


def same(a, b):
    """Bit for bit, of nested results and states' tensors."""
    if isinstance(a, tuple):
        return type(a) is type(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("label_dtype", [torch.int64, torch.int32, torch.int16], ids=str)
def test_the_main_call_without_checks_does_what_it_does_with_them(way, dtype, label_dtype):
    generator = torch.Generator().manual_seed(0)
    plain = cpu.native.module.plain_score_and_select
    for n, c in [(0, 3), (1, 1), (40, 10), (300, 130)]:
        logits = torch.randn(n, 2 * c, generator=generator).to(dtype)[:, :c]
        logits[n // 3 : n // 3 + 1, 0] = torch.nan
        labels = torch.randint(c, (n,), generator=generator).to(label_dtype)
        ids = torch.randperm(2 * n + 1, generator=generator)[:n]
        keeps = [0.3, 1.0] if n == 0 else [0.3, 1.0, 1, n]
        for keep, given, ignored in itertools.product(keeps, (None, ids), (None, 0, -100)):
            states = [emp.EMPState(n if given is None else 2 * n + 1, beta=0.5) for _ in range(2)]
            first, second = (
                emp.score_and_select(
                    *(logits, labels, state, keep),
                    indices=given,
                    ignore_index=ignored,
                    backend=backend,
                )
                for state, backend in zip(states, (None, "cpu"), strict=True)
            )
            assert same(first, second)
            assert same(cpu.native.state_tensors(states[0]), cpu.native.state_tensors(states[1]))
            without = plain(logits, labels, None, 0, 0.5, keep, given, ignored)
            assert (without is None) == (way == "capsules")


def gradients(loss_of, leaf):
    """The bits of the gradient of loss_of() by `leaf`, times some numbers, each derived twice and
    the first one overwritten in between."""
    found = []
    for scale in (1.0, 0.25, -(2.0**16), 0.3, 0.0, torch.nan):
        scaled = (scale * loss_of()).sum()
        for _ in range(2):
            (gradient,) = torch.autograd.grad(scaled, leaf, retain_graph=True)
            found.append(gradient.clone().view(torch.uint8))
            gradient.fill_(7)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("label_dtype", [torch.int64, torch.int32, torch.int16], ids=str)
def test_scores_and_losses_without_checks_are_those_with_them(way, dtype, label_dtype):
    generator = torch.Generator().manual_seed(0)
    native = cpu.native.module
    for n, c in [(0, 3), (1, 1), (40, 10), (300, 130)]:
        logits = torch.randn(n, 2 * c, generator=generator).to(dtype)[:, :c]
        logits[n // 3 : n // 3 + 1, 0] = torch.nan
        labels = torch.randint(c, (n,), generator=generator).to(label_dtype)
        ids = torch.randperm(2 * n + 1, generator=generator)[:n]
        for ignored in (None, 0, -100):
            options = {"ignore_index": ignored}
            first, second = (
                (
                    emp.score(logits, labels, beta=0.5, backend=backend, **options),
                    emp.sample_statistics(logits, labels, backend=backend, **options),
                )
                for backend in (None, "cpu")
            )
            assert same(first, second)
            found = native.plain_score(logits, labels, 0.5, ignored)
            assert (found is None) == (way == "capsules")
            found = native.plain_sample_statistics(logits, labels, ignored)
            assert (found is None) == (way == "capsules")
            for given, reduction in itertools.product((None, ids), ("mean", "sum", "none")):
                results = []
                for backend in (None, "cpu"):
                    state = emp.EMPState(n if given is None else 2 * n + 1, beta=0.5)
                    leaf = logits.clone().requires_grad_()
                    loss_of = functools.partial(
                        emp.cross_entropy,
                        *(leaf, labels, state),
                        indices=given,
                        reduction=reduction,
                        backend=backend,
                        **options,
                    )
                    scaled = gradients(loss_of, leaf)
                    tensors = cpu.native.state_tensors(state)
                    results.append((loss_of().detach(), *scaled, *tensors))
                assert same(*results)
            found = native.plain_cross_entropy(
                logits, labels, None, 0, 1.0, None, ignored, 0, False
            )
            assert (found is None) == (way == "capsules")


def test_what_is_served_without_checks_leaves_the_rest_alone(way):
    logits = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    labels, ids = torch.arange(12) % 5, torch.arange(12)
    fields, small = (cpu.native.state_tensors(emp.EMPState(n)) for n in (12, 11))
    unequal = (1j * logits).conj().imag
    unusual = {
        "logits": [logits.double(), logits[0], logits[None], logits.t(), logits[:, ::2]]
        + [unequal, logits.long(), logits.to("meta"), torch.nn.Parameter(logits), None, "text"]
        + [logits.to_sparse(), torch._efficientzerotensor(12, 5), logits[:11], logits[:, :0]],
        "labels": [labels.to(torch.uint8), labels.to(torch.int8), labels > 2, labels.double()]
        + [labels[:, None], labels.repeat_interleave(2)[::2], labels + 1, labels - 1, None, 3]
        + [labels.to(torch.uint64), labels.to("meta"), labels[:11]],
        "fields": [fields[:6], list(fields), (*fields[:6], None)]
        + [(fields[0].to("meta"), *fields[1:]), (*fields[:6], fields[5]), small]
        + [(fields[0][:11], *fields[1:]), (fields[0].double(), *fields[1:])]
        + [(*fields[:3], fields[0], *fields[4:])],
        "samples": [11, 13],
        "scores": [logits, logits[:, 0], logits[0].double(), logits[0].half(), logits[0].to("meta")]
        + [labels, None, torch.nn.Parameter(logits[0])],
        "beta": [torch.nan, 2e29, -2e29, 1, True, None, "text"],
        "keep": [True, 0, 13, -1, 2**70, 0.0, -0.5, 1.5, torch.nan, None, "all"]
        + [torch.tensor(0.5)],
        "ids": [ids.int(), ids[:11], ids[:, None], ids + 1, ids - 1, ids.flip(0)[::2], 3],
        "ignored": [True, 2**70, 1.0, "none"],
    }
    native = cpu.native.module
    checked_before = {("score_and_select", "beta"), ("cross_entropy", "beta")}
    for name, usual in {
        "select": {"scores": logits.flatten()[:12], "keep": 0.5},
        "score": {"logits": logits, "labels": labels, "beta": 1.0, "ignored": None},
        "sample_statistics": {"logits": logits, "labels": labels, "ignored": None},
        "score_and_select": {"logits": logits, "labels": labels, "fields": fields, "samples": 12}
        | {"beta": 1.0, "keep": 0.5, "ids": ids, "ignored": None},
        "cross_entropy": {"logits": logits, "labels": labels, "fields": fields, "samples": 12}
        | {"beta": 1.0, "ids": ids, "ignored": None, "reduction": 0, "recorded": False},
    }.items():
        plain = getattr(native, f"plain_{name}")
        for argument in usual.keys() & unusual.keys():
            if (name, argument) in checked_before:  # by the state
                continue
            for value in unusual[argument]:
                assert plain(*(usual | {argument: value}).values()) is None, (name, argument, value)
        with pytest.raises(TypeError, match=f"expected {len(usual)} arguments, got 1"):
            plain(logits)
        if "fields" in usual:
            without_ids = usual | {"fields": small, "samples": 11, "ids": None}
            assert plain(*without_ids.values()) is None
        if way == "exchange":
            for argument in usual.keys() & {"samples", "reduction"}:
                with pytest.raises(TypeError):
                    plain(*(usual | {argument: "a number"}).values())
    assert same(fields, cpu.native.state_tensors(emp.EMPState(12)))
    with pytest.raises(TypeError, match="expected 2 arguments, got 1"):
        native.plain_gather(logits)


def test_a_state_whose_tensors_were_replaced_is_not_written_beyond_them(way):
    state = emp.EMPState(4)
    state.score = torch.full((1000,), torch.inf)
    logits, labels = torch.randn(1000, 3), torch.zeros(1000, dtype=torch.long)
    with pytest.raises(ValueError, match="got a state of 4 samples"):
        emp.score_and_select(logits, labels, state)
    ids = torch.arange(1000)
    calls = [
        lambda: emp.score_and_select(logits, labels, state, indices=ids),
        lambda: emp.cross_entropy(logits, labels, state, indices=ids),
        lambda: state.update(ids, emp.score(logits, labels)),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="incompatible function arguments"):
            call()
    for name in ("loss", "entropy", "updates", "selections", "seen_at"):
        assert len(getattr(state, name)) == 4
        assert not getattr(state, name).any()
