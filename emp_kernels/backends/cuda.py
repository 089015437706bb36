"""CUDA backend: sorted gather and selection in C++, through emp_kernels._cuda."""

from typing import Any

import torch

from . import NO_ROCM, Unavailable

DEVICE = "cuda"
DTYPES = frozenset({torch.float32, torch.float16, torch.bfloat16})

_native: Any = None


def require() -> None:
    """Load the native module; raise if it was not built."""
    global _native
    if torch.version.hip is not None:
        raise Unavailable(NO_ROCM)
    try:
        import emp_kernels._cuda as native
    except ImportError as error:
        raise Unavailable(
            f"the native module emp_kernels._cuda is missing ({error}); build it with "
            "`pip install .` in the source tree, where nvcc is on the PATH"
        ) from None
    _native = native


def serves_device(device_type: str) -> bool:
    return device_type == "cuda"


def describe() -> str:
    """The native module and the GPU."""
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"C++ and CUDA, {where}"


def select(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Ascending positions of the `count` highest scores (N,)."""
    scores = scores.detach().resolve_neg().to(torch.float32).contiguous()
    n, device = scores.shape[0], scores.device
    indices = torch.empty(count, dtype=torch.int64, device=device)
    if n == 0:
        return indices
    with torch.cuda.device(device):
        size = _native.select_workspace(n)
        workspace = torch.empty(size, dtype=torch.uint8, device=device)
        _native.select(
            scores.data_ptr(), n, count, indices.data_ptr(), workspace.data_ptr(), size,
            torch.cuda.current_stream().cuda_stream,
        )  # fmt: skip
    return indices


def gather_rows(sources, indices, outputs) -> list[torch.Tensor]:
    """Rows `indices` (K,) of each source in one launch; written into `outputs` if given. A row
    whose index is out of range is zero, because raising would require a synchronisation."""
    indices = indices.to(torch.int64).resolve_neg().contiguous()
    count, device = indices.shape[0], indices.device
    # Rows must be contiguous; only the row stride is free.
    sources = [
        source
        if source.shape[1:].numel() <= 1 or source[:1].is_contiguous()
        else source.contiguous()
        for source in (source.detach() for source in sources)
    ]
    if outputs is None:
        outputs = [
            torch.empty((count, *source.shape[1:]), dtype=source.dtype, device=device)
            for source in sources
        ]
    tensors = []
    for source, out in zip(sources, outputs, strict=True):
        size = source.element_size()
        row_bytes = source.shape[1:].numel() * size
        tensors.append(
            (source.data_ptr(), out.data_ptr(), row_bytes, source.stride(0) * size, len(source))
        )
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream().cuda_stream
        _native.gather(tensors, indices.data_ptr(), count, stream)
    return outputs
