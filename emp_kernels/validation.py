"""Checks of public arguments. Each raises ``function: argument must rule, got value``.

Types, shapes and devices are checked here, once, by the public functions, for all arguments except
those that :func:`emp_kernels.backends.plain` takes unchecked. Values inside a tensor (the range of
labels or ids) are checked by the backend: by native code, which reads them anyway, or by torch
operations here. All error messages are defined here.
"""

import numbers
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import torch

from .tracing import recording, transforming

FLOAT_DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.float64})
LARGEST_BETA = 1e29
BINARY = "binary classification needs two columns, torch.stack([torch.zeros_like(z), z], -1)"
INTEGER_DTYPES = frozenset(
    {torch.int64, torch.int32, torch.int16, torch.int8}
    | {torch.uint8, torch.uint16, torch.uint32, torch.uint64}
)


def describe(value: Any) -> str:
    """A short description of a wrong argument: a tensor's dtype and shape, else its type."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} of shape {tuple(value.shape)}"
    return type(value).__name__


def in_memory(tensor: torch.Tensor) -> bool:
    """Whether the data of `tensor` is at its address, unlike in subclasses that dispatch their own
    operations, such as DTensor and FakeTensor. Under tracing it is assumed to be."""
    kind = type(tensor)
    return (
        kind is torch.Tensor
        or kind.__torch_dispatch__ is torch.Tensor.__torch_dispatch__
        or recording()
    )


def check_strided(function: str, name: str, tensor: torch.Tensor) -> None:
    """Raise unless `tensor` is an ordinary dense tensor: sparse and other layouts have no rows in
    memory, and wrapper tensors, as in torch.func, have no memory."""
    strided = tensor.layout is torch.strided and not tensor.is_nested
    if type(tensor) is not torch.Tensor or not strided or transforming() is not None:
        _refuse_unusual(function, name, tensor)


def _refuse_unusual(function: str, name: str, tensor: torch.Tensor) -> None:
    """Raise an error that names the kind of `tensor` and what to pass instead; return if it has
    rows after all."""
    kind = type(tensor).__name__
    if tensor.is_nested:
        raise TypeError(
            f"{function}: {name} must have rows of one length (of a nested tensor, pass its "
            f"to_padded_tensor(0.0)), got {kind} of layout {tensor.layout}"
        )
    if tensor.layout is not torch.strided:
        raise TypeError(
            f"{function}: {name} must have layout torch.strided (pass its to_dense()), "
            f"got {tensor.layout}"
        )
    if not in_memory(tensor):
        fake = "call outside of FakeTensorMode, or under torch.compile"
        instead = fake if kind == "FakeTensor" else "of a DTensor, pass its to_local()"
        raise TypeError(f"{function}: {name} must lie in memory ({instead}), got {kind}")
    if recording():
        return
    if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        raise TypeError(
            f"{function}: {name} must lie in memory (call outside of torch.func's transforms, with "
            "all rows at once), got a tensor of theirs"
        )


def check_logits(function: str, logits: torch.Tensor, name: str = "logits") -> None:
    """Raise unless `logits` is a floating tensor with at least rows and columns. torch.func's
    tensors are detected later, in `check_labels`, to save time here."""
    if not isinstance(logits, torch.Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor, got {type(logits).__name__}")
    if logits.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{function}: {name} must be float32, float16, bfloat16 or float64, got {logits.dtype}"
        )
    strided = logits.layout is torch.strided and not logits.is_nested
    if type(logits) is not torch.Tensor or not strided:
        _refuse_unusual(function, name, logits)
    if logits.dim() < 2:
        shapes = "(N, C) or (..., C)"
        if name == "logits":
            shapes += f", or (C,) with a label () ({BINARY})"
        raise ValueError(f"{function}: {name} must have shape {shapes}, got {tuple(logits.shape)}")


def check_labels(
    function: str, labels: torch.Tensor, logits: torch.Tensor, name: str = "logits"
) -> None:
    """Raise unless `labels` is an integer tensor with the logits' leading shape, on their
    device."""
    if not isinstance(labels, torch.Tensor):
        raise TypeError(f"{function}: labels must be a torch.Tensor, got {type(labels).__name__}")
    if labels.dtype not in INTEGER_DTYPES:
        one = f" ({BINARY})" if logits.shape[-1] == 1 else ""
        raise TypeError(f"{function}: labels must have an integer dtype{one}, got {labels.dtype}")
    strided = labels.layout is torch.strided and not labels.is_nested
    if type(labels) is not torch.Tensor or not strided or transforming() is not None:
        _refuse_unusual(function, name, logits)
        _refuse_unusual(function, "labels", labels)
    shape, whole = labels.shape, logits.shape
    # Most labels are (N,); slicing a shape would cost as much as all these checks.
    alike = len(shape) == 1 and len(whole) == 2 and shape[0] == whole[0]
    if not alike and shape != whole[:-1]:
        raise ValueError(
            f"{function}: labels must have the leading shape of {name} {tuple(whole[:-1])}"
            f"{_other_shape(shape, whole, name)}, got {tuple(shape)}"
        )
    check_same_device(function, "labels", labels, name, logits)


def _other_shape(shape: torch.Size, whole: torch.Size, name: str) -> str:
    """A hint for labels of `shape` with logits of shape `whole`, if the mistake is recognisable."""
    if shape == (*whole[:-1], 1):
        return " (pass labels.squeeze(-1))"
    if len(whole) > 2 and shape == (whole[0], *whole[2:]):
        return f" (classes come last: pass {name}.movedim(1, -1))"
    return ""


def check_scores(
    function: str, scores: torch.Tensor, name: str = "scores", shape: str = "(N,)"
) -> None:
    """Raise unless `scores` is a floating tensor of one dimension, called `shape` in the error."""
    if not isinstance(scores, torch.Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor, got {type(scores).__name__}")
    if scores.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{function}: {name} must have a floating dtype, got {scores.dtype}")
    check_strided(function, name, scores)
    if scores.dim() != 1:
        raise ValueError(f"{function}: {name} must have shape {shape}, got {tuple(scores.shape)}")


def check_same_device(
    function: str, name: str, tensor: torch.Tensor, other_name: str, other: torch.Tensor
) -> None:
    """Raise unless both tensors are on the same device."""
    if not (tensor.is_cpu and other.is_cpu) and tensor.device != other.device:
        raise ValueError(
            f"{function}: {name} must be on the device of {other_name} ({other.device}), "
            f"got {tensor.device}"
        )


def check_ids(function: str, name: str, ids: torch.Tensor, rows: int | None = None) -> None:
    """Raise unless `ids` is a 1-D integer tensor, of `rows` elements if `rows` is given."""
    if not isinstance(ids, torch.Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor, got {type(ids).__name__}")
    if ids.dtype not in INTEGER_DTYPES:
        raise TypeError(f"{function}: {name} must have an integer dtype, got {ids.dtype}")
    check_strided(function, name, ids)
    if ids.dim() != 1 or (rows is not None and ids.shape[0] != rows):
        shape = "(K,)" if rows is None else f"({rows},)"
        raise ValueError(f"{function}: {name} must have shape {shape}, got {tuple(ids.shape)}")


def check_ignore_index(function: str, ignore_index: int | None) -> int | None:
    """Return `ignore_index` if it is None or an int that fits in int64."""
    if ignore_index is None:
        return None
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, numbers.Integral):
        raise TypeError(
            f"{function}: ignore_index must be an int or None, got {type(ignore_index).__name__}"
        )
    value = int(ignore_index)
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"{function}: ignore_index must fit in int64, got {value}")
    return value


def check_beta(function: str, beta: float) -> float:
    """Return `beta`, the memory term's weight, as a float for which no score overflows: entropies
    are below 44, and 44 * beta is less than one ulp of the largest float32."""
    beta = check_real(function, "beta", beta)
    if not -LARGEST_BETA <= beta <= LARGEST_BETA:  # NaN is not
        rule = f"beta must be finite and from {-LARGEST_BETA} to {LARGEST_BETA}"
        raise ValueError(f"{function}: {rule}, got {beta}")
    return beta


def check_real(function: str, name: str, value: float) -> float:
    """`value` as a float."""
    if type(value) is float:
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{function}: {name} must be a real number, got {type(value).__name__}")
    return float(value)


def check_int(function: str, name: str, value: int) -> int:
    """`value` as an int; bools are rejected."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{function}: {name} must be an int, got {type(value).__name__}")
    return int(value)


