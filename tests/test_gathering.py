"""gather: every dtype, layout and container, bit for bit what index_select returns."""

import collections
import copy
import types
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad

import emp_kernels as emp

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32,
    torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64, torch.bool,
    torch.complex64, torch.complex128,
]  # fmt: skip
INDEX_DTYPES = [torch.int64, torch.int32, torch.int16, torch.int8]
INDEX_DTYPES += [torch.uint8, torch.uint16, torch.uint32, torch.uint64]


class Pair(NamedTuple):
    image: torch.Tensor
    label: torch.Tensor


def source(shape, dtype=torch.float32, seed=0):
    """A tensor of random bytes, so that NaN payloads count."""
    generator = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.rand(shape, generator=generator) < 0.5
    size = torch.empty((), dtype=dtype).element_size()
    raw = torch.randint(256, (*shape, size), generator=generator, dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


def same_bits(a, b):
    """Equal shapes, dtypes and bytes."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    a, b = (x.detach().resolve_conj().resolve_neg().contiguous().reshape(-1) for x in (a, b))
    return a.numel() == 0 or torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def rows_of(tensor, indices):
    """index_select, which takes no 1-D tensor of the wide unsigned dtypes."""
    if tensor.dim() > 1:
        return tensor.index_select(0, indices)
    return tensor[:, None].index_select(0, indices)[:, 0]


def check(tensor, indices):
    """gather of one tensor, allocated and with out=, against index_select."""
    version = tensor._version
    want = rows_of(tensor, indices.to(torch.int64))
    got = emp.gather(tensor, indices)
    assert same_bits(got, want)
    assert got.is_contiguous()
    out = torch.empty_like(want, memory_format=torch.contiguous_format)
    returned = emp.gather(tensor, indices, out=out)
    assert returned is out
    assert same_bits(out, want)
    assert tensor._version == version
    return got


def index_sets(n):
    """Ascending, in any order, duplicated, one run, none."""
    generator = torch.Generator().manual_seed(n)
    order = torch.randperm(n, generator=generator)
    sets = [
        order[: n // 3].sort().values,
        order,
        torch.arange(n),
        torch.tensor([], dtype=torch.long),
    ]
    sets += [torch.tensor([0]), torch.tensor([n - 1]), torch.arange(n).flip(0)]
    sets += [torch.randint(n, (2 * n,), generator=generator), torch.zeros(n + 3, dtype=torch.long)]
    runs = torch.arange(n)
    return [*sets, runs[(runs // 5) % 2 == 0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype(dtype, as_default):
    for shape in [(31,), (31, 1), (31, 3), (31, 17), (31, 2, 3, 4), (31, 130)]:
        for indices in index_sets(31):
            check(source(shape, dtype), indices)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 12, 15, 16, 17, 31, 32, 33, 63, 64, 65])
def test_small_rows(size, as_default):
    for indices in index_sets(257):
        check(source((257, size), torch.uint8), indices)


@pytest.mark.parametrize("size", [100, 127, 128, 129, 255, 256, 257, 784, 1000, 3072, 4096, 5000])
def test_large_rows(size, as_default):
    for indices in index_sets(150):
        check(source((150, size), torch.uint8), indices)


@pytest.mark.parametrize("dtype", INDEX_DTYPES, ids=str)
def test_index_dtypes(dtype, as_default):
    tensor = source((200, 6))
    indices = torch.tensor([0, 5, 5, 127, 3, 99])
    check(tensor, indices.to(dtype))
    check(tensor, indices.repeat_interleave(2).to(dtype)[::2])
    if torch.iinfo(dtype).max >= 199:
        check(tensor, torch.tensor([199, 0, 198]).to(dtype))


def test_index_layouts(as_default):
    tensor = source((200, 6))
    check(tensor, torch.arange(200)[::3])
    check(tensor, torch.tensor(7).expand(50))
    check(tensor, torch.arange(400).view(200, 2)[:, 0] // 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.complex64], ids=str)
def test_source_layouts(dtype, as_default):
    wide = source((60, 40), dtype)
    cube = source((20, 12, 8), dtype)
    layouts = [
        wide[:, :33],  # rows padded
        wide[:, 3:4],
        wide[:, 5],  # one column
        wide[::2],
        wide[10:],
        wide.t(),
        wide[:, ::3],
        wide[:1].expand(50, 40),
        wide[:, :1].expand(60, 9),
        wide[0, 0].expand(30),
        wide.as_strided((50, 30), (7, 1)),
        cube.transpose(0, 1),
        cube.permute(2, 0, 1),
        cube[:, 2:7, ::2],
        cube[:, :, 0],
        cube[:, None].expand(20, 3, 12, 8),
        source((8, 3, 6, 6), dtype).contiguous(memory_format=torch.channels_last),
        wide.view(-1)[1:-5].view(-1, 6),
    ]
    for tensor in layouts:
        for indices in index_sets(len(tensor)):
            check(tensor, indices)


def test_empty_sources_and_rows(as_default):
    none = torch.tensor([], dtype=torch.int64)
    check(source((0,)), none)
    check(source((0, 5)), none)
    check(source((4, 0)), torch.tensor([3, 0, 0]))
    check(source((4, 0, 3)), torch.tensor([1]))
    check(source((4, 5)), none)


def test_lazily_conjugated_and_negated_sources(as_default):
    """Lazily negated or conjugated views, whose memory holds other numbers."""
    z = torch.randn(10, 3, dtype=torch.complex64)
    for tensor in (z.conj(), z.conj().imag):
        assert tensor.is_conj() or tensor.is_neg()
        assert torch.equal(emp.gather(tensor, torch.tensor([3, 1])), tensor[[3, 1]])
        out = torch.zeros(2, 3, dtype=tensor.dtype)
        emp.gather(tensor, torch.tensor([3, 1]), out=out)
        assert torch.equal(out, tensor[[3, 1]])
    conjugated = torch.zeros(2, 3, dtype=torch.complex64)
    emp.gather(z, torch.tensor([3, 1]), out=conjugated.conj())
    assert torch.equal(conjugated.conj(), z[[3, 1]])


def test_large_tensors(as_default, threads):
    tensor = source((70_000, 33), torch.int16)
    generator = torch.Generator().manual_seed(1)
    ascending = torch.randperm(70_000, generator=generator)[:21_000].sort().values
    for count in threads:
        torch.set_num_threads(count)
        check(tensor, ascending)
        check(tensor, torch.randint(70_000, (100_000,), generator=generator))


def test_offsets_beyond_32_bits(as_default):
    """Rows that start beyond 2^31 bytes; only their pages are touched."""
    storage = torch.empty(2**31 + 10_000, dtype=torch.uint8)
    rows = storage.as_strided((3, 100), (2**30 + 7, 1))
    rows.copy_(source((3, 100), torch.uint8))
    check(rows, torch.tensor([2, 0, 2, 1]))


def test_memory_mapped_source(tmp_path, as_default):
    path = tmp_path / "rows.bin"
    values = source((500, 40))
    path.write_bytes(values.numpy().tobytes())
    mapped = torch.from_file(str(path), shared=False, size=values.numel()).view(500, 40)
    indices = torch.arange(0, 500, 7)
    assert same_bits(emp.gather(mapped, indices), values[indices])
    assert path.read_bytes() == values.numpy().tobytes()


def test_the_result_is_a_copy(as_default):
    tensor = torch.arange(10.0)
    got = emp.gather(tensor, torch.arange(10))
    got.zero_()
    assert tensor.tolist() == list(range(10))


# ---- containers


def test_containers_keep_their_types(as_default):
    a, b = source((9, 4)), source((9,), torch.int64)
    indices = torch.tensor([8, 0, 3, 3])
    wa, wb = a[indices], b[indices]

    got = emp.gather({"x": a, "y": b}, indices)
    assert type(got) is dict
    assert list(got) == ["x", "y"]
    assert same_bits(got["x"], wa)
    assert same_bits(got["y"], wb)

    for kind in (list, tuple):
        got = emp.gather(kind([a, b]), indices)
        assert type(got) is kind
        assert same_bits(got[0], wa)
        assert same_bits(got[1], wb)

    got = emp.gather(Pair(a, b), indices)
    assert type(got) is Pair
    assert same_bits(got.image, wa)
    assert same_bits(got.label, wb)

    got = emp.gather(collections.OrderedDict([("z", b), ("a", a)]), indices)
    assert type(got) is collections.OrderedDict
    assert list(got) == ["z", "a"]
    assert same_bits(got["a"], wa)

    factory = collections.defaultdict(list, x=a)
    got = emp.gather(factory, indices)
    assert type(got) is collections.defaultdict
    assert got.default_factory is list
    assert same_bits(got["x"], wa)
    assert factory["x"] is a  # the argument keeps its own tensors

    view = types.MappingProxyType({"x": a})
    got = emp.gather(view, indices)
    assert isinstance(got, types.MappingProxyType)
    assert same_bits(got["x"], wa)

    user = collections.UserDict({"x": a, 3: b})
    got = emp.gather(user, indices)
    assert type(got) is collections.UserDict
    assert same_bits(got[3], wb)
    assert user["x"] is a


@dataclass
class Features:
    pixels: torch.Tensor
    mask: torch.Tensor | None = None
    views: list[torch.Tensor] = field(default_factory=list)
    size: Any = field(init=False, default=None)

    def __post_init__(self):
        self.made = getattr(self, "made", 0) + 1


@dataclass(frozen=True, slots=True)
class Sample:
    features: Features
    label: torch.Tensor


def test_dataclasses_keep_their_types(as_default):
    a, b = source((9, 4)), source((9,), torch.int64)
    indices = torch.tensor([8, 0, 3, 3])
    features = Features(a, views=[b, a])
    features.size = b
    features.name = "crops"  # no field of the class
    batch = {"samples": Sample(features, b)}
    got = emp.gather(batch, indices)["samples"]
    assert type(got) is Sample
    assert type(got.features) is Features
    assert got.features.mask is None
    assert (got.features.name, got.features.made) == ("crops", 1)
    tensors = (got.features.pixels, *got.features.views, got.features.size, got.label)
    for ours, own in zip(tensors, (a, b, a, b, b), strict=True):
        assert same_bits(ours, own[indices])
    assert batch["samples"].features.pixels is a

    out = copy.deepcopy(got)
    out.features.pixels.zero_()
    assert emp.gather(batch["samples"], indices, out=out) is out
    assert same_bits(out.features.pixels, a[indices])
    out.features.mask = out.features.pixels
    with pytest.raises(TypeError, match="out must have the structure of batch"):
        emp.gather(batch["samples"], indices, out=out)
    with pytest.raises(
        TypeError, match="NamedTuple or dataclass of tensors, got a leaf of type type"
    ):
        emp.gather(Sample, indices)
    with pytest.raises(TypeError, match="got a leaf of type str"):
        emp.gather(Features(a, mask="none"), indices)


def test_model_outputs_keep_their_type(as_default):
    outputs = pytest.importorskip("transformers.modeling_outputs")  # optional package
    a, b = source((9, 4)), source((9, 2, 3))
    indices = torch.tensor([8, 0, 3, 3])
    batch = outputs.BaseModelOutput(last_hidden_state=a, hidden_states=(a, b))
    got = emp.gather(batch, indices)
    assert type(got) is outputs.BaseModelOutput
    assert list(got) == ["last_hidden_state", "hidden_states"]
    assert got.attentions is None
    assert same_bits(got.last_hidden_state, a[indices])
    assert same_bits(got["hidden_states"][1], b[indices])
    assert got.to_tuple()[0] is got.last_hidden_state
    assert batch.last_hidden_state is a
    assert batch["last_hidden_state"] is a


class Items(MutableMapping):
    """A mapping of which a shallow copy shares the items."""

    def __init__(self, items=()):
        self.items_ = dict(items)

    def __getitem__(self, key):
        return self.items_[key]

    def __setitem__(self, key, value):
        self.items_[key] = value

    def __delitem__(self, key):
        del self.items_[key]

    def __iter__(self):
        return iter(self.items_)

    def __len__(self):
        return len(self.items_)


def test_a_mapping_of_the_users_own_keeps_its_tensors():
    a, b = source((9, 4)), source((9,), torch.int64)
    batch = Items({"x": a, "y": b})
    got = emp.gather(batch, torch.tensor([8, 0]))
    assert type(got) is Items
    assert same_bits(got["x"], a[[8, 0]])
    assert same_bits(got["y"], b[[8, 0]])
    assert batch["x"] is a
    assert batch["y"] is b


def test_nested_containers(as_default):
    a, b, c = source((9, 4)), source((9,), torch.int64), source((9, 2, 5), torch.bfloat16)
    batch = {"pair": Pair(a, b), "list": [a, {"deep": (c, [b])}], "none": [], "empty": {}}
    indices = torch.tensor([1, 7])
    got = emp.gather(batch, indices)
    assert list(got) == ["pair", "list", "none", "empty"]
    assert type(got["pair"]) is Pair
    assert type(got["list"][1]["deep"]) is tuple
    assert got["none"] == []
    assert got["empty"] == {}
    for have, want in [
        (got["pair"].image, a), (got["pair"].label, b), (got["list"][0], a),
        (got["list"][1]["deep"][0], c), (got["list"][1]["deep"][1][0], b),
    ]:  # fmt: skip
        assert same_bits(have, want[indices])


def test_tensors_of_different_lengths(as_default):
    got = emp.gather([source((4, 2)), source((9,))], torch.tensor([3, 0]))
    assert [len(x) for x in got] == [2, 2]


def test_empty_containers(as_default):
    indices = torch.tensor([1])
    assert emp.gather({}, indices) == {}
    assert emp.gather([], indices) == []
    assert emp.gather((), indices) == ()


def test_out_in_containers(as_default):
    a, b = source((9, 4)), source((9,), torch.int64)
    indices = torch.tensor([8, 0, 3])
    out = {"p": Pair(torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64))}
    kept = out["p"].image
    assert emp.gather({"p": Pair(a, b)}, indices, out=out) is out
    assert out["p"].image is kept
    assert same_bits(kept, a[indices])
    assert same_bits(out["p"].label, b[indices])


# ---- autograd


def test_gradients_equal_those_of_index_select(as_default):
    values = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    indices = torch.tensor([11, 0, 3, 3, 3, 7])
    weight = torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    grads = []
    for function in (emp.gather, lambda x, i: x.index_select(0, i)):
        leaf = values.clone().requires_grad_()
        (function(leaf, indices) * weight).sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


@pytest.mark.parametrize("size", [6, 60_000])
def test_forward_mode_is_that_of_index_select(size, as_default):
    values, tangent = torch.randn(2, size, 3)
    indices = torch.randint(size, (size,))
    with forward_ad.dual_level():
        got = emp.gather([forward_ad.make_dual(values, tangent)], indices)[0]
        assert torch.equal(forward_ad.unpack_dual(got).tangent, tangent[indices])
    _, got = torch.func.jvp(lambda x: emp.gather(x, indices), (values,), (tangent,))
    assert torch.equal(got, tangent[indices])


def test_gradcheck(as_default):
    leaf = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    indices = torch.tensor([5, 1, 1, 0])
    assert torch.autograd.gradcheck(lambda x: emp.gather(x, indices), leaf)
    assert torch.autograd.gradgradcheck(lambda x: emp.gather(x, indices), leaf)
    assert torch.autograd.gradcheck(
        lambda x: emp.gather({"a": x * 2, "b": [x]}, indices.to(torch.int32))["a"], leaf
    )


def test_a_batch_with_and_without_grad(as_default):
    leaf = torch.randn(5, 2, requires_grad=True)
    plain = torch.arange(5)
    got = emp.gather([plain, leaf, plain.float()], torch.tensor([4, 2]))
    assert [x.requires_grad for x in got] == [False, True, False]
    assert got[0].tolist() == [4, 2]
    with torch.no_grad():
        got = emp.gather(leaf, torch.tensor([4, 2]))
    assert not got.requires_grad
    assert torch.equal(got, leaf.detach()[[4, 2]])


# ---- errors


@pytest.mark.parametrize("bad", [-1, 10, 2**31, -(2**62)])
def test_an_index_out_of_range_writes_nothing(bad, as_default):
    tensor = source((10, 3))
    for place in range(3):
        indices = torch.tensor([1, 2, 3])
        indices[place] = bad
        with pytest.raises(ValueError, match=rf"gather: indices must be in \[0, 10\), got {bad}"):
            emp.gather(tensor, indices)
        out = [torch.zeros(3, 3), torch.zeros(3, 3)]
        with pytest.raises(ValueError, match="gather: indices must be in"):
            emp.gather([source((10**3, 3)), tensor], indices, out=out)
        assert not any(x.any() for x in out)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 8, 16, 40, 70])
@pytest.mark.parametrize("bad", [-1, 50, 2**63 - 1, -(2**63)])
def test_an_index_out_of_range_at_every_place(size, bad, as_default):
    """Narrow rows are copied while their indices are checked; wide ones after a block of checks."""
    for tensor in (source((50, size), torch.uint8), source((50, 80), torch.uint8)[:, :size]):
        for place in range(11):
            indices = torch.arange(11)
            indices[place] = bad
            with pytest.raises(ValueError, match=rf"must be in \[0, 50\), got {bad}"):
                emp.gather(tensor, indices)


def test_an_index_out_of_range_for_the_second_tensor_only(as_default):
    out = [torch.zeros(2, 3), torch.zeros(2, 3)]
    with pytest.raises(ValueError, match=r"gather: indices must be in \[0, 4\), got 7"):
        emp.gather([source((10, 3)), source((4, 3))], torch.tensor([1, 7]), out=out)
    assert not any(x.any() for x in out)


def test_an_index_into_nothing(as_default):
    with pytest.raises(ValueError, match=r"gather: indices must be in \[0, 0\), got 0"):
        emp.gather(source((0, 3)), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"gather: indices must be in \[0, 4\), got 4"):
        emp.gather(source((4, 0)), torch.tensor([4]))


def test_uint64_indices_do_not_wrap(as_default):
    with pytest.raises(ValueError, match=r"gather: indices must be in \[0, 4\)"):
        emp.gather(source((4, 2)), torch.tensor([1, 2**64 - 1], dtype=torch.uint64))


@pytest.mark.parametrize("leaf", [3, 2.5, "text", None, b"bytes", {1, 2}, object(), range(3)])
def test_other_leaves(leaf, as_default):
    indices = torch.tensor([0])
    for batch in (leaf, [leaf], {"a": source((3,)), "b": leaf}, Pair(source((3,)), leaf)):
        with pytest.raises(TypeError, match="gather: batch must be a tensor or a mapping"):
            emp.gather(batch, indices)


@pytest.mark.parametrize(
    "indices", [[0, 1], 0, None, "0", torch.tensor([0.0]), torch.tensor([True])]
)
def test_indices_that_are_no_integer_tensor(indices):
    with pytest.raises(TypeError, match="gather: indices must"):
        emp.gather(source((3,)), indices)


@pytest.mark.parametrize("shape", [(), (1, 1), (2, 0)])
def test_indices_that_are_not_one_dimensional(shape):
    with pytest.raises(ValueError, match=r"gather: indices must have shape \(K,\)"):
        emp.gather(source((3,)), torch.zeros(shape, dtype=torch.int64))


def test_a_tensor_without_rows():
    with pytest.raises(ValueError, match="gather: batch must"):
        emp.gather([torch.tensor(3.0)], torch.tensor([0]))


def test_wrong_out(as_default):
    tensor, indices = source((6, 4)), torch.tensor([1, 5])
    wrong = [
        (TypeError, torch.zeros(2, 4, dtype=torch.float64)),
        (TypeError, [torch.zeros(2, 4)]),
        (TypeError, "out"),
        (ValueError, torch.zeros(3, 4)),
        (ValueError, torch.zeros(2, 5)),
        (ValueError, torch.zeros(8)),
        (ValueError, torch.zeros(4, 2).t()),
        (ValueError, torch.zeros(1, 4).expand(2, 4)),
        (ValueError, torch.zeros(2, 4, device="meta")),
        (ValueError, torch.zeros(2, 4, requires_grad=True)),
        (ValueError, tensor[2:4]),
    ]
    before = tensor.clone()
    for error, out in wrong:
        with pytest.raises(error, match="gather: "):
            emp.gather(tensor, indices, out=out)
        assert same_bits(tensor, before)
        if isinstance(out, torch.Tensor) and out.device.type == "cpu" and out is not wrong[-1][1]:
            assert not out.any()
    for batch, out in [
        ({"a": tensor}, {"b": torch.zeros(2, 4)}),
        ([tensor], (torch.zeros(2, 4),)),
        ([tensor], []),
        ([tensor, tensor], [torch.zeros(2, 4)]),
        (Pair(tensor, tensor), (torch.zeros(2, 4), torch.zeros(2, 4))),
    ]:
        with pytest.raises(TypeError, match="gather: out must"):
            emp.gather(batch, indices, out=out)
    shared = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="gather: out must"):
        emp.gather([tensor, tensor], indices, out=[shared, shared])


@given(
    rows=st.integers(1, 40),
    width=st.integers(0, 70),
    dtype=st.sampled_from(DTYPES),
    picks=st.lists(st.integers(0, 39), max_size=90),
    start=st.integers(0, 3),
    step=st.integers(1, 3),
)
def test_any_rows(as_default, rows, width, dtype, picks, start, step):
    tensor = source((rows, start + step * width), dtype, seed=rows)[:, start::step]
    indices = torch.tensor([p % rows for p in picks], dtype=torch.int64)
    assert same_bits(emp.gather(tensor, indices), rows_of(tensor, indices))
