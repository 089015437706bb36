"""score, sample_statistics and select give the same results for every kind of array as for
tensors."""

import warnings

import numpy as np
import pytest
import torch

import emp_kernels as emp
from emp_kernels.arrays import as_tensor

N, C = 40, 7
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(N, C, generator=GENERATOR)
LABELS = torch.randint(C, (N,), generator=GENERATOR)


class WithArray:
    """Has nothing but ``__array__``."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


class WithDLPack:
    """Has nothing but DLPack."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __dlpack__(self, **options):
        return self.tensor.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


class ReadOnlyDLPack(WithArray):
    """Exports no read-only memory by DLPack, as NumPy's older arrays."""

    def __dlpack__(self, **options):
        raise BufferError("read-only")

    def __dlpack_device__(self):
        return (1, 0)


def read_only(tensor):
    array = tensor.numpy().copy()
    array.flags.writeable = False
    return array


def swapped(tensor):
    array = tensor.numpy()
    return array.astype(array.dtype.newbyteorder())


def unaligned(tensor):
    """The same numbers at an odd address."""
    array = tensor.numpy()
    memory = np.zeros(array.nbytes + 1, np.uint8)
    memory[1:] = np.frombuffer(array.tobytes(), np.uint8)
    found = memory[1:].view(array.dtype).reshape(array.shape)
    assert not found.flags.aligned
    return found


KINDS = {
    "numpy": lambda x: x.numpy(),
    "read-only": read_only,
    "fortran": lambda x: np.asfortranarray(x.numpy()),
    "reversed": lambda x: np.ascontiguousarray(x.numpy()[::-1])[::-1],
    "field of a record": lambda x: np.rec.fromarrays([x.numpy(), x.numpy().astype("i1")]).f0,
    "byte order": swapped,
    "unaligned": unaligned,
    "__array__": lambda x: WithArray(x.numpy()),
    "DLPack": WithDLPack,
    "DLPack refused": lambda x: ReadOnlyDLPack(read_only(x)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_those_of_tensors(kind, backend):
    make = KINDS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = emp.score(make(LOGITS), make(LABELS), backend=backend)
        statistics = emp.sample_statistics(make(LOGITS), make(LABELS), backend=backend)
        chosen = emp.select(make(scores.score), 0.3, backend=backend)
    for found, want in (
        (scores, emp.score(LOGITS, LABELS, backend=backend)),
        (statistics, emp.sample_statistics(LOGITS, LABELS, backend=backend)),
    ):
        for ours, theirs in zip(found, want, strict=True):
            assert torch.equal(ours, theirs)
    assert torch.equal(chosen, emp.select(scores.score, 0.3, backend=backend))


def test_a_mapped_file_is_read_where_it_lies(tmp_path):
    np.save(tmp_path / "logits.npy", LOGITS.numpy())
    mapped = np.load(tmp_path / "logits.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = as_tensor("score", "logits", mapped)
    assert tensor.data_ptr() == mapped.ctypes.data
    del mapped
    assert torch.equal(tensor, LOGITS)  # it keeps the file mapped
    assert not np.load(tmp_path / "logits.npy", mmap_mode="r").flags.writeable


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.uint8, np.int32, np.uint64])
def test_dtypes_stay(dtype):
    array = (10 * LOGITS.abs()).numpy().astype(dtype)
    tensor = as_tensor("score", "logits", array)
    np.testing.assert_array_equal(tensor.numpy(), array)
    assert tensor.numpy().dtype == dtype


def test_bfloat16_of_another_library():
    kind = pytest.importorskip("ml_dtypes").bfloat16  # optional package
    tensor = as_tensor("score", "logits", LOGITS.numpy().astype(kind))
    assert torch.equal(tensor, LOGITS.bfloat16())


def test_frames_and_columns():
    pandas, pyarrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    want = emp.score(LOGITS, LABELS)
    frame = pandas.DataFrame(LOGITS.numpy())
    for labels in (pandas.Series(LABELS.numpy()), pyarrow.array(LABELS.numpy())):
        for ours, theirs in zip(emp.score(frame, labels), want, strict=True):
            assert torch.equal(ours, theirs)
    assert torch.equal(emp.select(pyarrow.array(want.score.numpy()), 9), emp.select(want.score, 9))


class Broken:
    def __array__(self, dtype=None, copy=None):
        raise OverflowError("no numbers here")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (np.array([[None, 1.0]]), "a dtype that torch has, got object"),
        (np.array([["a", "b"]]), "a dtype that torch has, got <U1"),
        (Broken(), r"readable as an array \(no numbers here\), got Broken"),
        ([[1.0, 2.0]], "a torch.Tensor, got list"),
        (WithArray, "a torch.Tensor, got type"),
        (np.ma.masked_less(LOGITS.numpy(), 0), "a torch.Tensor, got MaskedArray"),
        (np.zeros((3, 4), np.int64), "float32, float16, bfloat16 or float64, got torch.int64"),
    ],
)
def test_what_is_no_array_of_numbers(wrong, words):
    with pytest.raises(TypeError, match=f"^score: logits must be {words}|^score: .*{words}"):
        emp.score(wrong, LABELS)