def check_size(function: str, name: str, value: int) -> int:
    """`value` as an int of at least 0."""
    value = check_int(function, name, value)
    if value < 0:
        raise ValueError(f"{function}: {name} must be at least 0, got {value}")
    return value


def check_snapshot(
    function: str, state_dict: Mapping[str, Any], version: int, entries: Sequence[str]
) -> None:
    """Raise unless `state_dict` is a mapping with `entries` and the "version" `version`."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(
            f"{function}: state_dict must be a mapping, got {type(state_dict).__name__}"
        )
    found = check_int(function, "version", state_dict.get("version", version))
    if found != version:
        raise ValueError(
            f"{function}: version must be {version}, got {found}: a "
            "checkpoint of another release of emp_kernels"
        )
    expected = (*entries, "version")
    missing = [name for name in expected if name not in state_dict]
    if missing:
        raise ValueError(
            f"{function}: state_dict must hold {', '.join(expected)}, "
            f"got one without {', '.join(missing)}"
        )


def as_int64(labels: torch.Tensor) -> torch.Tensor:
    """Labels as int64; uint64 values from 2**63 on are clamped to the largest int64."""
    signed = labels.to(torch.int64)
    if labels.dtype == torch.uint64:
        return signed.masked_fill(signed < 0, torch.iinfo(torch.int64).max)
    return signed


def check_label_range(
    function: str, labels: torch.Tensor, classes: int, ignore_index: int | None
) -> None:
    """On the CPU raise for the first label outside [0, classes) that is not ignored; on other
    devices, where this would synchronise, the row becomes invalid."""
    row = _first_outside(labels, classes, ignore_index)
    if row is not None:
        label = int(as_int64(labels.reshape(-1)[row]))
        raise_label_out_of_range(function, row, label, classes)


def check_id_range(function: str, ids: torch.Tensor, size: int) -> None:
    """On the CPU raise for the first of ids (K,) outside [0, size)."""
    position = _first_outside(ids, size, None)
    if position is not None:
        raise_id_out_of_range(function, position, int(as_int64(ids[position])), size)


def check_rows_in(function: str, rows: torch.Tensor, size: int) -> None:
    """On the CPU raise for the first of rows (K,) int64 outside [0, size)."""
    position = _first_outside(rows, size, None)
    if position is not None:
        raise_id_out_of_range(function, position, int(rows[position]), size, "rows")


def _first_outside(values: torch.Tensor, stop: int, ignored: int | None) -> int | None:
    """Position of the first of the flattened `values` outside [0, stop); None for other devices
    than the CPU."""
    if not values.is_cpu:
        return None
    values = as_int64(values.reshape(-1))
    bad = (values < 0) | (values >= stop)
    if ignored is not None:
        bad &= values != ignored
    return int(bad.nonzero()[0]) if bad.any() else None


def raise_label_out_of_range(function: str, row: int, label: int, classes: int) -> NoReturn:
    one = f" ({BINARY})" if classes == 1 else ""
    raise ValueError(f"{function}: labels must be in [0, {classes}){one}, got {label} in row {row}")


def raise_id_out_of_range(
    function: str, position: int, value: int, size: int, name: str = "indices"
) -> NoReturn:
    raise ValueError(
        f"{function}: {name} must be in [0, {size}), got {value} at position {position}"
    )
