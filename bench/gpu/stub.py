"""A stub CUDA driver, to measure a call's host time on a machine without a GPU.

Triton compiles and launches as for a GPU, through a small libcuda.so.1 whose functions return at
once. Tensors are CPU tensors; checks that only those need are skipped.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FUNCTIONS = (
    "cuCtxGetLimit", "cuCtxSetCurrent", "cuCtxSetLimit", "cuDeviceGet", "cuDevicePrimaryCtxRetain",
    "cuDriverGetVersion", "cuFuncSetAttribute", "cuFuncSetCacheConfig", "cuGetErrorString",
    "cuModuleGetFunction", "cuModuleLoadData", "cuOccupancyMaxActiveClusters",
    "cuPointerGetAttributes", "cuTensorMapEncodeIm2col", "cuTensorMapEncodeTiled",
)  # fmt: skip
# Attributes of devices and functions are numbers large enough for every check, handles are any
# non-null address, and host pointers serve as device pointers.
SOURCE = (
    "".join(f"int {name}(void) {{ return 0; }}\n" for name in FUNCTIONS)
    + """
long launches;
int cuCtxGetCurrent(void **context) { *context = &launches; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) { *value = 1 << 17; return 0; }
int cuFuncGetAttribute(int *value, int attribute, void *function) { *value = 1024; return 0; }
int cuPointerGetAttribute(void **data, int attribute, void *pointer) { *data = pointer; return 0; }
int cuLaunchKernelEx(void *config, void *function, void **arguments, void **extra) {
  ++launches;
  return 0;
}
int cuLaunchKernel(void *function) { ++launches; return 0; }
"""
)


@contextlib.contextmanager
def stubbed(capability: tuple[int, int] = (9, 0), processors: int = 132) -> Iterator[Any]:
    """Run the Triton backend on CPU tensors without launching kernels; yields the driver library,
    whose `launches` counts them."""
    import ctypes

    import torch

    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder, "libcuda.so.1")
        source = Path(folder, "stub.c")
        source.write_text(SOURCE)
        command = [
            "gcc",
            "-shared",
            "-fPIC",
            "-O1",
            "-w",
            "-Wl,-soname,libcuda.so.1",
            "-o",
            str(library),
            str(source),
        ]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        os.environ["TRITON_LIBCUDA_PATH"] = folder
        from triton.backends.nvidia import driver as nvidia
        from triton.runtime import driver

        class Driver(nvidia.CudaDriver):
            def __init__(self) -> None:
                super().__init__()
                self.get_device_capability = lambda device=None: capability
                self.get_current_stream = lambda device=None: 0
                self.get_current_device = lambda: 0
                self.set_current_device = lambda device: None

        driver.set_active(Driver())
        from emp_kernels import backends
        from emp_kernels.backends import triton
        from emp_kernels.backends.triton import pruning, runtime, scoring

        triton.require()
        from emp_kernels.kernels import memory

        runtime.launch.processors = lambda device: processors
        memory._lasting_stream = lambda device: 0
        triton.serves_device = lambda kind: True
        for module in (pruning, scoring):
            module.check_label_range = lambda *arguments: None  # type: ignore[attr-defined]
        pruning.check_id_range = lambda *arguments: None  # type: ignore[attr-defined]
        backends.default = lambda kind, dtype: "triton"
        backends._resolve.cache_clear()
        backends.plain = lambda function: None  # type: ignore[assignment]
        torch.set_num_threads(1)
        yield ctypes.CDLL(str(library))


def launches(library: Any) -> int:
    """Number of kernels launched so far."""
    import ctypes

    return ctypes.c_long.in_dll(library, "launches").value
