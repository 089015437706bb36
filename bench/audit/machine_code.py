"""The machine code of a recorded launch, compiled ahead of time."""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.audit.recording import Launch
from emp_kernels.kernels import numerics

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.bool: "*i1",
    torch.int64: "*i64", torch.int32: "*i32", torch.uint32: "*u32", torch.uint8: "*u8",
}  # fmt: skip


class Code(NamedTuple):
    """Properties of one kernel's machine code."""

    registers: int
    local_bytes: int
    spills: int
    loads: Counter  # of global loads in the whole kernel, by bits
    loop_loads: Counter  # in the loop that loads most, of those that hold no other
    loop_length: int
    tensor_core: int  # instructions


@contextlib.contextmanager
def for_target(target: int | str) -> Iterator[GPUTarget]:
    """The target as Triton names it; of AMD's, with the kernels as they are under ROCm."""
    if isinstance(target, int):
        yield GPUTarget("cuda", target, 32)
        return
    numerics.NVIDIA.value = False
    try:
        yield GPUTarget("hip", target, 64)
    finally:
        numerics.NVIDIA.value = True


def compile_for(recorded: Launch, target: int | str) -> Any:
    """The recorded launch's kernel for one architecture: 90 is sm_90, others are AMD's names."""
    kernel, names = recorded.kernel, recorded.kernel.arg_names
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(names):
        value = recorded.arguments[name]
        if isinstance(value, torch.Tensor):
            signature[name] = POINTERS[value.dtype]
            if not kernel.params[i].do_not_specialize_on_alignment:
                attributes[(i,)] = [["tt.divisibility", 16]]
        elif name.isupper() or value is None:
            signature[name] = "constexpr"
            constants[(i,)] = value
        elif isinstance(value, float):
            signature[name] = "fp32"
        else:
            signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
    options = {"num_warps": 4} | recorded.options
    source = ASTSource(kernel, signature, constants, attributes)
    with for_target(target) as wanted:
        return triton.compile(source, target=wanted, options=options)


def read_amd(assembly: str) -> tuple[int, int]:
    """Vector registers, and bytes of memory that stand for others, of AMD's assembly."""
    found = [
        int(re.search(rf"\.{name}:\s+(\d+)", assembly)[1])  # type: ignore[index]
        for name in ("vgpr_count", "private_segment_fixed_size")
    ]
    return found[0], found[1]


def read_code(cubin: bytes) -> Code:
    """Resources and loads of the one kernel in `cubin`."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _cuobjdump("-res-usage", file.name)
        assembly = _cuobjdump("-sass", file.name)
    lines = [
        (int(match[1], 16), match[2])
        for match in re.finditer(r"^\s+/\*([0-9a-f]{4,})\*/\s+([^;]+);", assembly, re.MULTILINE)
    ]
    resources = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    loop = busiest_loop(lines)
    return Code(
        registers=resources["REG"],
        local_bytes=resources["STACK"] + resources["LOCAL"],
        spills=len(re.findall(r"\b(?:STL|LDL)\b", assembly)),
        loads=_loads(text for _, text in lines),
        loop_loads=_loads(loop),
        loop_length=len(loop),
        tensor_core=len(re.findall(r"\b(?:HMMA|HGMMA|UTCHMMA)\b", assembly)),
    )


def busiest_loop(lines: list[tuple[int, str]]) -> list[str]:
    """The loop that loads most, among those that hold no other."""
    loops = []
    for address, text in lines:
        jump = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if jump and int(jump[1], 16) < address:
            loops.append((int(jump[1], 16), address))
    inner = [
        [text for address, text in lines if start <= address <= end]
        for start, end in loops
        if not any(start <= a and b <= end and (a, b) != (start, end) for a, b in loops)
    ]
    return max(inner, key=loaded_bits, default=[])


def loaded_bits(lines: Iterable[str]) -> int:
    return sum(bits * count for bits, count in _loads(lines).items())


def _cuobjdump(option: str, path: str) -> str:
    done = subprocess.run(
        [str(TOOLS / "cuobjdump"), option, path], capture_output=True, text=True, check=True
    )
    return done.stdout + done.stderr


def _loads(lines: Iterable[str]) -> Counter:
    """Global loads, including those to shared memory, by width in bits."""
    counts: Counter = Counter()
    for text in lines:
        for modifiers in re.findall(r"\bLDG(?:STS)?((?:\.\w+)*)", text):
            bits = re.search(r"\.(?:[US])?(128|64|16|8)\b", modifiers)
            counts[int(bits[1]) if bits else 32] += 1
    return counts
