"""A CUDA driver that does nothing: what a call costs the host, on a machine without a GPU.

Triton compiles and launches as for a GPU, through a libcuda.so.1 of a few lines whose functions
return at once. Tensors are the CPU's, and what only the CPU's need is left out.
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
# What is asked of a device or a function is answered by a number that is large enough for all;
# a handle is anything but null; a pointer is the device's own, as it is.
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
    """The Triton backend on CPU tensors, launching nothing; gives the driver library, whose
    `launches` counts."""
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
    """How many kernels were launched."""
    import ctypes

    return ctypes.c_long.in_dll(library, "launches").value
