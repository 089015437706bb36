"""Converts arrays of other libraries to tensors: NumPy, DLPack and ``__array__``."""

from typing import Any

import numpy as np
import torch


class _Writable:
    """Presents a read-only array (such as a memory-mapped file) as writable, which avoids torch's
    warning: the package never writes to its inputs."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array
        address, _ = array.__array_interface__["data"]
        self.__array_interface__ = array.__array_interface__ | {"data": (address, False)}


def as_tensor(function: str, name: str, value: Any) -> Any:
    """`value` as a tensor that shares its memory, or a copy where torch does not support the
    strides or the byte order. Anything that is not an array is returned unchanged; the argument
    checks reject it later.

    Raises:
        TypeError: an array whose dtype torch does not have, or one that cannot be read.
    """
    if type(value) is torch.Tensor:  # the common case; checks dominate the cost of a small batch
        return value
    if isinstance(value, (torch.Tensor, np.ma.MaskedArray)):
        return value
    if isinstance(value, np.ndarray):
        return _of_numpy(function, name, value)
    if hasattr(value, "__dlpack__") and not isinstance(value, np.generic):
        try:
            return torch.utils.dlpack.from_dlpack(value)
        except (BufferError, NotImplementedError, RuntimeError, TypeError, ValueError):
            pass  # read-only or another dtype: try it as an array
    if not hasattr(value, "__array__") or isinstance(value, type):
        return value
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever the other library raises
        kind = type(value).__name__
        raise TypeError(
            f"{function}: {name} must be readable as an array ({error}), got {kind}"
        ) from None
    return _of_numpy(function, name, array)


def _of_numpy(function: str, name: str, array: np.ndarray) -> torch.Tensor:
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    size = array.itemsize
    if not array.flags.aligned or any(stride < 0 or stride % size for stride in array.strides):
        array = array.copy()
    bfloat16 = array.dtype.name == "bfloat16"  # NumPy has none; ml_dtypes adds it
    if bfloat16:
        array = array.view(np.uint16)
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    try:
        tensor = torch.from_numpy(array)
    except TypeError:
        raise TypeError(
            f"{function}: {name} must have a dtype that torch has, got {array.dtype}"
        ) from None
    return tensor.view(torch.bfloat16) if bfloat16 else tensor
